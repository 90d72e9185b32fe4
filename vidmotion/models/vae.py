"""Image codecs between pixels and a latent of one eighth the height and width.

`AutoencoderKL` is the f=8 autoencoder of Stable Diffusion (Rombach et al. 2022, arXiv:2112.10752,
section 3.1 and appendix G); `PatchCodec` has the same interface and no weights. Pixels are RGB in
[-1, 1], NHWC. Stable Diffusion's factor of 0.18215 on latents is not applied here: each system
chooses how to scale its latents.

    mean, logvar = codec.apply(variables, x, method="encode")
    x = codec.apply(variables, z, method="decode")

Shape suffixes: b batch, h height, w width, c channels. Fold time into b.
"""

import functools
from collections.abc import Callable

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidmotion.models.blocks import (
    SAME,
    Attention2D,
    Downsample,
    Dtype,
    Padding,
    ResBlock,
    Upsample,
    group_norm,
)

EPSILON = 1e-6  # for every norm in the autoencoder; the UNet uses 1e-5
ONE_SIDED: Padding = ((0, 1), (0, 1))  # for the strided convolutions, as in the released encoder
LOGVAR_RANGE = (-30.0, 20.0)
PATCH = 8  # side of `PatchCodec`'s patches, pixels

# `AutoencoderKL(**SIZES[name])`; parameters: sd 83,653,863, tiny 261,079.
SIZES = {
    "sd": {"channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_groups": 32},
    "tiny": {"channels": (16, 16, 32, 32), "layers_per_block": 1, "norm_groups": 8},
}


class Middle(nn.Module):
    """The middle of encoder and decoder: residual block, attention, residual block at the lowest resolution.

    Attributes:
      norm_groups: the number of groups of the norms.
      dtype: the dtype of the computation.
    """

    norm_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, h, w, c)."""
        block = (self.norm_groups, EPSILON, self.dtype)
        x = ResBlock(x_bhwc.shape[-1], *block, name="res_0")(x_bhwc)
        x = Attention2D(*block, name="attn")(x)
        return ResBlock(x.shape[-1], *block, name="res_1")(x)


class Level(nn.Module):
    """Residual blocks at one resolution, then a change of resolution.

    Attributes:
      channels: the output channels.
      layers: the number of residual blocks.
      norm_groups: the number of groups of the norms.
      resample: makes the `Downsample` or `Upsample`; None at the last level.
      dtype: the dtype of the computation.
    """

    channels: int
    layers: int
    norm_groups: int
    resample: Callable[[], nn.Module] | None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, h', w', channels)."""
        for j in range(self.layers):
            x = ResBlock(self.channels, self.norm_groups, EPSILON, self.dtype, name=f"res_{j}")(x)
        return self.resample()(x) if self.resample else x


class Encoder(nn.Module):
    """Turns pixels into the moments of the latent; the attributes are `AutoencoderKL`'s."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_groups: int = 32
    patch: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """(b, h, w, 3) -> (b, h/f, w/f, 2 latent_channels), f = patch 2^(levels - 1)."""
        conv = dict(kernel_size=(3, 3), padding=SAME, dtype=self.dtype)
        p = self.patch
        x = einops.rearrange(x_bhwc, "b (h i) (w j) c -> b h w (i j c)", i=p, j=p)
        x = nn.Conv(self.channels[0], **conv, name="conv_in")(x)
        down = functools.partial(Downsample, ONE_SIDED, self.dtype, name="downsample")
        for i, c in enumerate(self.channels):
            then = down if i < len(self.channels) - 1 else None
            layers = self.layers_per_block
            x = Level(c, layers, self.norm_groups, then, self.dtype, name=f"down_{i}")(x)
        x = Middle(self.norm_groups, self.dtype, name="mid")(x)
        x = group_norm(self.norm_groups, EPSILON, self.dtype, "norm_out")(x)
        return nn.Conv(2 * self.latent_channels, **conv, name="conv_out")(nn.silu(x))


class Decoder(nn.Module):
    """Turns a latent into pixels; the attributes are `AutoencoderKL`'s."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    patch: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, z_bhwc: jax.Array) -> jax.Array:
        """(b, h, w, latent_channels) -> (b, f h, f w, 3), f = patch 2^(levels - 1)."""
        conv = dict(kernel_size=(3, 3), padding=SAME, dtype=self.dtype)
        x = nn.Conv(self.channels[-1], **conv, name="conv_in")(z_bhwc)
        x = Middle(self.norm_groups, self.dtype, name="mid")(x)
        up = functools.partial(Upsample, self.dtype, name="upsample")
        for i, c in enumerate(reversed(self.channels)):
            then = up if i < len(self.channels) - 1 else None
            layers = self.layers_per_block + 1
            x = Level(c, layers, self.norm_groups, then, self.dtype, name=f"up_{i}")(x)
        x = group_norm(self.norm_groups, EPSILON, self.dtype, "norm_out")(x)
        p = self.patch
        x = nn.Conv(3 * p * p, **conv, name="conv_out")(nn.silu(x))
        return einops.rearrange(x, "b h w (i j c) -> b (h i) (w j) c", i=p, j=p)


