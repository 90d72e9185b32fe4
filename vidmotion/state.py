"""What a training run carries from step to step, and nothing else."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vidmotion import paths

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """State of a run after `step` completed updates.

    Attributes:
      step: () int32, number of completed updates; also the checkpoint's label.
      params: ``{player: nested dict}``, float32, trainable and frozen leaves alike.
      mutable: non-gradient state of the networks (running statistics); ``{}`` for most systems.
      opt: ``{player: optax state}`` over that player's trainable leaves.
      ema: exponential moving average of the first player's trainable leaves, or ``{}`` when off.

    Nothing random is kept: keys are functions of (seed, step, microbatch).
    """

    step: jax.Array
    params: PyTree
    mutable: PyTree
    opt: PyTree
    ema: PyTree

    def averaged_params(self) -> PyTree:
        """`params` with the averaged leaves in place of the raw ones: what evaluation uses."""
        return paths.merge(self.params, self.ema)


def broken_leaves(tree: PyTree) -> PyTree:
    """Tree of () bool like `tree`: whether a leaf holds a NaN or an infinity; integers never do. Jit-able."""

    def broken(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.zeros((), bool)
        return ~jnp.all(jnp.isfinite(leaf))

    return jax.tree.map(broken, tree)
