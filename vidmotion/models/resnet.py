"""ResNet with bottlenecks, and X-NeMo's appearance encoder, which uses it (spec xnemo.md, 1.10).

He et al. (arXiv:1512.03385, table 1); the stride is in the 3x3 convolution, as in torchvision's weights.
Shape suffixes: n images, h height, w width, c channels.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vidmotion.models.patchgan import BatchNorm

# ImageNet's mean and deviation of each colour, for colours in [0, 1].
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
SIZES = {"resnet50": dict(depths=(3, 4, 6, 3), width=64)}

_conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _norm(name: str) -> BatchNorm:
    return BatchNorm(scale_init=nn.initializers.ones, name=name)


class Bottleneck(nn.Module):
    """A bottleneck block: 1x1, 3x3 and 1x1 convolutions with batch norm, plus the input.

    Attributes:
      channels: the channels of the first two convolutions; the output has four times as many.
      stride: the stride of the 3x3 convolution.
      dtype: the dtype of the convolutions.
    """

    channels: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array, train: bool) -> jax.Array:
        """(n, h, w, c) -> (n, h / stride, w / stride, 4 * channels)."""
        conv = functools.partial(nn.Conv, use_bias=False, kernel_init=_conv_init, dtype=self.dtype)
        wide = 4 * self.channels
        y = nn.relu(_norm("norm1")(conv(self.channels, (1, 1), name="conv1")(x_nhwc), train))
        y = conv(self.channels, (3, 3), strides=self.stride, padding=1, name="conv2")(y)
        y = nn.relu(_norm("norm2")(y, train))
        y = _norm("norm3")(conv(wide, (1, 1), name="conv3")(y), train)
        if x_nhwc.shape[-1] != wide or self.stride != 1:
            x_nhwc = conv(wide, (1, 1), strides=self.stride, name="shortcut")(x_nhwc)
            x_nhwc = _norm("shortcut_norm")(x_nhwc, train)
        return nn.relu(x_nhwc + y)


class ResNet(nn.Module):
    """Turns images into the last feature map, before pooling; ResNet-50 at the defaults.

    With `train`, batch norm normalises by this batch and updates the collection ``batch_stats``, which
    must then be mutable.

    Attributes:
      depths: the number of blocks of each stage.
      width: the channels of the first convolution; the last map has 4 * width * 2^(stages - 1).
      dtype: the dtype of the convolutions; parameters and norms are float32.
    """

    depths: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array, train: bool = False) -> jax.Array:
        """RGB in [-1, 1], (n, h, w, 3) -> (n, h/32, w/32, 2048), rounded up, of `dtype`."""
        mean, deviation = (np.asarray(v, np.float32)[None, None, None] for v in (MEAN, DEVIATION))
        x = ((0.5 * x_nhwc.astype(jnp.float32) + 0.5 - mean) / deviation).astype(self.dtype)
        x = nn.Conv(
            self.width,
            (7, 7),
            strides=2,
            padding=3,
            use_bias=False,
            kernel_init=_conv_init,
            dtype=self.dtype,
            name="stem",
        )(x)
        x = nn.relu(_norm("stem_norm")(x, train))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                stride = 2 if stage and not i else 1
                channels = self.width * 2**stage
                name = f"stage{stage + 1}_{i}"
                x = Bottleneck(channels, stride, self.dtype, name=name)(x, train)
        return x


class AppearanceEncoder(nn.Module):
    """X-NeMo's appearance encoder E_app: turns the reference's crop into f_app (X-NeMo, section 3.3 and appendix A).

    The paper only says ResNet-50. Averaging and projecting its maps is not in the paper, nor is starting from
    ImageNet's weights (spec 1.10).

    Attributes:
      features: the length of f_app.
      depths, width, dtype: see `ResNet`.
    """

    features: int = 512
    depths: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array, train: bool = False) -> jax.Array:
        """RGB in [-1, 1], (n, h, w, 3) -> (n, features) float32; `train` as in `ResNet`."""
        x = ResNet(self.depths, self.width, self.dtype, name="trunk")(x_nhwc, train)
        pooled_nc = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return nn.Dense(self.features, name="out")(pooled_nc)
