"""The autoencoder of Stable Video Diffusion: the image encoder, and a decoder that sees several frames at once.

Blattmann et al. 2023, arXiv:2311.15127, appendix D ("temporal decoder"); spec xnemo.md, section 1.8.
Pixels are RGB in [-1, 1], latents are unscaled, both channels last.

    mean, logvar = net.apply(variables, x, method="encode")            # as `models.vae`
    video = decode_in_chunks(net, variables, z)                        # (b, f, h, w, 4)

Shape suffixes: b batch, f frames, h height, w width, c channels.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidmotion import chunked_map
from vidmotion.models.blocks import SAME, Attention2D, Dtype, ResBlock, Upsample, group_norm
from vidmotion.models.vae import EPSILON, AutoencoderKL, Encoder

TEMPORAL_EPSILON = 1e-5  # for the norms over frames
CHUNK = 25  # the number of frames that X-NeMo decodes together

# `TemporalAutoencoder(**SIZES[name])`; parameters: svd 97,742,847, tiny 414,895.
SIZES = {
    "svd": {"channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_groups": 32},
    "tiny": {"channels": (16, 16, 32, 32), "layers_per_block": 2, "norm_groups": 8},
}


def per_frame(function: Callable[[jax.Array], jax.Array], x_bfhwc: jax.Array) -> jax.Array:
    """Applies a function of images (n, h, w, c) to each frame by itself."""
    b, f = x_bfhwc.shape[:2]
    y = function(x_bfhwc.reshape(b * f, *x_bfhwc.shape[2:]))
    return y.reshape(b, f, *y.shape[1:])


class FrameConv(nn.Module):
    """A convolution over three frames at each place, with zeros before the first frame and after the last.

    Attributes:
      channels: the output channels.
      dtype: the dtype of the computation.
    """

    channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bfhwc: jax.Array) -> jax.Array:
        """(b, f, h, w, c) -> (b, f, h, w, channels)."""
        b, f, h, w, c = x_bfhwc.shape
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (3, 1, 1, c, self.channels)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,)).astype(self.dtype)
        # A 2D convolution over frames and places: XLA takes 2.7 times as long for the 3D one on a CPU.
        y = jax.lax.conv_general_dilated(
            x_bfhwc.astype(self.dtype).reshape(b, f, h * w, c),
            kernel[:, :, 0],
            window_strides=(1, 1),
            padding=((1, 1), (0, 0)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y.reshape(b, f, h, w, -1) + bias[None, None, None, None]


class TemporalResBlock(nn.Module):
    """A residual block for each frame, another over the frames of its output, and a learned mixture of both outputs.

    Attributes:
      channels: the output channels.
      groups: the number of groups of the norms.
      dtype: the dtype of the computation.
    """

    channels: int
    groups: int = 32
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bfhwc: jax.Array) -> jax.Array:
        """(b, f, h, w, c) -> (b, f, h, w, channels); the norms over frames normalise all frames together."""
        block = ResBlock(self.channels, self.groups, EPSILON, self.dtype, name="spatial")
        x = per_frame(block, x_bfhwc)
        y = x
        for i in (1, 2):
            y = group_norm(self.groups, TEMPORAL_EPSILON, self.dtype, f"norm{i}")(y)
            y = FrameConv(self.channels, self.dtype, name=f"frames{i}")(nn.silu(y))
        # At the start, half of each, as published.
        mix = self.param("mix", nn.initializers.zeros, (1,))
        share = jax.nn.sigmoid(mix[0]).astype(x.dtype)
        return (1 - share) * x + share * (x + y)


class Middle(nn.Module):
    """The middle of the decoder: residual blocks at the lowest resolution, with an attention per frame among them.

    Attributes:
      layers: the number of residual blocks; the attention follows the first.
      norm_groups: the number of groups of the norms.
      dtype: the dtype of the computation.
    """

    layers: int
    norm_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bfhwc: jax.Array) -> jax.Array:
        """(b, f, h, w, c) -> (b, f, h, w, c)."""
        for i in range(self.layers):
            if i == 1:
                attention = Attention2D(self.norm_groups, EPSILON, self.dtype, name="attn")
                x_bfhwc = per_frame(attention, x_bfhwc)
            block = TemporalResBlock(
                x_bfhwc.shape[-1], self.norm_groups, self.dtype, name=f"res_{i}"
            )
            x_bfhwc = block(x_bfhwc)
        return x_bfhwc


class Level(nn.Module):
    """Residual blocks at one resolution, then a change to the next higher one.

    Attributes:
      channels: the output channels.
      layers: the number of residual blocks.
      norm_groups: the number of groups of the norms.
      upsample: whether to change to the higher resolution; False at the last level.
      dtype: the dtype of the computation.
    """

    channels: int
    layers: int
    norm_groups: int
    upsample: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bfhwc: jax.Array) -> jax.Array:
        """(b, f, h, w, c) -> (b, f, h', w', channels)."""
        for j in range(self.layers):
            block = TemporalResBlock(self.channels, self.norm_groups, self.dtype, name=f"res_{j}")
            x_bfhwc = block(x_bfhwc)
        if self.upsample:
            x_bfhwc = per_frame(Upsample(self.dtype, name="upsample"), x_bfhwc)
        return x_bfhwc


class TemporalDecoder(nn.Module):
    """Turns latent frames into pixels; the attributes are `TemporalAutoencoder`'s."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, z_bfhwc: jax.Array) -> jax.Array:
        """(b, f, h, w, latent_channels) -> (b, f, 8h, 8w, 3)."""
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), padding=SAME, dtype=self.dtype)
        x = per_frame(conv(self.channels[-1], name="conv_in"), z_bfhwc)
        x = Middle(self.layers_per_block, self.norm_groups, self.dtype, name="mid")(x)
        last = len(self.channels) - 1
        for i, c in enumerate(reversed(self.channels)):
            size = c, self.layers_per_block + 1, self.norm_groups, i < last, self.dtype
            x = Level(*size, name=f"up_{i}")(x)
        norm = group_norm(self.norm_groups, EPSILON, self.dtype, "norm_out")
        out = conv(3, name="conv_out")
        x = per_frame(lambda y: out(nn.silu(norm(y))), x)
        return FrameConv(3, self.dtype, name="frames_out")(x)


