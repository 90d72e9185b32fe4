"""WarpFace's weight map and symmetry term (Eq. 11 to 13; spec warpface.md, section 7)."""

import jax
import jax.numpy as jnp


def adaptive_weight(
    source_bhwc: jax.Array, target_bhwc: jax.Array, tau: float, epsilon: float
) -> jax.Array:
    """Computes the weight map of Eq. 12, which gives more weight to places where the two frames of a pair differ.

    delta is the absolute difference of the clean latents, averaged over channels (not in paper: the
    equation has only rows and columns); its mean is taken per example. Two equal frames get
    tau everywhere. No gradient passes through the map.

    Args:
      source_bhwc, target_bhwc: the clean latents of the two frames.
      tau: the weight of places where delta is not above its mean.
      epsilon: how much more weight the other places get: their weight is tau * (1 + epsilon * delta / mean).

    Returns:
      (b, h, w) float32.
    """
    difference = source_bhwc.astype(jnp.float32) - target_bhwc.astype(jnp.float32)
    delta = jnp.mean(jnp.abs(difference), axis=-1)
    mean = jnp.mean(delta, axis=(1, 2), keepdims=True)
    moving = (delta > mean) & (mean > 1e-8)
    ratio = delta / jnp.maximum(mean, 1e-8)
    return jax.lax.stop_gradient(tau * jnp.where(moving, 1.0 + epsilon * ratio, 1.0))


def symmetry_loss(to_canonical_bm: jax.Array, from_canonical_bm: jax.Array) -> jax.Array:
    """Computes Eq. 13 per example, (b,): the mean over the code of (theta_{s->r} + theta_{r->s})^2.

    It is a mean where the equation has a sum. With the paper's 1,024 numbers, a sum would begin about sixty times as
    large as the rest of the loss, and this term alone drives all codes to a single one (see `systems.warpface.Loss`).
    Besides, the code's length varies eightfold across Table 4c, and lambda_sym should mean the same for all lengths.
    """
    return jnp.mean(jnp.square(to_canonical_bm + from_canonical_bm), axis=-1)
