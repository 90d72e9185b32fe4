"""Converts PyTorch weights into a Flax parameter tree and back, by one table of reversible rules.

A table is a sequence of rules and `Ignore` entries:

    RULES = (
        ("down_{i}/res_{j}/conv1/kernel", "down_blocks.{i}.resnets.{j}.conv1.weight", conv2d),
        (("q/kernel", "k/kernel", "v/kernel"), "attn.qkv.weight", split(3, 0, linear)),
        ("out/kernel", ("to_out.0.weight", "proj_attn.weight"), linear),
        ("blocks/mlp/kernel", "layers.{i}.mlp.weight", stack("i", linear)),
        Ignore("*.position_ids", "a constant that the port computes"),
    )

A rule is ``(target, source, transform)``. Target paths are joined by ``/``; source keys are spelled
as in the checkpoint. A field ``{i}`` stands for digits, and all other text stands for itself. With
`split`, several targets share one source. Several sources are alternative spellings: the first one
that is present is read, and the first one in the rule is written. `convert` starts from the tree to
be filled: every target must be filled by exactly one rule, every source key must be used once or be
ignored with a reason, and shapes and dtypes must agree. Otherwise nothing is returned.
"""

import collections
import functools
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vidmotion import paths
from vidmotion.convert.transforms import Transform, same

Names = str | tuple[str, ...]
Rule = tuple[Names, Names, Transform]


class Ignore(NamedTuple):
    """Keys of a checkpoint that the network does not need, and the reason.

    Attributes:
      source: template of the keys; ``*`` stands for any text.
      reason: why nothing is lost by leaving them out.
    """

    source: str
    reason: str


Rules = Sequence[Rule | Ignore]


