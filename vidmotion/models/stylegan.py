"""StyleGAN2's synthesis network, controlled by one vector.

It is the decoder of X-NeMo's GAN head and, without colours, of X-NeMo's ControlNet (`motion_control`).

Karras et al. (arXiv:1912.04958, section 2.2 and figure 7, skip generator); X-NeMo, section 3.3 (spec
xnemo.md, 1.10). There is no mapping network and no noise: image = G(style).

Shape suffixes: n images, h height, w width, c channels in, o channels out, s style.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vidmotion import chunked_map

EPSILON = 1e-8
GAIN = 2.0**0.5  # after leaky ReLU, so that activations keep their variance

_normal = nn.initializers.normal(1.0)
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _shifted(x_nhwc: jax.Array, axis: int, count: int) -> list[jax.Array]:
    """Pads an axis with a zero at both ends and returns `count` slices of it, each one step further along."""
    padding = [(0, 0)] * x_nhwc.ndim
    padding[axis] = (1, 1)
    padded = jnp.pad(x_nhwc, padding)
    size = padded.shape[axis] - count + 1
    return [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(count)]


# Both filters are written as sums: on CPUs, these are twenty times as fast as convolutions of each
# channel by itself.


def _low_pass(x_nhwc: jax.Array) -> jax.Array:
    """Filters by (1, 3, 3, 1) / 4 in both directions: (n, 2h + 1, 2w + 1, c) -> (n, 2h, 2w, c).

    The filter sums to 2 in each direction, since three of four pixels of the zero-stuffed map are zeros.
    """
    for axis in (1, 2):
        far, near, near2, far2 = _shifted(x_nhwc, axis, 4)
        x_nhwc = 0.25 * (far + far2) + 0.75 * (near + near2)
    return x_nhwc


def upsample(x_nhwc: jax.Array) -> jax.Array:
    """Doubles the size bilinearly, as if the image were surrounded by zeros: (n, h, w, c) -> (n, 2h, 2w, c).

    This is the filter of `_low_pass`, applied to the image with zeros between its pixels.
    """
    for axis in (1, 2):
        before, here, after = _shifted(x_nhwc, axis, 3)
        pair = [0.75 * here + 0.25 * before, 0.75 * here + 0.25 * after]
        shape = list(here.shape)
        shape[axis] *= 2
        x_nhwc = jnp.stack(pair, axis=axis + 1).reshape(shape)
    return x_nhwc


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by the style, and whose weights are then normalised to unit length.

    Equations 1 and 3: w' = s_c w, w'' = w' / sqrt(sum w'^2 + 1e-8), where the sum is over input channels and
    the kernel's taps. It is computed by scaling input and output instead, which gives the same. Weights are
    standard normal, scaled by 1 / sqrt(fan in) when used (equalised learning rate).

    Attributes:
      features: the output channels.
      kernel_size: the side of the kernel, odd.
      up: whether to double the resolution, by a transposed convolution of stride 2 and then the low-pass filter; only
        for kernels of side 3.
      demodulate: whether to normalise the weights (equation 3); off for colours.
      dtype: the dtype of the convolution; style and lengths are float32.
    """

    features: int
    kernel_size: int = 3
    up: bool = False
    demodulate: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array, style_ns: jax.Array) -> jax.Array:
        """Map (n, h, w, c) and style (n, s) -> (n, h, w, features), or twice as high and wide if `up`."""
        channels, size = x_nhwc.shape[-1], self.kernel_size
        affine = self.param("style_kernel", _normal, (style_ns.shape[-1], channels))
        shift = self.param("style_bias", nn.initializers.ones, (channels,))
        scale_nc = style_ns.astype(jnp.float32) @ (affine * affine.shape[0] ** -0.5) + shift[None]
        kernel = self.param("kernel", _normal, (size, size, channels, self.features))
        kernel = kernel * (size**2 * channels) ** -0.5

        x = jax.lax.conv_general_dilated(
            x_nhwc.astype(self.dtype) * scale_nc[:, None, None].astype(self.dtype),
            kernel.astype(self.dtype),
            (1, 1),
            [(size - 1, size - 1) if self.up else (size // 2, size // 2)] * 2,
            lhs_dilation=(2, 2) if self.up else (1, 1),
            dimension_numbers=_DIMENSIONS,
        )
        x = chunked_map.on_own_rows(x)
        if self.up:
            x = _low_pass(x)  # 2h + 1 rows become 2h
        if self.demodulate:
            square_co = jnp.sum(jnp.square(kernel), axis=(0, 1))
            length_no = jnp.square(scale_nc) @ square_co
            x = x * jax.lax.rsqrt(length_no + EPSILON)[:, None, None].astype(self.dtype)
        return x


class StyledConv(nn.Module):
    """A modulated convolution, followed by a bias and leaky ReLU 0.2.

    Attributes:
      features, up, dtype: see `ModulatedConv`.
    """

    features: int
    up: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array, style_ns: jax.Array) -> jax.Array:
        """Map (n, h, w, c) and style (n, s) -> (n, h, w, features), or twice as high and wide if `up`."""
        conv = ModulatedConv(self.features, up=self.up, dtype=self.dtype, name="conv")
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return GAIN * nn.leaky_relu(conv(x_nhwc, style_ns) + bias[None, None, None], 0.2)


class Synthesis(nn.Module):
    """The synthesis network: grows a learned constant of 4x4 into an image or a map of features.

    Attributes:
      size: the side of the images, 4 times a power of two.
      channels: the largest number of channels of a map.
      area: a map of side r has min(channels, area / r) channels; at the defaults 512 up to side 64, 256
        at 128 and 128 at 256 (spec 1.10).
      colours: whether to make an image, the sum of the colours read at all resolutions. If not, the last map is the
        result.
      dtype: the dtype of the convolutions; styles, colours and images are float32.

    Raises:
      ValueError: if the size is not 4 times a power of two.
    """

    size: int = 256
    channels: int = 512
    area: int = 32768
    colours: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, style_ns: jax.Array) -> jax.Array:
        """Makes an image from a style.

        Args:
          style_ns: the style; for X-NeMo's GAN head f_app and f_mot, concatenated.

        Returns:
          RGB in [-1, 1], (n, size, size, 3) float32; without colours the last map, (n, size, size, its channels) of
          `dtype`.
        """
        if self.size < 4 or self.size & (self.size - 1):
            raise ValueError(
                f"Synthesis: size must be 4, 8, 16, ... (a power of two), got {self.size}"
            )
        count = len(style_ns)
        constant = self.param("constant", _normal, (4, 4, self._width(4)))
        x = jnp.broadcast_to(constant[None], (count, *constant.shape)).astype(self.dtype)
        x = chunked_map.on_own_rows(x)
        x = StyledConv(self._width(4), dtype=self.dtype, name="conv_4")(x, style_ns)
        rgb = self._colours(x, style_ns, 4) if self.colours else None
        side = 8
        while side <= self.size:
            width = self._width(side)
            x = StyledConv(width, True, self.dtype, name=f"up_{side}")(x, style_ns)
            x = StyledConv(width, dtype=self.dtype, name=f"conv_{side}")(x, style_ns)
            if self.colours:
                rgb = upsample(rgb) + self._colours(x, style_ns, side)
            side *= 2
        return jnp.tanh(rgb) if self.colours else x

    def _width(self, side: int) -> int:
        return max(1, min(self.channels, self.area // side))

    def _colours(self, x_nhwc: jax.Array, style_ns: jax.Array, side: int) -> jax.Array:
        bias = self.param(f"rgb_{side}_bias", nn.initializers.zeros, (3,))
        conv = ModulatedConv(3, 1, demodulate=False, dtype=self.dtype, name=f"rgb_{side}")
        return conv(x_nhwc, style_ns).astype(jnp.float32) + bias[None, None, None]
