"""LPIPS, the learned perceptual distance of two images (Zhang et al., arXiv:1801.03924), version 0.1.

    net = LPIPS(trunk="vgg")
    distance_n = net.apply(variables, x_nhwc, y_nhwc)
    maps = net.apply(variables, x_nhwc, method="features")  # for other losses on the same features

Section numbers refer to the spec metrics.md. `python -m vidmotion.convert lpips_vgg` or `lpips_alex`
converts weights from public files; they are never trained further. Shape suffixes: n images, h height,
w width, c channels, l the five layers.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

# ImageNet's mean and deviation of each colour, for colours in [-1, 1] (section 3, 2).
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10  # added to the length of a pixel's feature, outside the root (section 3, 4)

VGG16_STAGES = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
# (channels, kernel, stride, padding, whether max pooling comes before it) for each convolution of AlexNet.
ALEX_LAYERS = (
    (64, 11, 4, 2, False),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, True),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, False),
)


def _entered(x_nhwc: jax.Array, least: int, name: str, dtype: DTypeLike) -> jax.Array:
    """Checks images in [-1, 1] and normalises them as in the training of the trunks."""
    if x_nhwc.ndim != 4 or x_nhwc.shape[-1] != 3 or min(x_nhwc.shape[1:3]) < least:
        raise ValueError(
            f"{name}: images must be (n, h, w, 3) of at least {least}x{least}, got {x_nhwc.shape}"
        )
    shift, scale = (np.asarray(v, np.float32)[None, None, None] for v in (SHIFT, SCALE))
    return ((x_nhwc.astype(jnp.float32) - shift) / scale).astype(dtype)


def _conv(features: int, size: int, stride: int, padding: int, dtype: DTypeLike, name: str):
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=padding,
        kernel_init=nn.initializers.he_normal(),
        dtype=dtype,
        # By default accelerators round float32 products to 10 bits or fewer (section 15, 1).
        precision="highest" if jnp.dtype(dtype) == jnp.float32 else None,
        name=name,
    )


class VGG16Features(nn.Module):
    """The convolutions of VGG-16 (Simonyan and Zisserman, arXiv:1409.1556, table 1, D).

    Attributes:
      dtype: the dtype of the convolutions; parameters stay float32.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array) -> list[jax.Array]:
        """Returns the output of the last ReLU of each stage: relu1_2, 2_2, 3_3, 4_3, 5_3.

        Args:
          x_nhwc: RGB in [-1, 1], at least 16x16.

        Returns:
          Five maps in `dtype`, of 64, 128, 256, 512 and 512 channels; the first has the size of
          the image, each of the others half the size of the one before, rounded down.

        Raises:
          ValueError: if rank or number of colours is wrong, or the images are too small.
        """
        x = _entered(x_nhwc, 16, "VGG16Features", self.dtype)
        maps = []
        for stage, widths in enumerate(VGG16_STAGES, 1):
            if stage > 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for i, width in enumerate(widths, 1):
                x = nn.relu(_conv(width, 3, 1, 1, self.dtype, f"conv{stage}_{i}")(x))
            maps.append(x)
        return maps


