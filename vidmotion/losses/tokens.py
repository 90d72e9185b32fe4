"""The loss of X-NeMo's motion tokenizer (T2M-GPT's objective; spec xnemo.md, 4.2)."""

import jax
import jax.numpy as jnp


def smooth_l1(x: jax.Array, y: jax.Array) -> jax.Array:
    """Averages d^2 / 2 where |d| < 1 and |d| - 1/2 elsewhere, for d = x - y, over all entries; scalar float32."""
    gap = jnp.abs(x.astype(jnp.float32) - y.astype(jnp.float32))
    return jnp.mean(jnp.where(gap < 1.0, 0.5 * jnp.square(gap), gap - 0.5))


def tokenizer_loss(
    target_btc: jax.Array,
    reconstruction_btc: jax.Array,
    commitment: jax.Array,
    velocity_weight: float = 0.5,
    commitment_weight: float = 0.02,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Adds up the smooth L1 losses of the motion and of its differences from frame to frame, and the commitment.

    Args:
      target_btc, reconstruction_btc: the true and the reconstructed motion, standardised, of at least two frames.
      commitment: the scalar `quantizer.Coded.commitment`.
      velocity_weight, commitment_weight: the weights of the second and third term; not in X-NeMo but in T2M-GPT.

    Returns:
      The loss, scalar float32, and a dictionary of the terms before weighting.
    """
    terms = {
        "reconstruction": smooth_l1(target_btc, reconstruction_btc),
        "velocity": smooth_l1(jnp.diff(target_btc, axis=1), jnp.diff(reconstruction_btc, axis=1)),
        "commitment": commitment,
    }
    scales = {"reconstruction": 1.0, "velocity": velocity_weight, "commitment": commitment_weight}
    return sum(scales[name] * term for name, term in terms.items()), terms
