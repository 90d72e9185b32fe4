"""X-NeMo's start of sampling, which is a blurred and noised reference latent instead of pure noise.

With a schedule that ends at beta = 0.02, the noisy array at the first sampling time still holds 2% of the clean array.
The released sampler fills that share with the best guess that it has: the blurred reference.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vidmotion.diffusion.process import DDPM


def gaussian_blur(x: jax.Array, size: int = 9, sigma: float = 18.0) -> jax.Array:
    """Blurs x (..., h, w, C) along h and w; the border is mirrored without repeating the edge.

    The defaults are those of the release, with which the kernel is nearly a box. `size` must be odd, and h and w must
    exceed size // 2.
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
    """Blurs the reference's latent, repeats it for every frame, and adds the noise of the first sampling time.

    Args:
      key: the random key of the noise, which differs between frames.
      reference: the latent of the reference (B, h, w, C), scaled as the network sees latents.
      frames: F, the number of frames of the video.
      process: the schedule.
      time: the first discrete time.

    Returns:
      (B, F, h, w, C) float32.
    """
    still = gaussian_blur(reference.astype(jnp.float32))
    batch, *shape = reference.shape
    noise = jax.random.normal(key, (batch, frames, *shape))
    return process.noised(jnp.broadcast_to(still[:, None], noise.shape), noise, time)
