"""Classifier-free guidance (Ho and Salimans 2022)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


def guided(
    denoise: Callable[[jax.Array, jax.Array, Any], jax.Array], cond: Any, null: Any, scale: float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Makes a guided denoiser, D_null + scale * (D_cond - D_null), that evaluates both branches in one batch.

    Args:
      denoise: ``denoise(x, sigma, condition)`` over a batch, with sigma of shape ().
      cond: the conditions, a pytree with leaves (B, ...).
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
        return guide(with_cond, without, scale)

    return combined


def guide(with_cond: jax.Array, without: jax.Array, scale: float) -> jax.Array:
    """Returns without + scale * (with_cond - without).

    Unlike `guided`, it serves networks whose two branches cannot share a batch, because one of them lacks an input such
    as X-NeMo's reference features.
    """
    return without + scale * (with_cond - without)


def scale_of(weight: float, reading: str) -> float:
    """Returns the `scale` for `guide` from the weight that a paper or a command line gives.

    Args:
      weight: w, the given weight.
      reading: the formula in which w stands: "scale", without + w * (with_cond - without); or "excess",
        (1 + w) * with_cond - w * without, which is X-NeMo's Eq. 2 and means a scale of 1 + w.

    Raises:
      ValueError: unknown reading.
    """
    if reading not in READINGS:
        raise ValueError(f"reading {reading!r}: choose one of {', '.join(READINGS)}")
    return weight + READINGS[reading]


READINGS = {"scale": 0.0, "excess": 1.0}  # the number that each reading adds to w


class Preset(NamedTuple):
    """Settings of a sampler: the number of DDIM steps, the guidance weight, and the weight's reading (`scale_of`)."""

    steps: int
    weight: float
    reading: str


XNEMO_PRESETS = {
    "released": Preset(35, 2.5, "scale"),  # the settings of the released script
    "paper": Preset(25, 3.5, "scale"),  # the paper's appendix; the script's unused defaults
    "literal": Preset(25, 3.5, "excess"),  # Eq. 2 taken literally: a scale of 4.5
}