class AutoencoderKL(nn.Module):
    """The Stable Diffusion autoencoder.

    Attributes:
      channels: the channels at each resolution, highest first; each further level halves height and width.
      layers_per_block: the number of residual blocks per level of the encoder; the decoder has one more.
      latent_channels: the number of channels of the latent.
      norm_groups: the number of groups of every group norm.
      patch: the side of the squares of pixels that become the channels of one place before the first convolution, and
        that are made from such channels after the last; 1 in Stable Diffusion. A larger patch keeps every layer at a
        low resolution.
      dtype: the dtype of the computation; parameters stay float32.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_groups: int = 32
    patch: int = 1
    dtype: Dtype = jnp.float32

    @property
    def factor(self) -> int:
        """How many times smaller than the picture the latent is, in height and in width."""
        return self.patch * 2 ** (len(self.channels) - 1)

    def setup(self):
        size = dict(
            channels=self.channels,
            layers_per_block=self.layers_per_block,
            norm_groups=self.norm_groups,
            patch=self.patch,
            dtype=self.dtype,
        )
        self.encoder = Encoder(**size, latent_channels=self.latent_channels)
        self.quant = nn.Conv(2 * self.latent_channels, (1, 1), dtype=self.dtype)
        self.post_quant = nn.Conv(self.latent_channels, (1, 1), dtype=self.dtype)
        self.decoder = Decoder(**size)

    def encode(self, x_bhwc: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Computes the moments of the Gaussian posterior over latents.

        Args:
          x_bhwc: (b, h, w, 3) RGB in [-1, 1]; h and w are multiples of `factor`, which is 8 for the released
            autoencoder.

        Returns:
          Mean and log-variance, unscaled, each (b, h/f, w/f, latent_channels) with f = `factor`. The log-variance
          is clipped to [-30, 20] as in the released code.

        Raises:
          ValueError: if the rank is wrong, or h or w is not a multiple of `factor`.
        """
        _require_image(x_bhwc, self.factor)
        mean, logvar = jnp.split(self.quant(self.encoder(x_bhwc)), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, z_bhwc: jax.Array) -> jax.Array:
        """Decodes an unscaled latent: (b, h, w, latent_channels) -> RGB (b, f h, f w, 3), f = `factor`, not clipped."""
        return self.decoder(self.post_quant(z_bhwc))

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """Reconstructs pictures (b, h, w, 3) through the posterior mean; uses every parameter."""
        return self.decode(self.encode(x_bhwc)[0])


class PatchCodec(nn.Module):
    """A deterministic codec without parameters, for demos and tests: a projection of each 8x8 patch.

    The latent holds the patch's coefficients for four orthonormal functions (two-dimensional DCT-II): the constant in
    red, green and blue, and the lowest horizontal frequency of the three colours together. Decoding is the transpose.
    Decoding and then encoding is therefore the identity; encoding and then decoding is the orthogonal projection. A
    patch of one colour v has the latent (8 v_red, 8 v_green, 8 v_blue, 0). The codec initialises to an empty tree.
    """

    def encode(self, x_bhwc: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes pictures: (b, h, w, 3) in [-1, 1] -> mean (b, h/8, w/8, 4) and log-variance, -30 everywhere.

        Raises:
          ValueError: if the rank is wrong, or h or w is not a multiple of 8.
        """
        _require_image(x_bhwc, PATCH)
        x = einops.rearrange(x_bhwc, "b (h i) (w j) c -> b h w (i j c)", i=PATCH, j=PATCH)
        mean = x @ patch_basis().T
        return mean, jnp.full_like(mean, LOGVAR_RANGE[0])

    def decode(self, z_bhwc: jax.Array) -> jax.Array:
        """Decodes latents: (b, h, w, 4) -> (b, 8h, 8w, 3), not clipped."""
        x = z_bhwc @ patch_basis()
        return einops.rearrange(x, "b h w (i j c) -> b (h i) (w j) c", i=PATCH, j=PATCH, c=3)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """Projects pictures, encoding and then decoding them: (b, h, w, 3) -> (b, h, w, 3)."""
        return self.decode(self.encode(x_bhwc)[0])


def patch_basis() -> np.ndarray:
    """Returns `PatchCodec`'s functions as (4, 192) orthonormal rows, for patches flattened as (row, column, colour)."""
    constant = np.full(PATCH, PATCH**-0.5)
    cosine = np.sqrt(2 / PATCH) * np.cos(np.pi * (np.arange(PATCH) + 0.5) / PATCH)
    grey = np.full(3, 3**-0.5)
    rows = [np.einsum("i,j,c->ijc", constant, constant, colour) for colour in np.eye(3)]
    rows.append(np.einsum("i,j,c->ijc", constant, cosine, grey))
    return np.stack(rows).reshape(4, -1).astype(np.float32)


def _require_image(x: jax.Array, factor: int) -> None:
    if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(
            f"expected images (b, h, w, 3) with h and w multiples of {factor}, got {x.shape}"
        )
