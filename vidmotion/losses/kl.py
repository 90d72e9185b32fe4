"""Kullback-Leibler divergence of a diagonal Gaussian from the standard normal."""

import jax
import jax.numpy as jnp


def gaussian_kl(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Computes KL(N(mean, exp(logvar)) || N(0, 1)) of each example, in nats (Kingma and Welling, appendix B).

    It is 0.5 * sum(mean^2 + exp(logvar) - 1 - logvar) over all axes but the first, in float32. VidTwin
    adds the divergences of its latents and takes the mean over the batch (spec vidtwin.md, section 4).

    Args:
      mean, logvar: the mean and log-variance of the Gaussian, (batch, ...), with equal shapes.

    Returns:
      (batch,) float32, not negative.
    """
    mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
    # expm1, because exp(v) - 1 loses precision for v near 0, that is near the prior.
    terms = jnp.square(mean) + jnp.expm1(logvar) - logvar
    return 0.5 * jnp.sum(terms, axis=tuple(range(1, mean.ndim)))
