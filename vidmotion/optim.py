"""Builds optimizers: AdamW or Muon with per-path rates and decay, a schedule, and clipping by groups of leaves.

Each player has one section in ``config.optimizer``. Rates are absolute, as papers state them; the schedule is a factor
by which they are multiplied.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from vidmotion import paths
from vidmotion.errors import ConfigError

PyTree = Any
ALL = ((".*", True),)
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b and c of Jordan et al.
MUON_STEPS = 5


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A factor on the learning rates: linear warm-up from 0, then constant, or cosine or linear down to `end`.

    Attributes:
      kind: ``constant``, ``cosine`` or ``linear``.
      warmup: the number of steps of linear warm-up; the first update uses the factor 1/warmup.
      end: the factor that would follow the last planned update (cosine and linear).
    """

    kind: str = "constant"
    warmup: int = 0
    end: float = 0.0

    def __post_init__(self):
        if self.kind not in ("constant", "cosine", "linear"):
            raise ConfigError(f"kind={self.kind!r}: choose constant, cosine or linear")
        if self.warmup < 0:
            raise ConfigError(f"warmup={self.warmup} must be a number of steps, 0 or more")

    def factor(self, count: jax.Array, steps: int) -> jax.Array:
        """Return the factor, () float32, of the update that follows `count` completed ones in a run of `steps`."""
        count = jnp.asarray(count, jnp.float32)
        progress = jnp.clip((count - self.warmup) / max(steps - self.warmup, 1), 0.0, 1.0)
        shape = {
            "constant": jnp.ones_like(progress),
            "linear": 1.0 - progress,
            "cosine": 0.5 + 0.5 * jnp.cos(jnp.pi * progress),
        }[self.kind]
        if self.kind != "constant":
            shape = self.end + (1.0 - self.end) * shape
        return shape * jnp.minimum(1.0, (count + 1.0) / max(self.warmup, 1))


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """One player's section of ``config.optimizer``.

    Attributes:
      rate: absolute learning rates by path, ``((regex, rate), ...)``, or one number for all leaves.
      kind: ``adamw``, which all papers of this project use; or ``muon`` (Jordan et al. 2024,
        kellerjordan.github.io/posts/muon), which turns the momentum of every kernel of a dense layer or a convolution
        into an orthogonal matrix, inputs by outputs, and leaves all other leaves to AdamW. Muon's rates are about ten
        times those of AdamW.
      betas: AdamW's (beta_1, beta_2).
      eps: AdamW's epsilon.
      weight_decay: the decoupled decay; the update is ``-rate * (adam + weight_decay * w)``.
      decay: the leaves that decay, ``((regex, bool), ...)``.
      trainable: the leaves that learn, ``((regex, bool), ...)``; the others get no gradient, no moments and no
        average.
      start: the number of updates for which a leaf waits, ``((regex, count), ...)``. While it waits, it neither moves
        nor decays. Afterwards its moments and their bias corrections begin as in a fresh optimizer, while the
        schedule has gone on.
      clip: the largest gradient norm of all leaves together; or ``((regex, norm), ...)``, where the leaves of each
        rule are clipped as a group, so that a long gradient in one group does not shrink another. 0 switches clipping
        off.
      schedule: the factor on the rates.
    """

    rate: Any
    kind: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay: paths.Rules = ALL
    trainable: paths.Rules = ALL
    start: paths.Rules = ((".*", 0),)
    clip: Any = 0.0
    schedule: Schedule = Schedule()

    def __post_init__(self):
        if self.kind not in ("adamw", "muon"):
            raise ConfigError(f"kind={self.kind!r}: choose adamw or muon")
        for name in ("rate", "clip"):
            value = getattr(self, name)
            if not all(0 <= number < math.inf for _, number in _rules(value)):
                raise ConfigError(f"{name}={value!r}: numbers must be finite and at least 0")

    def trainable_mask(self, params: PyTree) -> PyTree:
        """Return a tree of bools like `params` that tells which leaves learn.

        Raises:
          paths.RuleError: a leaf matches no rule of `trainable`.
        """
        return paths.assign(self.trainable, params, "optimizer.trainable")

    def transform(
        self, params: PyTree, steps: int, before: int = 0
    ) -> optax.GradientTransformation:
        """Build the update rule for a player's trainable leaves.

        Args:
          params: the trainable sub-tree of the player's parameters.
          steps: the number of updates over which the schedule runs.
          before: the number of updates that the schedule counts as past before the first one.

        Raises:
          paths.RuleError: a leaf matches no rule of `rate`, `decay`, `start` or `clip`.
        """
        rates = paths.assign(_rules(self.rate), params, "optimizer.rate")
        decays = paths.assign(self.decay, params, "optimizer.decay")

        def scale(updates, _):
            return jax.tree.map(lambda update, rate: update * rate, updates, rates)

        limits = _rules(self.clip)
        groups = [(pattern, number) for number, (pattern, _) in enumerate(limits)]
        groups = paths.assign(groups, params, "optimizer.clip")

        def clip(updates, _):
            return _clipped(updates, groups, [limit for _, limit in limits])

        chain = [optax.stateless(clip)] if any(limit for _, limit in limits) else []
        adam = optax.scale_by_adam(*self.betas, eps=self.eps)
        rule = [adam if self.kind == "adamw" else _muon(adam, params)]
        if self.weight_decay:
            rule += [optax.add_decayed_weights(self.weight_decay, _by_path(decays))]
        chain += _started(rule, paths.assign(self.start, params, "optimizer.start"))
        chain += [
            optax.stateless(scale),
            optax.scale_by_schedule(lambda count: -self.schedule.factor(count + before, steps)),
        ]
        return optax.chain(*chain)