class TemporalAutoencoder(AutoencoderKL):
    """An `AutoencoderKL` whose decoder takes a run of frames; attributes and `encode` are the same."""

    def setup(self):
        size = dict(
            channels=self.channels,
            layers_per_block=self.layers_per_block,
            norm_groups=self.norm_groups,
            dtype=self.dtype,
        )
        self.encoder = Encoder(**size, latent_channels=self.latent_channels)
        self.quant = nn.Conv(2 * self.latent_channels, (1, 1), dtype=self.dtype)
        self.decoder = TemporalDecoder(**size)

    def decode(self, z_bfhwc: jax.Array) -> jax.Array:
        """Decodes all frames together: unscaled latents (b, f, h, w, latent_channels) -> RGB (b, f, 8h, 8w, 3), not
        clipped."""
        return self.decoder(z_bfhwc)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """Reconstructs single images through the mean; uses every parameter."""
        return self.decode(self.encode(x_bhwc)[0][:, None])[:, 0]


def decode_in_chunks(
    net: TemporalAutoencoder, variables: Mapping[str, Any], z_bfhwc: jax.Array, frames: int = CHUNK
) -> jax.Array:
    """Decodes a video run by run, so that it takes only the memory of one run.

    Args:
      net: the autoencoder.
      variables: the variables of the autoencoder.
      z_bfhwc: (b, f, h, w, latent_channels) unscaled latents.
      frames: the number of frames of a run; the last run may be shorter.

    Returns:
      RGB (b, f, 8h, 8w, 3), not clipped.
    """
    decode = functools.partial(net.apply, variables, method="decode")
    whole = z_bfhwc.shape[1] // frames
    parts = []
    if whole:
        chunks = jnp.split(z_bfhwc[:, : whole * frames], whole, axis=1)
        video = chunked_map.each(decode, jnp.stack(chunks))
        parts += list(video)
    if z_bfhwc.shape[1] % frames:
        parts.append(decode(z_bfhwc[:, whole * frames :]))
    return jnp.concatenate(parts, axis=1)
