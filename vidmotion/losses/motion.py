"""WarpFace's weight map and symmetry term (Eq. 11 to 13; spec warpface.md, section 7)."""

import jax
import jax.numpy as jnp


def adaptive_weight(
    source_bhwc: jax.Array, target_bhwc: jax.Array, tau: float, epsilon: float
) -> jax.Array:
    """Eq. 12: more weight where the two frames of a pair differ.

    delta is the absolute difference of the clean latents, averaged over channels (not in paper: the
    equation has rows and columns only), and its mean is taken per example. Frames that are equal get
    tau throughout. No gradient passes.

    Args:
      source_bhwc, target_bhwc: clean latents.
      tau: weight of what hardly moves.
      epsilon: how much more the rest gets: tau * (1 + epsilon * delta / mean).

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
    """Eq. 13 per example: mean over the code of (theta_{s->r} + theta_{r->s})^2, (b,).

    A mean where the equation has a sum. At the paper's 1,024 numbers a sum would begin some sixty times as large as
    the rest of the loss, and the term alone drives all codes to one (see `systems.warpface.Loss`); besides, the code's
    length differs eightfold across Table 4c, and lambda_sym is to keep its meaning.
    """
    return jnp.mean(jnp.square(to_canonical_bm + from_canonical_bm), axis=-1)
