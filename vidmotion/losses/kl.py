"""Kullback-Leibler divergence of a diagonal Gaussian from the standard normal."""

import jax
import jax.numpy as jnp


def gaussian_kl(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of each example, in nats (Kingma and Welling, appendix B).

    0.5 * sum(mean^2 + exp(logvar) - 1 - logvar) over all axes but the first, in float32. VidTwin
    adds those of its latents and takes the mean over the batch (spec vidtwin.md, section 4).

    Args:
      mean, logvar: (batch, ...), equal shapes.

    Returns:
      (batch,) float32, not negative.
    """
    mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
    # expm1: near the prior, exp(v) - 1 - v cancels.
    terms = jnp.square(mean) + jnp.expm1(logvar) - logvar
    return 0.5 * jnp.sum(terms, axis=tuple(range(1, mean.ndim)))
