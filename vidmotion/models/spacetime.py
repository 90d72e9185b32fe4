"""The spatial-temporal transformer on both sides of VidTwin (spec vidtwin.md, section 1).

It is the transformer of Bertasius et al. (arXiv 2102.05095) with the modulation of a DiT block but
no condition: each block has one learned table of shifts, scales and gates. The residual stream and
the norms are float32; matrix products are in `dtype`.

Shape suffixes: b batch, t frames, s patches of a frame (row by row), c width, n heads, d width of
one head; bthwc is a video or a grid of tokens.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike

from vidmotion.models import forms
from vidmotion.models.attention import attend, attend_frames
from vidmotion.models.dit import sincos_1d
from vidmotion.models.layers import attention, mlp, plain_norm, stack

xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros
# PyTorch's default for kernels, U(+-1/sqrt(fan_in)); `uniform_bias` is its default for biases.
uniform_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def uniform_bias(fan_in: int) -> nn.initializers.Initializer:
    """Returns PyTorch's default initializer for the bias of a dense or convolution layer, U(+-1/sqrt(fan_in))."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) * fan_in**-0.5

    return init


def spatial_code(width: int, side: int) -> np.ndarray:
    """Returns a fixed code (side * side, width) of the patches of a square frame, row by row.

    The first half of the channels encodes the COLUMN, the second half the row, each as sines then
    cosines of `index / 10000^(2i / (width / 2))` (section 1.2). `width` is a multiple of 4.
    """
    row, column = np.divmod(np.arange(side * side), side)
    return np.concatenate([sincos_1d(width // 2, column), sincos_1d(width // 2, row)], axis=1)


def temporal_code(width: int, frames: int) -> np.ndarray:
    """Returns a fixed code (frames, width) of the frames, sines then cosines (section 1.2)."""
    return sincos_1d(width, np.arange(frames))


def modulate(x_btsc: jax.Array, shift_c: jax.Array, scale_c: jax.Array) -> jax.Array:
    """Applies LayerNorm without parameters, then x * (1 + scale) + shift, in float32 (section 1.3)."""
    return plain_norm(x_btsc, *(forms.spread(x, x_btsc.shape) for x in (1.0 + scale_c, shift_c)))


class Attention(nn.Module):
    """Self-attention within each frame, or causally over the frames of each patch (section 1.3).

    Attributes:
      heads: the number of heads; divides the width.
      temporal: whether to attend over frames, each to itself and earlier ones. The output layer of a
        temporal attention starts at zero (section 1.6).
      dtype: the dtype of the matrix products; the softmax is float32.
    """

    heads: int
    temporal: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_btsc: jax.Array) -> jax.Array:
        """(b, t, s, c) -> (b, t, s, c) of `dtype`."""
        dense = functools.partial(nn.Dense, kernel_init=xavier, dtype=self.dtype)
        return attention(
            x_btsc,
            heads=self.heads,
            dense=dense,
            out=functools.partial(dense, kernel_init=zeros if self.temporal else xavier),
            split=functools.partial(forms.Split, kernel_init=xavier, dtype=self.dtype),
            attend=self._attend_on_cpu if forms.on_cpu() else self._attend,
        )

    def _attend(self, *qkv_btsnd: jax.Array) -> jax.Array:
        if self.temporal:
            return attend_frames(*qkv_btsnd, causal=True)
        rows = (rearrange(x, "b t s n d -> (b t) s n d") for x in qkv_btsnd)
        return attend(*rows).reshape(qkv_btsnd[0].shape)

    def _attend_on_cpu(self, *qkv_btsnd: jax.Array) -> jax.Array:
        """Computes the attention with heads before tokens: with few tokens, this takes half as long as `attend`, which
        needs heads after tokens."""
        order = "b s n t d" if self.temporal else "b t n s d"
        q, k, v = (rearrange(x, f"b t s n d -> {order}") for x in qkv_btsnd)
        logits = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.float32)
        logits *= q.shape[-1] ** -0.5
        if self.temporal:
            past = np.tril(np.ones(logits.shape[-2:], bool))
            logits = jnp.where(past[None, None, None], logits, -jnp.inf)
        y = jnp.einsum("...qk,...kd->...qd", jax.nn.softmax(logits).astype(v.dtype), v)
        return rearrange(y, f"{order} -> b t s n d")


class Block(nn.Module):
    """A block of spatial attention, causal temporal attention and MLP, each gated and added (section 1.3).

    Two oddities of the released network are kept: the temporal branch reads the residual stream
    without norm and modulation, and both attentions share one gate.
    """

    heads: int
    mlp_ratio: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_btsc: jax.Array, code_tc: jax.Array) -> tuple[jax.Array, None]:
        """Runs the block.

        Args:
          x_btsc: the residual stream, float32.
          code_tc: the code of the frames; it is added only to the input of the temporal attention.

        Returns:
          The residual stream and None, the pair that `nn.scan` expects.
        """
        width = x_btsc.shape[-1]
        table = self.param("modulation", nn.initializers.normal(width**-0.5), (6, width))
        shift1, scale1, gate1, shift2, scale2, gate2 = table
        gate1, gate2 = (forms.spread(gate, x_btsc.shape) for gate in (gate1, gate2))

        def attend(name: str, y: jax.Array) -> jax.Array:
            return gate1 * Attention(self.heads, name == "temporal", self.dtype, name=name)(y)

        x_btsc = x_btsc + attend("spatial", modulate(x_btsc, shift1, scale1))
        x_btsc = x_btsc + attend("temporal", x_btsc + code_tc[None, :, None])
        y = modulate(x_btsc, shift2, scale2)
        dense = functools.partial(nn.Dense, kernel_init=xavier, dtype=self.dtype)
        return x_btsc + gate2 * mlp(y, self.mlp_ratio * width, dense=dense), None


