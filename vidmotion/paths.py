"""Selects parameters by ordered ``(regex, value)`` rules on tree paths, one grammar for all uses.

A path is the keys of a nested dict joined by ``/`` (``encoder/layer_0/attention/query/kernel``). A rule's regex must
match the whole path, and the first rule that matches wins. Leaves that no rule matches are an error, which lists their
paths. The rules decide which leaves are trainable, their learning rates, weight decay and sharding, and which
parameters a partial load takes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vidmotion.errors import ConfigError

Rules = Sequence[tuple[str, Any]]


class RuleError(ConfigError):
    """A rule is malformed, or a leaf has no rule."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested dict to ``{"a/b/c": leaf}``, in the tree's own order; empty dicts vanish."""
    flat = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            flat.update(flatten(value, path))
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``{"a/b/c": leaf}`` into a nested dict; the inverse of `flatten` for trees without empty dicts."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def _compile(rules: Rules) -> list[tuple[re.Pattern, Any]]:
    compiled = []
    if isinstance(rules, str) or not isinstance(rules, Sequence):
        raise RuleError(f"rules must be a sequence of pairs (regex, value), got {rules!r}")
    for rule in rules:
        if isinstance(rule, str) or not isinstance(rule, Sequence) or len(rule) != 2:
            raise RuleError(f"a rule must be a pair (regex, value), got {rule!r}")
        try:
            compiled.append((re.compile(rule[0]), rule[1]))
        except (re.error, TypeError) as error:
            raise RuleError(f"rule {rule[0]!r} is not a regular expression: {error}") from error
    return compiled


def assign(rules: Rules, tree: Mapping[str, Any], what: str = "rules") -> dict[str, Any]:
    """Return a tree with the nesting of `tree` that holds the value of each leaf's rule.

    Args:
      rules: ordered ``(regex, value)`` pairs; a regex must match the whole path, and the first match wins.
      tree: a nested dict, of which only the paths are used.
      what: the name of the rules for the error message, for example ``optimizer.model.rate``.

    Raises:
      RuleError: a rule is malformed, or some leaves match no rule; the message lists their paths.
    """
    try:
        compiled = _compile(rules)
    except RuleError as error:
        raise RuleError(f"{what}: {error}") from error
    values, unmatched = {}, []
    for path in flatten(tree):
        for pattern, value in compiled:
            if pattern.fullmatch(path):
                values[path] = value
                break
        else:
            unmatched.append(path)
    if unmatched:
        raise RuleError(
            f"{what}: no rule matches {_listed(unmatched)}; add a rule for them, or a last "
            f"catch-all ('.*', value)"
        )
    return unflatten(values)


def select(tree: Mapping[str, Any], mask: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sub-tree of the leaves whose value in `mask` is true."""
    flags = flatten(mask)
    return unflatten({path: leaf for path, leaf in flatten(tree).items() if flags[path]})


def merge(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Merge trees into one with all their leaves; a later tree's leaf replaces an earlier one's."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat.update(flatten(tree))
    return unflatten(flat)


def _listed(paths: Iterable[str], limit: int = 12) -> str:
    paths = list(paths)
    more = f" and {len(paths) - limit} more" if len(paths) > limit else ""
    return ", ".join(paths[:limit]) + more


def misfits(have: Mapping[str, Any], want: Mapping[str, Any]) -> list[str]:
    """List why the arrays of `have` cannot fill the tree `want`.

    There is one line for each leaf of `want` that `have` lacks or holds in another shape. Leaves that only `have` has
    do not matter.
    """
    there, wrong = flatten(have), []
    for path, leaf in flatten(want).items():
        if path not in there:
            wrong.append(f"{path}: missing")
        elif there[path].shape != leaf.shape:
            wrong.append(f"{path}: {there[path].shape}, expected {leaf.shape}")
    return wrong
