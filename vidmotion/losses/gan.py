"""Adversarial terms: hinge losses, and their weight relative to a reconstruction loss (vidtwin.md, 7).

Logits may have any shape and dtype; sums are float32.
"""

import jax
import jax.numpy as jnp


def hinge_discriminator(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
    """Computes the discriminator's hinge loss 0.5 * (mean relu(1 - real) + mean relu(1 + fake)), scalar float32.

    Args:
      real_logits, fake_logits: the discriminator's outputs, each of any shape.
    """
    real = jnp.mean(jax.nn.relu(1.0 - real_logits.astype(jnp.float32)))
    fake = jnp.mean(jax.nn.relu(1.0 + fake_logits.astype(jnp.float32)))
    return 0.5 * (real + fake)


def hinge_generator(fake_logits: jax.Array) -> jax.Array:
    """Computes the generator's hinge loss -mean(fake), scalar float32; `fake_logits` may have any shape."""
    return -jnp.mean(fake_logits.astype(jnp.float32))


def adaptive_weight(
    grad_nll: jax.Array, grad_gan: jax.Array, weight: float, max: float = 1e4, eps: float = 1e-4
) -> jax.Array:
    """Computes the weight that makes the adversarial gradient `weight` times as long as the reconstruction's.

    It is weight * clip(|grad_nll| / (|grad_gan| + eps), 0, max) (VQGAN, arXiv:2012.09841, equation 7; spec
    section 7), with Euclidean norms over all entries. No gradient passes through it.

    Args:
      grad_nll, grad_gan: the gradients of both losses with respect to the generator's last kernel, in
        any shape and dtype, the same for both.
      weight: the paper's weight of the adversarial term.
      max: the upper limit of the ratio.
      eps: the number that is added to the adversarial norm.

    Returns:
      Scalar float32, finite for all finite gradients, even if float32 cannot hold their squares.
    """
    nll_peak, nll_scaled = _norm(grad_nll)
    gan_peak, gan_scaled = _norm(grad_gan)
    # Both norms are divided by the largest entry of all, so that neither product can overflow.
    unit = jnp.maximum(jnp.maximum(nll_peak, gan_peak), 1.0)
    ratio = (nll_peak / unit * nll_scaled) / (gan_peak / unit * gan_scaled + eps / 8 / unit)
    return weight * jnp.clip(ratio, 0.0, max)


def _norm(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the Euclidean norm of x / 8 as two factors: its largest absolute value, and the norm divided by that.

    x is divided by 8 because the reciprocals of the largest float32 numbers are too small for float32.
    """
    x = jax.lax.stop_gradient(x).astype(jnp.float32) / 8
    peak = jnp.max(jnp.abs(x))
    return peak, jnp.sqrt(jnp.sum(jnp.square(x / jnp.where(peak > 0, peak, 1.0))))
