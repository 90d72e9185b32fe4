"""VGG's activations for perceptual losses, with the normalisation of the latent pose descriptors.

X-NeMo's equations 4 and 5 use the loss weights of Burkov et al. (arXiv:2004.12000), which are
meaningful only with that work's networks (spec xnemo.md, 2.1): weights from Caffe, colours
on a scale of 255, average pooling instead of max pooling. LPIPS has another trunk, `features.lpips`.

Shape suffixes: n images, h height, w width, c channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

WIDTHS = (64, 128, 256, 512, 512)
# The number of convolutions of each stage that the loss reads: the first 30 layers of VGG-19, and all
# layers of the face recogniser (Parkhi et al. 2015, a VGG-16). Both have 13 convolutions.
SIZES = {"vgg19": dict(depths=(2, 2, 4, 4, 1)), "vgg_face": dict(depths=(2, 2, 3, 3, 3))}
# Blue, green and red of Caffe's mean colour. The pose descriptors' code subtracts them from red, green
# and blue in this order.
CAFFE_MEAN = (103.939, 116.779, 123.680)


class VGGActivations(nn.Module):
    """Returns the outputs of all ReLUs of a VGG.

    Attributes:
      depths: the number of convolutions of each stage; between stages there is average pooling over 2x2.
      mean: the numbers that are subtracted from red, green and blue on a scale of 255.
      dtype: the dtype of the convolutions; parameters stay float32.
    """

    depths: tuple[int, ...]
    mean: tuple[float, float, float] = CAFFE_MEAN
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array) -> list[jax.Array]:
        """Computes the activations of images.

        Args:
          x_nhwc: RGB in [-1, 1], (n, h, w, 3), at least 2^(stages - 1) pixels high and wide.

        Returns:
          One map per convolution, of `dtype`.

        Raises:
          ValueError: if rank or number of colours is wrong, or the images are too small.
        """
        least = 2 ** (len(self.depths) - 1)
        if x_nhwc.ndim != 4 or x_nhwc.shape[-1] != 3 or min(x_nhwc.shape[1:3]) < least:
            raise ValueError(
                f"VGGActivations: images must be (n, h, w, 3) of at least {least}x{least}, got "
                f"{x_nhwc.shape}"
            )
        mean = np.asarray(self.mean, np.float32)[None, None, None]
        x = (127.5 * (x_nhwc.astype(jnp.float32) + 1.0) - mean).astype(self.dtype)
        maps = []
        for stage, (depth, width) in enumerate(zip(self.depths, WIDTHS), 1):
            if stage > 1:
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for i in range(1, depth + 1):
                conv = nn.Conv(
                    width,
                    (3, 3),
                    padding=1,
                    kernel_init=nn.initializers.he_normal(),
                    dtype=self.dtype,
                    name=f"conv{stage}_{i}",
                )
                x = nn.relu(conv(x))
                maps.append(x)
        return maps
