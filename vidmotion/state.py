"""The state that a training run carries from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vidmotion import paths

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a run after `step` completed updates.

    Attributes:
      step: () int32, the number of completed updates; also the checkpoint's label.
      params: ``{player: nested dict}``, float32, trainable and frozen leaves alike.
      mutable: the non-gradient state of the networks (running statistics); ``{}`` for most systems.
      opt: ``{player: optax state}`` over the player's trainable leaves.
      ema: the exponential moving average of the first player's trainable leaves; ``{}`` if averaging is off.

    No random state is kept: keys are functions of (seed, step, player, microbatch).
    """

    step: jax.Array
    params: PyTree
    mutable: PyTree
    opt: PyTree
    ema: PyTree

    def averaged_params(self) -> PyTree:
        """Return `params` with averaged leaves in place of the raw ones, for evaluation."""
        return paths.merge(self.params, self.ema)


@jax.jit
def _is_finite(leaf: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(leaf))


def name_broken(tree: PyTree, most: int = 3) -> str:
    """Name, for a message, the leaves that hold a NaN or an infinity.

    One program is compiled for each shape and not one for the whole tree: states have thousands of leaves but only
    tens of shapes, and a single program for all leaves takes many times as long to compile. Each program is awaited:
    where leaves are split over simulated devices of a CPU, programs that run at the same time wait for each other for
    ever.

    Returns:
      The paths of the first `most` such leaves and the number of further ones; empty if there are none.
    """
    finite = jax.tree.map(lambda leaf: jax.device_get(_is_finite(leaf)), tree)
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(finite)
        if not leaf
    ]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
