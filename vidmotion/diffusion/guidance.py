"""Classifier-free guidance (Ho and Salimans 2022)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def guided(
    denoise: Callable[[jax.Array, jax.Array, Any], jax.Array], cond: Any, null: Any, scale: float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """D_null + scale * (D_cond - D_null), both branches evaluated in one batch.

    Args:
      denoise: ``denoise(x, sigma, condition)`` over a batch, sigma of shape ().
      cond: condition pytree, leaves (B, ...).
      null: the same tree with every condition replaced by its null.
      scale: guidance weight; 1 is the conditional model alone, and then the null branch is skipped.

    Returns:
      ``f(x, sigma)`` for a sampler.
    """
    if scale == 1.0:
        return lambda x, sigma: denoise(x, sigma, cond)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, null)

    def combined(x, sigma):
        with_cond, without = jnp.split(denoise(jnp.concatenate([x, x]), sigma, both), 2)
        return without + scale * (with_cond - without)

    return combined