class Trunk(nn.Module):
    """Adds the spatial code and runs the blocks; there is no norm at the end (section 1.4).

    Attributes:
      depth: the number of blocks, named block_0, block_1, ...
      heads, mlp_ratio: the sizes of each block.
      dtype: the dtype of the matrix products.
      remat: whether to recompute each block in the backward pass instead of keeping its activations.
      scan: whether to compile one block for all; their parameters are then stacked under `blocks`.
    """

    depth: int
    heads: int
    mlp_ratio: int = 4
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    scan: bool = False

    @nn.compact
    def __call__(self, x_bthwc: jax.Array) -> jax.Array:
        """Tokens (b, t, side, side, c) -> the same shape, float32."""
        frames, side, _, width = x_bthwc.shape[1:]
        x_btsc = rearrange(x_bthwc, "b t h w c -> b t (h w) c").astype(jnp.float32)
        x_btsc = x_btsc + spatial_code(width, side)[None, None]
        code_ltc = np.zeros((self.depth, frames, width), np.float32)
        code_ltc[0] = temporal_code(width, frames)  # only the first block gets the code
        size = (self.heads, self.mlp_ratio, self.dtype)
        each = (jnp.asarray(code_ltc),)
        x_btsc = stack(
            Block, size, self.depth, "block", x_btsc, each=each, scan=self.scan, remat=self.remat
        )
        return rearrange(x_btsc, "b t (h w) c -> b t h w c", h=side)


class Encoder(nn.Module):
    """Turns a video into tokens (sections 1.1, 1.4).

    Attributes:
      width: the channels of a token.
      patch: the frames, rows and columns of a patch.
      trunk: the arguments of `Trunk`.
    """

    width: int
    patch: tuple[int, int, int]
    trunk: dict

    @nn.compact
    def __call__(self, x_bthwc: jax.Array) -> jax.Array:
        """(b, t, h, w, channels) -> (b, t / patch, h / patch, w / patch, width) float32.

        Where the patch does not divide frames, rows or columns, zeros are appended.
        The embedding is float32, whatever the dtype of the trunk's matrix products (section 1.5).
        """
        room = [-size % p for size, p in zip(x_bthwc.shape[1:4], self.patch)]
        x_bthwc = jnp.pad(x_bthwc, ((0, 0), *((0, r) for r in room), (0, 0)))
        i, j, k = self.patch
        patches = rearrange(x_bthwc, "b (t i) (h j) (w k) c -> b t h w i j k c", i=i, j=j, k=k)
        # Xavier on the kernel flattened to (c i j k, width); the bias keeps PyTorch's default (1.6).
        embed = nn.DenseGeneral(
            self.width,
            axis=(-4, -3, -2, -1),
            kernel_init=xavier,
            bias_init=uniform_bias(x_bthwc.shape[-1] * math.prod(self.patch)),
            dtype=jnp.float32,
            name="patch_embed",
        )
        return Trunk(**self.trunk, name="trunk")(embed(patches))


class Decoder(nn.Module):
    """Turns tokens into a video in two steps, so that a loss can differentiate the last layer alone (section 1.4).

    Attributes:
      width: the channels of a token.
      patch: the frames, rows and columns of a patch.
      trunk: the arguments of `Trunk`.
      channels: the channels of the video.
    """

    width: int
    patch: tuple[int, int, int]
    trunk: dict
    channels: int = 3

    def setup(self):
        self.blocks = Trunk(**self.trunk, name="trunk")
        width = self.width
        self.modulation = self.param("modulation", nn.initializers.normal(width**-0.5), (2, width))
        # It does not start at zero: the released code creates this layer anew after having set it to zero (1.6).
        # It is float32, whatever the dtype of the trunk's matrix products (1.5).
        self.out = nn.Dense(
            self.channels * math.prod(self.patch),
            kernel_init=uniform_kernel,
            bias_init=uniform_bias(width),
            dtype=jnp.float32,
        )

    def features(self, x_bthwc: jax.Array) -> jax.Array:
        """Computes the input of the last layer from tokens (b, t, h, w, width); same shape, float32."""
        x = self.blocks(x_bthwc)
        shift, scale = self.modulation
        flat = rearrange(x, "b t h w c -> b t (h w) c")
        return modulate(flat, shift, scale).reshape(x.shape)

    def pixels(self, y_bthwc: jax.Array) -> jax.Array:
        """Applies the last layer, `out`: (b, t, h, w, width) -> video (b, t', h', w', channels) float32.

        Outputs are neither squashed nor clipped. Within a token they are ordered frame, row,
        column, colour.
        """
        i, j, k = self.patch
        y = self.out(y_bthwc)
        return rearrange(y, "b t h w (i j k c) -> b (t i) (h j) (w k) c", i=i, j=j, k=k)

    def __call__(self, x_bthwc: jax.Array) -> jax.Array:
        """Decodes tokens (b, t, h, w, width) to a video (b, t', h', w', channels)."""
        return self.pixels(self.features(x_bthwc))
