"""Where sampling starts when it is not pure noise: X-NeMo's blurred reference latent.

A schedule that ends at beta = 0.02 still holds 2% of the clean array at its first sampling time. The
released sampler fills that share with what is known of the answer: the reference, blurred.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vidmotion.diffusion.process import DDPM


def gaussian_blur(x: jax.Array, size: int = 9, sigma: float = 18.0) -> jax.Array:
    """Blurs the two axes before the last of x (..., h, w, C); the border is mirrored without its edge.

    With the defaults, those of the release, the kernel is nearly a box. `size` is odd; h and w exceed
    size // 2.
    """
    reach = size // 2
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (x.ndim - 3, x.ndim - 2):
        length = x.shape[axis]
        width = [(reach, reach) if k == axis else (0, 0) for k in range(x.ndim)]
        padded = jnp.pad(x, width, mode="reflect")
        taps = (jax.lax.slice_in_dim(padded, k, k + length, axis=axis) for k in range(size))
        x = sum(weight * tap for weight, tap in zip(kernel, taps))
    return x


def start_from_reference(
    key: jax.Array, reference: jax.Array, frames: int, process: DDPM, time: int
) -> jax.Array:
    """The reference's latent blurred, repeated and noised to the first time of sampling.

    Args:
      key: the random key of the noise, which is each frame's own.
      reference: (B, h, w, C), scaled as the network sees latents.
      frames: F of the video.
      process: the schedule.
      time: the first discrete time.

    Returns:
      (B, F, h, w, C) float32.
    """
    still = gaussian_blur(reference.astype(jnp.float32))
    batch, *shape = reference.shape
    noise = jax.random.normal(key, (batch, frames, *shape))
    return process.noised(jnp.broadcast_to(still[:, None], noise.shape), noise, time)