def _by_path(values: PyTree) -> Callable[[PyTree], PyTree]:
    """Return a function that picks from `values` the leaves at a tree's paths; a tree masked by optax lacks some."""
    leaves = paths.flatten(values)
    return lambda tree: jax.tree_util.tree_map_with_path(
        lambda path, _: leaves["/".join(str(key.key) for key in path)], tree
    )


def _started(
    rule: list[optax.GradientTransformation], starts: PyTree
) -> list[optax.GradientTransformation]:
    """Apply `rule` to all leaves at once if none waits, else separately to the leaves of each start in `starts`."""
    counts = sorted(set(jax.tree.leaves(starts)))
    if counts == [0]:
        return rule

    def waiting(count):
        # Without a condition, the moments are read and written once, together with the parameters and their averages.
        chain = optax.chain(*rule)
        return optax.conditionally_mask(chain, lambda n: n >= count) if count else chain

    groups = {f"from_{count}": waiting(count) for count in counts}
    return [optax.partition(groups, _by_path(jax.tree.map("from_{}".format, starts)))]


def _rules(value: Any) -> paths.Rules:
    """Return rules unchanged, and a single number as a rule for all leaves."""
    return value if isinstance(value, tuple | list) else ((".*", value),)


def _clipped(updates: PyTree, groups: PyTree, limits: list[float]) -> PyTree:
    """Clip the `updates` of each group i to the joint norm ``limits[i]``, unless that is 0.

    `groups` is a tree of group numbers with the structure of `updates`.
    """
    factors = []
    for number, limit in enumerate(limits):
        members = [
            update
            for update, group in zip(jax.tree.leaves(updates), jax.tree.leaves(groups))
            if group == number
        ]
        length = optax.tree.norm(members)
        # The factor is at most 1, and is 1 for a length of 0.
        factors.append(limit / jnp.maximum(length, limit) if limit and members else 1.0)
    return jax.tree.map(lambda update, group: update * factors[group], updates, groups)


def _muon(adam: optax.GradientTransformation, params: PyTree) -> optax.GradientTransformation:
    """Build the update rule that applies Muon to the kernels among `params` and `adam` to the rest."""
    leaves = paths.flatten(params)
    dims = {
        path: optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)
        for path, leaf in leaves.items()
        # Three dimensions mean layers stacked by a scan, or an embedding, not the matrix of a single layer.
        if path.endswith("kernel") and leaf.ndim in (2, 4, 5)
    }
    labels = {path: "muon" if path in dims else "adam" for path in leaves}

    def turn(updates, _):
        """Make kernels orthogonal and scale up those with more outputs (last axis) than inputs (all other axes).

        An orthogonal matrix of such a shape moves each output less than a square one would.
        """
        return jax.tree.map(
            lambda x: _orthogonal(x) * max(1.0, x.shape[-1] ** 2 / x.size) ** 0.5, updates
        )

    momentum = optax.contrib.scale_by_muon(  # its own iteration is switched off
        ns_steps=0, weight_dimension_numbers=_by_path(paths.unflatten(dims))
    )
    kernels = optax.chain(momentum, optax.stateless(turn))
    return optax.partition({"muon": kernels, "adam": adam}, _by_path(paths.unflatten(labels)))


def _orthogonal(kernel: jax.Array) -> jax.Array:
    """Bring the singular values of a kernel, inputs by outputs (last axis), close to 1 by Muon's iteration.

    Five times, the iteration replaces X by Q X with Q = a I + b X X^T + c (X X^T)^2. Each Q commutes with X X^T, so the
    product of all five follows from X X^T alone, whose side is the shorter one of X, and X is multiplied only once. Up
    to rounding, the result is that of the iteration as it is usually written.

    Args:
      kernel: (..., outputs) float32, of a Frobenius norm of at most 1.
    """
    x = kernel.reshape(-1, kernel.shape[-1])
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    # Rounding accumulates in the product, so its factors are not left to bfloat16 or TF32.
    times = functools.partial(jnp.matmul, precision="float32")
    a, b, c = NEWTON_SCHULZ
    product, gram = None, times(x, x.T)
    for _ in range(MUON_STEPS):
        q = a * jnp.eye(len(x)) + b * gram + c * times(gram, gram)
        product = q if product is None else times(q, product)
        gram = times(q, times(gram, q))
    x = times(product, x)
    return (x.T if tall else x).reshape(kernel.shape)
