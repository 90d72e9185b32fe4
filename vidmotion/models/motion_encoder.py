"""X-NeMo's motion encoder: turns a face crop into one vector, and this vector and the box's shift into 32 short tokens.

It is the face alignment network (Bulat and Tzimiropoulos, arXiv:1703.07332) with three self-attentions
over patches added; X-NeMo, section 3.2 and appendix A (spec xnemo.md, 1.7).

Shape suffixes: n images, h height, w width, c channels, l patches, e attention width, m motion
vector, t tokens, d token width, r the three numbers of a box's shift and scale; b clips, f their frames.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike

from vidmotion.models.attention import Attention, FeedForward, layer_norm
from vidmotion.models.blocks import group_norm
from vidmotion.models.dit import sincos_1d
from vidmotion.models.motion_attention import MAX_FRAMES, TemporalModule
from vidmotion.models.patchgan import BatchNorm
from vidmotion.models.spacetime import spatial_code

ones, zeros = nn.initializers.ones, nn.initializers.zeros


def _norm(name: str) -> BatchNorm:
    return BatchNorm(scale_init=ones, name=name)


class ConvBlock(nn.Module):
    """Three 3x3 convolutions in a row, whose outputs are concatenated and added to the input.

    Attributes:
      channels: the output channels: half of them from the first convolution, a quarter from each of the others.
      dtype: the dtype of the convolutions.
    """

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array, train: bool) -> jax.Array:
        """(n, h, w, c) -> (n, h, w, channels)."""
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        parts, y = [], x_nhwc
        for i, share in enumerate((2, 4, 4), 1):
            y = nn.relu(_norm(f"norm{i}")(y, train))
            y = conv(self.channels // share, (3, 3), padding=1, name=f"conv{i}")(y)
            parts.append(y)
        if x_nhwc.shape[-1] != self.channels:
            x_nhwc = nn.relu(_norm("shortcut_norm")(x_nhwc, train))
            x_nhwc = conv(self.channels, (1, 1), name="shortcut")(x_nhwc)
        return x_nhwc + jnp.concatenate(parts, axis=-1)


class Hourglass(nn.Module):
    """An hourglass: convolution blocks at lower and lower resolutions, whose outputs are added up on the way back.

    Attributes:
      depth: how often the map is halved.
      dropout: the dropout rate, in training, of the branch that keeps its resolution.
      dtype: the dtype of the convolutions.
      enlarge: the method of `jax.image.resize` on the way back.
    """

    depth: int = 4
    dropout: float = 0.5
    dtype: DTypeLike = jnp.float32
    enlarge: str = "bilinear"

    @nn.compact
    def __call__(self, x_nhwc: jax.Array, train: bool) -> jax.Array:
        """(n, h, w, c) -> (n, h, w, c)."""
        return self._level(x_nhwc, train, self.depth)

    def _level(self, x_nhwc: jax.Array, train: bool, level: int) -> jax.Array:
        block = functools.partial(ConvBlock, x_nhwc.shape[-1], self.dtype)
        upper = block(name=f"upper_{level}")(x_nhwc, train)
        upper = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout_{level}")(upper)
        lower = block(name=f"lower_{level}")(nn.max_pool(x_nhwc, (2, 2), (2, 2)), train)
        if level > 1:
            lower = self._level(lower, train, level - 1)
        else:
            lower = block(name="innermost")(lower, train)
        lower = block(name=f"after_{level}")(lower, train)
        return upper + jax.image.resize(lower, upper.shape, self.enlarge, antialias=False)


class PatchAttention(nn.Module):
    """Self-attention over the patches of a square map, plus the map; the identity at the start.

    Attributes:
      patch: the side of a patch.
      width: the width of the attention; it is divided among the pixels of a patch, so patch^2 must divide it.
      heads: the number of heads of the attention; divides the width.
      groups: the number of groups of the norm in front.
      dtype: the dtype of convolutions and matrix products; norms and softmax are float32.
    """

    patch: int
    width: int
    heads: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array) -> jax.Array:
        """(n, h, h, c) -> (n, h, h, c); the patch's side divides h."""
        side, channels = x_nhwc.shape[2] // self.patch, x_nhwc.shape[3]
        size = (self.patch, self.patch)
        y = group_norm(self.groups, 1e-6, self.dtype, "norm")(x_nhwc)
        y = nn.Conv(self.width, size, strides=size, dtype=self.dtype, name="patches")(y)
        x_nle = rearrange(y, "n h w e -> n (h w) e")
        x_nle = x_nle + spatial_code(self.width, side)[None].astype(x_nle.dtype)
        y = layer_norm(self.dtype, "attention_norm")(x_nle)
        x_nle = x_nle + Attention(self.heads, self.dtype, name="attention")(y)
        y = layer_norm(self.dtype, "mlp_norm")(x_nle)
        x_nle = x_nle + FeedForward(self.dtype, name="mlp")(y)
        y = rearrange(
            x_nle, "n (h w) (p q c) -> n (h p) (w q) c", h=side, p=self.patch, q=self.patch
        )
        out = nn.Dense(channels, kernel_init=zeros, dtype=self.dtype, name="unpatch")
        return x_nhwc + out(y)


