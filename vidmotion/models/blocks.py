"""Convolutional building blocks of the Stable Diffusion networks, NHWC.

Latent diffusion (Rombach et al. 2022, arXiv:2112.10752), appendix E; numerics as in its released
weights. Shape suffixes: b batch, h height, w width, l = h w, n heads, d head width, c channels.
Fold time into b.
"""

import functools

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from vidmotion.models import forms
from vidmotion.models.layers import SHORT, attention

Dtype = jnp.dtype | type
Padding = tuple[tuple[int, int], tuple[int, int]]

SAME: Padding = ((1, 1), (1, 1))


def one_pass(dtype: Dtype) -> bool:
    """Returns whether norms of activations of `dtype` take both moments in one pass, as E[x^2] - E[x]^2.

    In wide layers, and with the epsilons of Stable Diffusion, its error is visible in float32. Narrower activations
    hide it, and then an accelerator sums both moments while it writes the layer before.
    """
    return jnp.dtype(dtype).itemsize < 4


def group_norm(groups: int, epsilon: float, dtype: Dtype, name: str) -> nn.GroupNorm:
    """Makes a group norm over (b, h, w, c), each example by itself, with statistics in float32."""
    fast = one_pass(dtype)
    return nn.GroupNorm(groups, epsilon=epsilon, dtype=dtype, use_fast_variance=fast, name=name)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with group norm and SiLU, plus the input.

    Attributes:
      channels: the output channels; a 1x1 `shortcut` is made if the input has another number of channels.
      groups: the number of groups of the norms.
      epsilon: the epsilon of the norms; 1e-6 in the autoencoder, 1e-5 in the UNet.
      dtype: the dtype of the computation; parameters stay float32.
    """

    channels: int
    groups: int = 32
    epsilon: float = 1e-6
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array, time_bc: jax.Array | None = None) -> jax.Array:
        """(b, h, w, c) -> (b, h, w, channels); `time_bc` embeds the noise level, if given."""
        y = group_norm(self.groups, self.epsilon, self.dtype, "norm1")(x_bhwc)
        y = forms.Conv(self.channels, (3, 3), padding=SAME, dtype=self.dtype, name="conv1")(
            nn.silu(y)
        )
        if time_bc is not None:
            shift_bc = forms.Dense(self.channels, dtype=self.dtype, name="time")(nn.silu(time_bc))
            y = y + shift_bc[:, None, None]
        y = group_norm(self.groups, self.epsilon, self.dtype, "norm2")(y)
        y = forms.Conv(self.channels, (3, 3), padding=SAME, dtype=self.dtype, name="conv2")(
            nn.silu(y)
        )
        if x_bhwc.shape[-1] != self.channels:
            x_bhwc = forms.Conv(self.channels, (1, 1), dtype=self.dtype, name="shortcut")(x_bhwc)
        return x_bhwc + y


class Attention2D(nn.Module):
    """Single-head self-attention over all positions of an image, plus the input.

    Attributes:
      groups: the number of groups of the norm.
      epsilon: the epsilon of the norm.
      dtype: the dtype of the computation.
    """

    groups: int = 32
    epsilon: float = 1e-6
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, h, w, c)."""
        y = group_norm(self.groups, self.epsilon, self.dtype, "norm")(x_bhwc)
        y_blc = einops.rearrange(y, "b h w c -> b (h w) c")
        dense = functools.partial(forms.Dense, dtype=self.dtype)
        y_blc = attention(y_blc, heads=1, dense=dense, names=SHORT)
        return x_bhwc + y_blc.reshape(x_bhwc.shape)


class Downsample(nn.Module):
    """Halves height and width by a 3x3 convolution of stride 2.

    Attributes:
      padding: ((top, bottom), (left, right)); symmetric in the UNet, ((0, 1), (0, 1)) in the
        autoencoder.
      dtype: the dtype of the computation.
    """

    padding: Padding = SAME
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, h/2, w/2, c)."""
        c = x_bhwc.shape[-1]
        conv = forms.Conv(c, (3, 3), strides=2, padding=self.padding, dtype=self.dtype, name="conv")
        return conv(x_bhwc)


class Upsample(nn.Module):
    """Doubles height and width: repeats each pixel 2x2 (nearest neighbour), then applies a 3x3 convolution.

    Attributes:
      dtype: the dtype of the computation.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, 2h, 2w, c)."""
        x = einops.repeat(x_bhwc, "b h w c -> b (h i) (w j) c", i=2, j=2)
        return forms.Conv(x.shape[-1], (3, 3), padding=SAME, dtype=self.dtype, name="conv")(x)
