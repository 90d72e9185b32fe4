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


@jax.jit
def _is_finite(leaf: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(leaf))


def name_broken(tree: PyTree, most: int = 3) -> str:
    """For a message: the paths of the first `most` leaves that hold a NaN or an infinity, and how many more there are;
    empty where none does.

    There is a program for each shape and not one for the tree: states have thousands of leaves of tens of shapes, and
    one program of all of them takes many times as long to compile.
    """
    finite = jax.device_get(jax.tree.map(_is_finite, tree))
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(finite)
        if not leaf
    ]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