class ConversionError(ValueError):
    """A checkpoint, a tree and a table do not fit together; `problems` has one line for each fault."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__(
            "\n  ".join([f"weights do not fit, {len(problems)} problem(s):", *problems])
        )


def convert(
    abstract: Mapping[str, Any], source: Mapping[str, np.ndarray], rules: Rules
) -> dict[str, Any]:
    """Fills a parameter tree from a checkpoint.

    Args:
      abstract: nested dict of arrays or `jax.ShapeDtypeStruct`, as from
        ``jax.eval_shape(model.init, ...)``.
      source: checkpoint keys to arrays (`read.read`).
      rules: the table, as described at the top of this file.

    Returns:
      A nested dict of numpy arrays with the structure of `abstract`; the arrays may be views of `source`.

    Raises:
      ConversionError: a key or a target is missing, left over or used twice, or has another shape or dtype.
    """
    targets = paths.flatten(abstract)
    problems: list[str] = []
    filled: dict[str, np.ndarray] = {}
    users = collections.defaultdict(list)
    for binding in _bindings(targets, rules, problems):
        spellings = binding.spellings(targets)
        keys = next((s for s in spellings if any(key in source for key in s)), spellings[0])
        for key in keys:
            users[key].append(binding.name)
        missing = [key for key in keys if key not in source]
        if missing:
            others = "".join(f", nor {s[0]}" for s in spellings if s[0] not in keys)
            problems.append(f"target {binding.name}: no source {', '.join(missing)}{others}")
            continue
        try:
            values = binding.transform.forward([np.asarray(source[key]) for key in keys])
        except ValueError as error:
            problems.append(f"source {', '.join(keys)}: {binding.transform.name}: {error}")
            continue
        for path, value in zip(binding.targets, values):
            filled[path] = value
            problems += _mismatch(
                path, targets[path], value, f"{keys[0]} ({binding.transform.name})"
            )
    problems += [
        f"source {k}: used more than once, for {' and for '.join(u)}"
        for k, u in users.items()
        if len(u) > 1
    ]
    ignored = [_pattern(rule.source) for rule in rules if isinstance(rule, Ignore)]
    problems += [
        f"source {key}: no rule uses it and none ignores it"
        for key in source
        if key not in users and not any(pattern.fullmatch(key) for pattern in ignored)
    ]
    if problems:
        raise ConversionError(problems)
    return paths.unflatten({path: filled[path] for path in targets})


def export(params: Mapping[str, Any], rules: Rules) -> dict[str, np.ndarray]:
    """Returns the checkpoint of a parameter tree: the inverse of `convert`.

    Args:
      params: nested dict of arrays.
      rules: the table; keys that it ignores are not written.

    Returns:
      Checkpoint keys, in their first spelling, to numpy arrays, in the order of `params`.

    Raises:
      ConversionError: a leaf has no rule or several, or a key would be written twice.
    """
    leaves = {path: np.asarray(leaf) for path, leaf in paths.flatten(params).items()}
    problems: list[str] = []
    source: dict[str, np.ndarray] = {}
    for binding in _bindings(leaves, rules, problems):
        try:
            values = binding.transform.inverse([leaves[path] for path in binding.targets])
        except ValueError as error:
            problems.append(f"target {binding.name}: {binding.transform.name}: {error}")
            continue
        for key, value in zip(binding.spellings(leaves)[0], values):
            if key in source:
                problems.append(f"source {key}: written a second time by {binding.name}")
            source[key] = value
    if problems:
        raise ConversionError(problems)
    return source


def check(abstract: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], rules: Rules) -> None:
    """Checks that the table fills this tree from a checkpoint of these shapes: `convert` without weights.

    Args:
      abstract: nested dict of arrays or `jax.ShapeDtypeStruct`; dtypes are not compared.
      shapes: checkpoint keys to shapes (`read.read_manifest`).
      rules: the table.

    Raises:
      ConversionError: as `convert`.
    """

    def stand_in(shape: tuple[int, ...]) -> np.ndarray:
        return np.broadcast_to(np.zeros((), np.float32), shape)  # takes no memory

    targets = {path: stand_in(leaf.shape) for path, leaf in paths.flatten(abstract).items()}
    source = {key: stand_in(shape) for key, shape in shapes.items()}
    convert(paths.unflatten(targets), source, rules)


def layer(target: Names, source: Names, transform: Transform) -> tuple[Rule, ...]:
    """Returns the rules of a dense or convolution layer: kernel and bias from weight and bias."""
    return (
        (_suffixed(target, "/kernel"), _suffixed(source, ".weight"), transform),
        (_suffixed(target, "/bias"), _suffixed(source, ".bias"), transform),
    )


def norm(target: str, source: Names) -> tuple[Rule, ...]:
    """Returns the rules of a normalisation layer: scale and bias from weight and bias."""
    return (
        (_suffixed(target, "/scale"), _suffixed(source, ".weight"), same),
        (_suffixed(target, "/bias"), _suffixed(source, ".bias"), same),
    )


def batch_norm(target: str, source: str) -> tuple[Rule, ...]:
    """Returns the rules of a batch norm in a tree of variables, ``params/...`` and ``batch_stats/...``."""
    return (
        *norm(f"params/{target}", source),
        (f"batch_stats/{target}/mean", f"{source}.running_mean", same),
        (f"batch_stats/{target}/var", f"{source}.running_var", same),
    )


def prefixed(rules: Rules, target: str = "", source: str = "") -> tuple[Rule | Ignore, ...]:
    """Adapts the table of a network to a larger network that it is a part of.

    Args:
      rules: the table of the part.
      target: the prefix of every target path, for example ``vae/``.
      source: the prefix of every source key, for example ``first_stage_model.``.
    """

    def grown(rule: Rule | Ignore) -> Rule | Ignore:
        if isinstance(rule, Ignore):
            return Ignore(source + rule.source, rule.reason)
        targets, sources, transform = rule
        return (
            tuple(target + name for name in _names(targets)),
            tuple(source + name for name in _names(sources)),
            transform,
        )

    return tuple(grown(rule) for rule in rules)


class _Binding(NamedTuple):
    """A rule with values filled in for the fields of its targets."""

    targets: tuple[str, ...]
    sources: tuple[str, ...]  # spellings; the counted field of a `stack` is not filled in yet
    transform: Transform

    @property
    def name(self) -> str:
        return ", ".join(self.targets)

    def spellings(self, leaves: Mapping[str, Any]) -> list[list[str]]:
        """Returns the keys of the source arrays, once per alternative spelling."""
        over = self.transform.over
        if over is None:
            return [[source] for source in self.sources]
        count = (*leaves[self.targets[0]].shape, 0)[0]
        return [[source.format(**{over: i}) for i in range(count)] for source in self.sources]


def _bindings(leaves: Mapping[str, Any], rules: Rules, problems: list[str]) -> list[_Binding]:
    """Returns a binding for each way in which a rule applies to `leaves`; appends what does not fit to `problems`."""
    mapping = [rule for rule in rules if not isinstance(rule, Ignore)]
    broken = [fault for rule in mapping if (fault := _fault(rule))]
    if broken:
        raise ConversionError(broken)
    found: dict[_Binding, None] = {}
    for path in leaves:
        hits = [binding for rule in mapping for binding in _bind(rule, path)]
        if len(hits) != 1:
            said = "; ".join(" | ".join(hit.sources) for hit in hits)
            problems.append(
                f"target {path}: "
                + (f"matches several rules: {said}" if hits else "matches no rule")
            )
        for hit in hits[:1]:
            found[hit] = None
    complete = []
    for binding in found:
        absent = [path for path in binding.targets if path not in leaves]
        if absent:
            problems.append(f"target {binding.name}: the tree lacks {', '.join(absent)}")
        else:
            complete.append(binding)
    return complete


def _bind(rule: Rule, path: str) -> list[_Binding]:
    """Returns the rule with the field values that make one of its targets equal to `path`, or an empty list."""
    targets, sources, transform = _names(rule[0]), _names(rule[1]), rule[2]
    for target in targets:
        match = _pattern(target).fullmatch(path)
        if match:
            fields = match.groupdict()
            left = {transform.over: f"{{{transform.over}}}"} if transform.over else {}
            return [
                _Binding(
                    tuple(name.format(**fields) for name in targets),
                    tuple(name.format(**fields, **left) for name in sources),
                    transform,
                )
            ]
    return []


def _fault(rule: Rule) -> str:
    """Says why a rule cannot be used in both directions; returns an empty text if it can."""
    targets, sources, transform = _names(rule[0]), _names(rule[1]), rule[2]
    label = f"rule {', '.join(targets)} <- {' | '.join(sources)}"
    if len(targets) != transform.parts:
        return f"{label}: {transform.name} makes {transform.parts} target(s), not {len(targets)}"
    fields = {name: set(_pattern(name).groupindex) for name in targets + sources}
    wanted = {name: fields[targets[0]] for name in targets}
    counted = {transform.over} if transform.over else set()
    wanted |= {name: fields[targets[0]] | counted for name in sources}
    if fields != wanted or counted & fields[targets[0]]:
        return f"{label}: the fields of targets and sources differ"
    return ""


@functools.cache
def _pattern(template: str) -> re.Pattern:
    """Returns the regular expression of a template: ``{i}`` matches the same digits each time, ``*`` any text."""
    pattern, seen = "", set()
    for literal, field, *_ in string.Formatter().parse(template):
        pattern += re.escape(literal).replace(r"\*", ".*")
        if field:
            pattern += f"(?P={field})" if field in seen else rf"(?P<{field}>\d+)"
            seen.add(field)
    return re.compile(pattern)


def _mismatch(path: str, want: Any, value: np.ndarray, origin: str) -> list[str]:
    problems = []
    if tuple(want.shape) != value.shape:
        problems.append(
            f"target {path}: shape {tuple(want.shape)}, but {origin} gives {value.shape}"
        )
    if np.dtype(want.dtype) != value.dtype:
        problems.append(
            f"target {path}: dtype {np.dtype(want.dtype)}, but {origin} is {value.dtype}; "
            "read half precision with float32=True"
        )
    return problems


def _names(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _suffixed(names: Names, suffix: str) -> tuple[str, ...]:
    return tuple(name + suffix for name in _names(names))