class AlexFeatures(nn.Module):
    """The convolutions of AlexNet as torchvision has them (Krizhevsky, arXiv:1404.5997).

    Attributes:
      dtype: the dtype of the convolutions; parameters stay float32.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array) -> list[jax.Array]:
        """Returns the outputs of the five ReLUs.

        Args:
          x_nhwc: RGB in [-1, 1], at least 31x31.

        Returns:
          Five maps in `dtype`, of 64, 192, 384, 256 and 256 channels.

        Raises:
          ValueError: if rank or number of colours is wrong, or the images are too small.
        """
        x = _entered(x_nhwc, 31, "AlexFeatures", self.dtype)
        maps = []
        for i, (width, size, stride, padding, pooled) in enumerate(ALEX_LAYERS, 1):
            if pooled:
                x = nn.max_pool(x, (3, 3), (2, 2))
            x = nn.relu(_conv(width, size, stride, padding, self.dtype, f"conv{i}")(x))
            maps.append(x)
        return maps


TRUNKS = {"vgg": VGG16Features, "alex": AlexFeatures}


class LPIPS(nn.Module):
    """Measures the distance of two images in the features of a trunk (section 3; vidtwin.md, section 7).

    Its parameters: ``net`` is the trunk; ``head_{l}/kernel`` (c, 1) has the weights of layer l's channels,
    which are not negative in the released files. The dropout in front of the released heads is always off.

    Attributes:
      trunk: ``vgg`` (VidTwin's loss and tables) or ``alex`` (the usual choice in evaluation).
      dtype: the dtype of the convolutions; distances are float32.

    Raises:
      ValueError: when it is bound, if there is no such trunk.
    """

    trunk: str = "vgg"
    dtype: DTypeLike = jnp.float32

    def setup(self):
        if self.trunk not in TRUNKS:
            raise ValueError(f"LPIPS: trunk={self.trunk!r}: choose one of {', '.join(TRUNKS)}")
        self.net = TRUNKS[self.trunk](self.dtype)
        # These initial weights serve where none are given: they are not negative either, and have mean 1 / c.
        self.head = [
            nn.Dense(
                1,
                use_bias=False,
                kernel_init=lambda key, shape, dtype: jax.random.uniform(
                    key, shape, dtype, maxval=2.0 / shape[0]
                ),
                precision="highest",
            )
            for _ in range(5)
        ]

    def features(self, x_nhwc: jax.Array) -> list[jax.Array]:
        """Returns the trunk's five maps for images (n, h, w, 3) in [-1, 1]; see `VGG16Features`."""
        return self.net(x_nhwc)

    def distances(self, x_maps: Sequence[jax.Array], y_maps: Sequence[jax.Array]) -> jax.Array:
        """Computes the distance in each layer; LPIPS is the sum of these.

        Args:
          x_maps, y_maps: five maps each, as `features` returns.

        Returns:
          (n, 5) float32: the mean over pixels of sum_c w_c (f_c - g_c)^2, with f and g scaled to unit length.
        """
        layers = []
        for head, x_nhwc, y_nhwc in zip(self.head, x_maps, y_maps):
            gap_nc = jnp.mean(jnp.square(_unit(x_nhwc) - _unit(y_nhwc)), axis=(1, 2))
            layers.append(head(gap_nc))
        return jnp.concatenate(layers, axis=-1)

    def __call__(self, x_nhwc: jax.Array, y_nhwc: jax.Array) -> jax.Array:
        """Computes the LPIPS of each pair; both images pass the trunk in one batch.

        Args:
          x_nhwc, y_nhwc: RGB in [-1, 1] (not [0, 1], which makes the distance too small), equal
            shapes, at least 16x16 for ``vgg`` and 31x31 for ``alex``.

        Returns:
          (n,) float32, zero for equal images. The gradient is finite everywhere.

        Raises:
          ValueError: if the shapes differ, or do not suit the trunk.
        """
        if x_nhwc.shape != y_nhwc.shape:
            raise ValueError(f"LPIPS: shapes {x_nhwc.shape} and {y_nhwc.shape} differ")
        n = len(x_nhwc)
        # The images of a pair are neighbours, so that both are on the same device if the batch is split over devices.
        maps = self.features(jnp.stack([x_nhwc, y_nhwc], axis=1).reshape(2 * n, *x_nhwc.shape[1:]))
        pairs = [m.reshape(n, 2, *m.shape[1:]) for m in maps]
        layers_nl = self.distances([m[:, 0] for m in pairs], [m[:, 1] for m in pairs])
        return jnp.sum(layers_nl, axis=-1)


def _unit(f_nhwc: jax.Array) -> jax.Array:
    """Scales every pixel's feature to unit length; float32."""
    f_nhwc = f_nhwc.astype(jnp.float32)
    square = jnp.sum(jnp.square(f_nhwc), axis=-1, keepdims=True)
    # Where no channel is active, the infinite slope of the root would make the gradient NaN.
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return f_nhwc / (length + EPSILON)
