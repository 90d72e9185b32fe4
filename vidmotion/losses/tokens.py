"""What X-NeMo's motion tokenizer minimises (T2M-GPT's objective; spec xnemo.md, 4.2)."""

import jax
import jax.numpy as jnp


def smooth_l1(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean over all entries of d^2 / 2 where |d| < 1 and |d| - 1/2 elsewhere; scalar float32."""
    gap = jnp.abs(x.astype(jnp.float32) - y.astype(jnp.float32))
    return jnp.mean(jnp.where(gap < 1.0, 0.5 * jnp.square(gap), gap - 0.5))


def tokenizer_loss(
    target_btc: jax.Array,
    reconstruction_btc: jax.Array,
    commitment: jax.Array,
    velocity_weight: float = 0.5,
    commitment_weight: float = 0.02,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Smooth L1 of the motion and of its differences from frame to frame, and the commitment.

    Args:
      target_btc, reconstruction_btc: standardised motion, at least two frames.
      commitment: scalar, of `quantizer.Coded`.
      velocity_weight, commitment_weight: not in X-NeMo; T2M-GPT's.

    Returns:
      Scalar float32, and the terms before weighting by name.
    """
    terms = {
        "reconstruction": smooth_l1(target_btc, reconstruction_btc),
        "velocity": smooth_l1(jnp.diff(target_btc, axis=1), jnp.diff(reconstruction_btc, axis=1)),
        "commitment": commitment,
    }
    scales = {"reconstruction": 1.0, "velocity": velocity_weight, "commitment": commitment_weight}
    return sum(scales[name] * term for name, term in terms.items()), terms
