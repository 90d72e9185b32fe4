"""A reconstruction loss in the form of a likelihood."""

import math

import jax
import jax.numpy as jnp


def laplace_nll(
    error_abs_nhwc: jax.Array, lpips_n: jax.Array, logvar: jax.Array, perceptual_weight: float
) -> jax.Array:
    """Computes the negative log-likelihood under a Laplace distribution of learned scale (vidtwin.md, section 7).

    Each value of an image has r = e + perceptual_weight * p, where p is the same for the whole image; r / exp(s) + s is
    summed over h, w and c and averaged over n. Except for log 2 per value, this is the negative logarithm of the
    Laplace density of scale exp(s); VQGAN's code, where it comes from, calls s the log-variance. Because of the sum, an
    image of 224x224 pixels at s = 0 pays 150528 * perceptual_weight * p.

    Args:
      error_abs_nhwc: the absolute error e = |x - reconstruction|.
      lpips_n: p, the perceptual distance of each image.
      logvar: s, a scalar.
      perceptual_weight: the weight of p; 0.05 in VidTwin.

    Returns:
      Scalar float32.
    """
    values = math.prod(error_abs_nhwc.shape[1:])
    error_n = jnp.sum(error_abs_nhwc.astype(jnp.float32), axis=(1, 2, 3))
    # The sum of r over an image, computed without copying p to all of its values.
    distance = jnp.mean(error_n + values * perceptual_weight * lpips_n.astype(jnp.float32))
    scale = logvar.astype(jnp.float32)
    return distance * jnp.exp(-scale) + values * scale