class MotionEncoder(nn.Module):
    """Turns face crops and box shifts into motion tokens; the defaults are the released network.

    It has 61,665,393 parameters at the defaults. With `train`, it normalises by the batch, updates the
    collection ``batch_stats``, which must then be mutable, and needs the rng ``dropout``.

    Attributes:
      size: the side of the crops in pixels, a multiple of 16.
      width: the channels of the first convolution; the maps have 2 and 4 times as many. It must be a multiple of
        16, and `groups` must divide twice the width.
      depth: the depth of the hourglass, whose map has a quarter of the crop's side.
      attention_width, heads, groups: the sizes of the three patch attentions.
      landmarks: the channels of the map before the last (68 landmarks in the original network).
      latent: the length of the motion vector f_mot; 128, 512 or 1024 (appendix C).
      frames: the length of the windows of frames whose vectors are joined (`join`). With 1, each frame's vector is its
        own, which is the paper's method; 16 is the temporal motion encoder of Table 3.
      tokens, token_width: the number of motion tokens and their width.
      box_width: the width of the two layers that read the box's shift.
      dropout: the dropout rate in the hourglass.
      closed: whether the layer that makes f_mot starts at zero, so that all crops have the same vector until it has
        learned. Not in paper. The vectors of a random network disturb a small denoiser, so E_mot first learns to make
        them alike.
      dtype: the dtype of convolutions and matrix products; parameters, norms, and everything after the last
        map are float32.

    Raises:
      ValueError: when it is bound, if the sizes do not fit together.
    """

    size: int = 224
    width: int = 64
    depth: int = 4
    attention_width: int = 1024
    heads: int = 8
    groups: int = 32
    landmarks: int = 68
    latent: int = 512
    frames: int = 1
    tokens: int = 32
    token_width: int = 16
    box_width: int = 64
    dropout: float = 0.5
    closed: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self):
        if self.size % 16 or self.size // 4 < 2**self.depth:
            raise ValueError(
                f"MotionEncoder: size {self.size} must be a multiple of 16 and at least "
                f"{4 * 2**self.depth} for an hourglass of depth {self.depth}"
            )
        if self.attention_width % self.heads:
            raise ValueError(
                f"MotionEncoder: {self.heads} heads do not divide width {self.attention_width}"
            )
        if self.attention_width % 16 or self.width % 16 or 2 * self.width % self.groups:
            raise ValueError(
                f"MotionEncoder: attention_width {self.attention_width} and width {self.width} must "
                f"be multiples of 16, and groups {self.groups} must divide {2 * self.width}"
            )
        if not 1 <= self.frames <= MAX_FRAMES or (self.frames > 1 and self.latent % self.heads):
            raise ValueError(
                f"MotionEncoder: frames {self.frames} must be from 1 to {MAX_FRAMES}, and with more than one, "
                f"{self.heads} heads must divide latent {self.latent}"
            )
        conv = functools.partial(nn.Conv, dtype=self.dtype)
        block = functools.partial(ConvBlock, dtype=self.dtype)
        attention = functools.partial(
            PatchAttention,
            width=self.attention_width,
            heads=self.heads,
            groups=self.groups,
            dtype=self.dtype,
        )
        middle, wide = 2 * self.width, 4 * self.width
        self.stem = conv(self.width, (7, 7), strides=2, padding=3)
        self.stem_norm = BatchNorm(scale_init=ones)
        self.block_1 = block(middle)
        self.attention_1 = attention(4)
        self.block_2 = block(middle)
        self.block_3 = block(wide)
        self.attention_2 = attention(2)
        self.hourglass = Hourglass(self.depth, self.dropout, self.dtype)
        self.top = block(wide)
        self.last = conv(wide, (1, 1))
        self.last_norm = BatchNorm(scale_init=ones)
        self.attention_3 = attention(2)
        self.landmark_map = conv(self.landmarks, (1, 1))
        self.landmark_norm = BatchNorm(scale_init=ones)
        self.map = conv(1, (3, 3), strides=2, padding=1)
        start = zeros if self.closed else nn.initializers.lecun_normal()
        self.motion = nn.Dense(self.latent, kernel_init=start)
        if self.frames > 1:
            self.across = TemporalModule(self.heads, groups=1)
        self.box_in = nn.Dense(self.box_width)
        self.box_out = nn.Dense(self.box_width)
        self.fusion = nn.Dense(self.tokens * self.token_width)

    def encode(self, x_nhwc: jax.Array, train: bool = False) -> jax.Array:
        """Computes the motion vector f_mot of each crop, which does not depend on the box.

        Args:
          x_nhwc: RGB crops in [-1, 1], (n, size, size, 3).
          train: see the class.

        Returns:
          (n, latent) float32.

        Raises:
          ValueError: if the crops have another shape.
        """
        if x_nhwc.shape[1:] != (self.size, self.size, 3):
            raise ValueError(
                f"MotionEncoder: crops must be (n, {self.size}, {self.size}, 3), got {x_nhwc.shape}"
            )
        x = nn.relu(self.stem_norm(self.stem(x_nhwc), train))
        x = self.attention_1(self.block_1(x, train))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = self.attention_2(self.block_3(self.block_2(x, train), train))
        x = self.top(self.hourglass(x, train), train)
        x = self.attention_3(self.last_norm(self.last(x), train))
        x = self.landmark_map(nn.relu(x))
        x = self.map(nn.relu(self.landmark_norm(x, train)))
        return self.motion(nn.relu(rearrange(x.astype(jnp.float32), "n h w c -> n (h w c)")))

    def join(self, f_mot_bfm: jax.Array) -> jax.Array:
        """Lets motion vectors take in the neighbouring frames, by the temporal motion encoder of Table 3.

        The paper does not say how it joins frames. We run the denoiser's temporal module, which adds nothing until it
        has been trained, over the vectors of a window as over a map of one place, with one group in its norm. Clips are
        cut into windows of `frames` frames. The last window is filled up by repeating its last vector, so that a single
        picture counts as a clip in which nothing moves.

        Args:
          f_mot_bfm: the vectors of single frames, (b, f, latent), for any number f.

        Returns:
          The new vectors, of the same shape, float32; the input itself if `frames` is 1.
        """
        if self.frames == 1:
            return f_mot_bfm
        clips, given, _ = f_mot_bfm.shape
        count = -(-given // self.frames)
        filled = f_mot_bfm[:, np.minimum(np.arange(count * self.frames), given - 1)]
        windows = filled.reshape(clips * count, self.frames, 1, 1, self.latent)
        return self.across(windows).reshape(filled.shape)[:, :given]

    def fuse(self, f_mot_nm: jax.Array, f_rts_nr: jax.Array) -> jax.Array:
        """Turns motion vectors and box shifts into tokens.

        The tokens are affine in the motion vector, so vectors can be mixed before or after this.

        Args:
          f_mot_nm: the motion vectors, (n, latent).
          f_rts_nr: (n, 3), the driving box relative to the reference's: shift down, shift right (not
            right and down as in the paper), and scale; (0, 0, 1) where the box does not move.

        Returns:
          (n, tokens, token_width) float32.
        """
        box_nb = self.box_out(nn.relu(self.box_in(f_rts_nr.astype(jnp.float32))))
        fused = self.fusion(jnp.concatenate([f_mot_nm.astype(jnp.float32), box_nb], axis=-1))
        tokens_ntd = rearrange(fused, "n (t d) -> n t d", t=self.tokens)
        return tokens_ntd + token_code(self.token_width, self.tokens)[None]

    def __call__(self, x_nhwc: jax.Array, f_rts_nr: jax.Array, train: bool = False) -> jax.Array:
        """Turns the crops of one clip and their box shifts into tokens (n, tokens, token_width).

        See `encode`, `join` and `fuse`.
        """
        return self.fuse(self.join(self.encode(x_nhwc, train)[None])[0], f_rts_nr)


def token_code(width: int, tokens: int):
    """Returns a fixed code (tokens, width) of the tokens' places, sines then cosines."""
    return sincos_1d(width, range(tokens))
