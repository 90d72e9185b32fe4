"""X-NeMo's motion tokenizer: turns a sequence of motion vectors into discrete tokens of four frames each, and back.

It is a VQ-VAE with convolutions over time: X-NeMo, appendix E, after T2M-GPT (Zhang et al., arXiv:2301.06052,
section 3.1 and appendix; spec xnemo.md, 4.2).

Shape suffixes: b batch, t frames, c channels of a motion vector, u tokens, d width of a token.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vidmotion.models.quantizer import EmaQuantizer


class Tokenized(NamedTuple):
    """The tokenizer's outputs that training needs.

    Attributes:
      target_btc: the standardised motion, with which the reconstruction is compared.
      reconstruction_btc: the standardised motion reconstructed from the tokens.
      ids_bu: the tokens, int32.
      commitment, perplexity: see `quantizer.Coded`.
    """

    target_btc: jax.Array
    reconstruction_btc: jax.Array
    ids_bu: jax.Array
    commitment: jax.Array
    perplexity: jax.Array


class ResidualStack(nn.Module):
    """Residual blocks, each of a dilated convolution and one of size 1; the widest dilation comes first.

    Attributes:
      blocks: the number of blocks; their dilations are `growth` ^ (blocks - 1), ..., `growth`, 1.
      growth: the ratio of the dilations.
      dtype: the dtype of the convolutions.
    """

    blocks: int
    growth: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_btc: jax.Array) -> jax.Array:
        """(b, t, c) -> (b, t, c)."""
        width = x_btc.shape[-1]
        for i in range(self.blocks):
            wide = self.growth ** (self.blocks - 1 - i)
            dilated = nn.Conv(
                width,
                (3,),
                padding=wide,
                kernel_dilation=wide,
                dtype=self.dtype,
                name=f"dilated_{i}",
            )
            mix = nn.Conv(width, (1,), dtype=self.dtype, name=f"mix_{i}")
            x_btc = x_btc + mix(nn.relu(dilated(nn.relu(x_btc))))
        return x_btc


class MotionTokenizer(nn.Module):
    """A VQ-VAE of motion vectors; the defaults are the paper's where it gives values.

    The collection ``standard`` holds ``mean`` and ``deviation`` (channels,) of the motion in the
    training set; they start at 0 and 1, and the caller must set them. The codebook is not a parameter but is in the
    collection ``codebook``, see `quantizer.EmaQuantizer`.

    Attributes:
      channels: the length of a motion vector (f_mot before the box is known).
      entries, dim: the sizes of the codebook.
      halvings: how often time is halved; a token covers 2^halvings frames.
      width: the channels at each resolution; from T2M-GPT.
      blocks, growth: the sizes of the `ResidualStack` at each resolution; from T2M-GPT.
      decay: the decay of the codebook's averages; from T2M-GPT.
      least: the count below which an entry is replaced; from T2M-GPT. To stay, an entry needs on average `least`
        vectors per batch.
      dtype: the dtype of the convolutions; parameters, tokens and reconstruction are float32.
    """

    channels: int = 512
    entries: int = 4096
    dim: int = 8
    halvings: int = 2
    width: int = 512
    blocks: int = 3
    growth: int = 3
    decay: float = 0.99
    least: float = 1.0
    dtype: DTypeLike = jnp.float32

    def setup(self):
        def conv(features: int, size: int = 3, stride: int = 1) -> nn.Conv:
            return nn.Conv(features, (size,), strides=stride, padding=1, dtype=self.dtype)

        def stacks() -> list[ResidualStack]:
            return [
                ResidualStack(self.blocks, self.growth, self.dtype) for _ in range(self.halvings)
            ]

        self.mean = self.variable("standard", "mean", jnp.zeros, (self.channels,))
        self.deviation = self.variable("standard", "deviation", jnp.ones, (self.channels,))
        self.encoder_in = conv(self.width)
        self.down = [conv(self.width, 4, 2) for _ in range(self.halvings)]
        self.encoder = stacks()
        self.encoder_out = conv(self.dim)
        self.quantizer = EmaQuantizer(self.entries, self.dim, self.decay, self.least)
        self.decoder_in = conv(self.width)
        self.decoder = stacks()
        self.up = [conv(self.width) for _ in range(self.halvings)]
        self.decoder_mid = conv(self.width)
        self.decoder_out = conv(self.channels)

    def __call__(self, motion_btc: jax.Array, key: jax.Array | None = None) -> Tokenized:
        """Encodes motion as tokens and reconstructs it from them.

        Args:
          motion_btc: the motion (b, t, channels), with t a multiple of 2^halvings.
          key: the random key of the codebook's update, for which ``codebook`` must be mutable; None in evaluation.

        Raises:
          ValueError: if the motion has another shape.
        """
        target_btc = self._standardised(motion_btc)
        coded = self.quantizer(self._encode(target_btc), key)
        return Tokenized(
            target_btc,
            self._decode(coded.z_btd),
            coded.ids_bt,
            coded.commitment,
            coded.perplexity,
        )

    def encode(self, motion_btc: jax.Array) -> jax.Array:
        """Encodes motion (b, t, channels) as tokens, int32 (b, t / 2^halvings).

        Raises:
          ValueError: as `__call__` does.
        """
        return self.quantizer(self._encode(self._standardised(motion_btc))).ids_bt

    def decode(self, ids_bu: jax.Array) -> jax.Array:
        """Decodes tokens (b, u) to motion (b, u * 2^halvings, channels), float32, in the units of the input.

        A token also affects frames beyond its own. To continue a sequence without a seam, decode the new
        tokens together with at least 8 tokens before them, and drop the frames of those.
        """
        standard_btc = self._decode(self.quantizer.embed(ids_bu))
        return standard_btc * self.deviation.value[None, None] + self.mean.value[None, None]

    def _standardised(self, motion_btc: jax.Array) -> jax.Array:
        step = 2**self.halvings
        if (
            motion_btc.ndim != 3
            or motion_btc.shape[-1] != self.channels
            or motion_btc.shape[1] % step
        ):
            raise ValueError(
                f"MotionTokenizer: motion must be (batch, frames, {self.channels}) with frames a "
                f"multiple of {step}, got {motion_btc.shape}"
            )
        centred = motion_btc.astype(jnp.float32) - self.mean.value[None, None]
        return centred / self.deviation.value[None, None]

    def _encode(self, x_btc: jax.Array) -> jax.Array:
        x = nn.relu(self.encoder_in(x_btc.astype(self.dtype)))
        for down, stack in zip(self.down, self.encoder):
            x = stack(down(x))
        return self.encoder_out(x).astype(jnp.float32)

    def _decode(self, z_bud: jax.Array) -> jax.Array:
        x = nn.relu(self.decoder_in(z_bud.astype(self.dtype)))
        for up, stack in zip(self.up, self.decoder):
            x = up(jnp.repeat(stack(x), 2, axis=1))
        return self.decoder_out(nn.relu(self.decoder_mid(x))).astype(jnp.float32)
