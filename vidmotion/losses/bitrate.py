"""Bits spent by a grouped code, and the loss that keeps them near a target (BCD main text; spec 4.3-4.4)."""

import jax
import jax.numpy as jnp

# The frame rate for all conversions between bits/frame and bits/s, whatever rate clips are decimated to.
NOMINAL_FPS = 25.0
MODES = ("per_codebook_mean", "per_codebook_sum", "total_normalised", "l1")


def entropy_bits(usage_nj: jax.Array) -> jax.Array:
    """Computes entropies: (N, J) probabilities -> (N,) bits, -sum_j a_j log2(a_j + 1e-10)."""
    return -jnp.sum(usage_nj * jnp.log2(usage_nj + 1e-10), axis=-1)


def bits_per_frame(bits_per_second: float) -> float:
    """Converts bits/s to bits/frame at the nominal 25 frames/s, for example 4000 to 160."""
    return bits_per_second / NOMINAL_FPS


def kbps(bits: jax.Array) -> jax.Array:
    """Converts bits per frame to kilobits per second at the nominal 25 frames/s."""
    return bits * (NOMINAL_FPS / 1000.0)


def rate_loss(entropy_n: jax.Array, target_bits: float, mode: str) -> jax.Array:
    """Penalises spending more or fewer bits than the target.

    Args:
      entropy_n: (N,) bits per frame of each codebook.
      target_bits: the bits per frame wanted from all codebooks together.
      mode: the form of the penalty, since the paper leaves the unit of its MSE open (spec 4.4):
        ``per_codebook_mean``: mean_i (H_i - H*/N)^2;
        ``per_codebook_sum``: sum_i (H_i - H*/N)^2;
        ``total_normalised``: ((sum_i H_i - H*) / N)^2, codebooks may trade bits;
        ``l1``: 0.01 * sum_i |H_i - H*/N|, as released for BCD's predecessor TF-Codec.

    Returns:
      The penalty, a scalar.

    Raises:
      ValueError: if the mode is unknown.
    """
    books = entropy_n.shape[0]
    gap = entropy_n - target_bits / books
    if mode == "per_codebook_mean":
        return jnp.mean(gap**2)
    if mode == "per_codebook_sum":
        return jnp.sum(gap**2)
    if mode == "total_normalised":
        return jnp.mean(gap) ** 2
    if mode == "l1":
        return 0.01 * jnp.sum(jnp.abs(gap))
    raise ValueError(f"rate mode {mode!r}: choose one of {', '.join(MODES)}")
