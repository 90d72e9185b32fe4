"""How far a reconstruction is from its image, as a likelihood."""

import math

import jax
import jax.numpy as jnp


def laplace_nll(
    error_abs_nhwc: jax.Array, lpips_n: jax.Array, logvar: jax.Array, perceptual_weight: float
) -> jax.Array:
    """Negative log-likelihood under a Laplace distribution of learned scale (vidtwin.md, section 7).

    r = e + perceptual_weight * p, with an image's p at each of its values; r / exp(s) + s is summed
    over h, w and c and averaged over n. Up to log 2 per value it is the Laplace density of scale
    exp(s); VQGAN's code, where it comes from, calls s the log-variance. Sums, not means: at s = 0 an
    image of 224x224 pixels pays 150528 * perceptual_weight * p.

    Args:
      error_abs_nhwc: e = |x - reconstruction|.
      lpips_n: p, the perceptual distance of each image.
      logvar: s, a scalar.
      perceptual_weight: 0.05 in VidTwin.

    Returns:
      Scalar float32.
    """
    values = math.prod(error_abs_nhwc.shape[1:])
    error_n = jnp.sum(error_abs_nhwc.astype(jnp.float32), axis=(1, 2, 3))
    # The sum over an image of r, without spreading p over its values.
    distance = jnp.mean(error_n + values * perceptual_weight * lpips_n.astype(jnp.float32))
    scale = logvar.astype(jnp.float32)
    return distance * jnp.exp(-scale) + values * scale
