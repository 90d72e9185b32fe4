"""DiT denoiser for video with motion modulation (Peebles and Xie 2022; BCD supplement A.1, Eq. 5).

Shape suffixes: b batch, t frames, n tokens of a frame (patches, row by row), k content tokens, d width,
h heads, e head width, m motion feature; bthwc is a video or latent video.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike

from vidmotion.models import forms
from vidmotion.models.attention import attend, attend_frames
from vidmotion.models.layers import AdaLN, attention, mlp, split_dense, stack, zeros

# Width, depth and heads of the DiT paper's Table 1; the patch size is a field of its own.
SIZES = {
    "S": dict(width=384, layers=12, heads=6),
    "B": dict(width=768, layers=12, heads=12),
    "L": dict(width=1024, layers=24, heads=16),
    "XL": dict(width=1152, layers=28, heads=16),
}
xavier = nn.initializers.xavier_uniform()


def patchify(x_bthwc: jax.Array, patch: int) -> jax.Array:
    """Cuts frames into patches: (B, T, H, W, C) -> (B, T, N, patch * patch * C), tokens row by row."""
    return rearrange(x_bthwc, "b t (h p) (w q) c -> b t (h w) (p q c)", p=patch, q=patch)


def unpatchify(x_btnc: jax.Array, patch: int, height: int) -> jax.Array:
    """Puts patches together again, the inverse of `patchify`, for a picture of `height` rows."""
    return rearrange(
        x_btnc, "b t (h w) (p q c) -> b t (h p) (w q) c", h=height // patch, p=patch, q=patch
    )


def sincos_1d(width: int, position: np.ndarray) -> np.ndarray:
    """Encodes positions (P,) as (P, width): sines, then cosines, of position / 10000^(i / (width / 2))."""
    rate = 1.0 / 10000.0 ** (np.arange(width // 2) / (width / 2))
    angle = np.outer(position, rate)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def sincos_2d(width: int, rows: int, columns: int) -> np.ndarray:
    """Returns a fixed position code (rows * columns, width): half the width for the row, half for the column."""
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return np.concatenate(
        [sincos_1d(width // 2, row.ravel()), sincos_1d(width // 2, column.ravel())], axis=1
    )


def rotary(x_btnhe: jax.Array, base: float = 10000.0) -> jax.Array:
    """Rotates pairs of channels by the frame index (Su et al. 2021); x is (B, T, N, heads, e)."""
    heads, width = x_btnhe.shape[-2:]
    half = width // 2
    angle_te = jnp.outer(jnp.arange(x_btnhe.shape[1]), base ** (-jnp.arange(half) / half))
    cos, sin = (jnp.tile(f(angle_te), (1, 2)) for f in (jnp.cos, jnp.sin))
    if forms.platform() != "tpu":
        first, second = x_btnhe[..., :half], x_btnhe[..., half:]
        other = jnp.concatenate([-second, first], axis=-1)
        turned = x_btnhe * cos[None, :, None, None] + other * sin[None, :, None, None]
        return turned.astype(x_btnhe.dtype)
    # On a TPU the channels fill whole tiles: cutting them in halves costs more than a product that swaps the halves.
    swap_ee = np.block(
        [[np.zeros((half, half)), np.eye(half)], [-np.eye(half), np.zeros((half, half))]]
    )
    swap_cc = jnp.asarray(np.kron(np.eye(heads), swap_ee), x_btnhe.dtype)
    x_btnc = x_btnhe.reshape(*x_btnhe.shape[:3], -1)
    other = jnp.matmul(x_btnc, swap_cc, precision="highest")
    cos, sin = (jnp.tile(table, (1, heads))[None, :, None] for table in (cos, sin))
    return (x_btnc * cos + other * sin).astype(x_btnhe.dtype).reshape(x_btnhe.shape)


class TimeEmbedding(nn.Module):
    """Embeds the diffusion time as DiT does: 256 sinusoids, Linear, SiLU, Linear(width); time is on a scale of 1000."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, time_bt: jax.Array) -> jax.Array:
        """(B, T) float -> (B, T, width)."""
        rate = jnp.exp(-jnp.log(10000.0) * jnp.arange(128) / 128)
        angle = time_bt[..., None].astype(jnp.float32) * rate[None, None]
        x_btd = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1).astype(self.dtype)
        normal = nn.initializers.normal(0.02)
        x_btd = nn.Dense(self.width, kernel_init=normal, dtype=self.dtype, name="in")(x_btd)
        return nn.Dense(self.width, kernel_init=normal, dtype=self.dtype, name="out")(
            nn.silu(x_btd)
        )


def group_norm(
    x_btnd: jax.Array,
    groups: int,
    scale_bt1d: jax.Array | float = 1.0,
    shift_bt1d: jax.Array | float = 0.0,
    eps: float = 1e-6,
) -> jax.Array:
    """Applies group norm, then scale and shift: scale * norm(x) + shift, in the dtype of x.

    The statistics are float32 and taken over the tokens and the group's channels of ONE frame.

    An array of all tokens is read once for the sums and once for the result, and once for each of these in the backward
    pass: everything else happens per frame and channel. On a TPU, whatever is summed over tokens costs as much as a
    dense layer of the same input.
    """
    width = x_btnd.shape[-1]
    x = x_btnd.astype(jnp.float32)
    sums = jnp.concatenate([x.mean(2, keepdims=True), jnp.square(x).mean(2, keepdims=True)], 2)
    # This product averages over the channels of each group, and gives every channel its group's average.
    size = width // groups
    within_dd = np.kron(np.eye(groups), np.full((size, size), 1 / size)).astype(np.float32)
    mean, square = jnp.split(jnp.matmul(sums, within_dd, precision="highest"), 2, 2)
    rate = scale_bt1d * jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0.0) + eps)
    return (x * rate + (shift_bt1d - mean * rate)).astype(x_btnd.dtype)


class AdaGN(nn.Module):
    """Scales, shifts and gates of a block's norms, read from time and motion (Eq. 5).

    AdaGN(h, m, t) = m_s * (t_s * GroupNorm(h) + t_b) + m_b with (t_s, t_b) linear in the time embedding and
    (m_s, m_b) linear in the motion, written t_s = 1 + dt, m_s = 1 + dm with zero-initialised projections. This is one
    scale, m_s * t_s, and one shift, m_s * t_b + m_b.

    Attributes:
      width, sites, gates, gate_start, dtype: see `layers.AdaLN`.
    """

    width: int
    sites: int
    gates: bool
    gate_start: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, temb_bt1d: jax.Array, m_bt1m: jax.Array, cond_bt1d: jax.Array):
        """Returns the same as `layers.AdaLN`; the gates are read from `cond_bt1d`, which has both time and motion."""
        size = self.width, self.dtype
        time = split_dense(nn.silu(temb_bt1d), 2 * self.sites, *size, "time")
        motion = split_dense(m_bt1m, 2 * self.sites, *size, "motion")

        norms = [
            ((1.0 + m_s) * (1.0 + t_s), (1.0 + m_s) * t_b + m_b)
            for t_s, t_b, m_s, m_b in zip(time[::2], time[1::2], motion[::2], motion[1::2])
        ]
        if not self.gates:
            return norms, []
        return norms, split_dense(cond_bt1d, self.sites, *size, "gate", self.gate_start)


def conditioning(inject: str, condition: tuple, width: int, sites: int, name: str, **fields):
    """Conditions a block's norms on time and motion, in the way that `VideoDiT.motion_inject` names.

    Args:
      inject: ``adagn`` or ``add_temb``.
      condition: the embedded time, the motion, and the SiLU of the sum of embedded time and embedded motion; each
        (B, T, 1, D), except that the motion's last axis is M.
      width, sites, fields: see `layers.AdaLN`.
      name: the name of the module.

    Returns:
      The scales and shifts, and the gates, that `layers.AdaLN` returns.
    """
    if inject == "adagn":
        return AdaGN(width, sites, name=name, **fields)(*condition)
    return AdaLN(width, sites, name=name, **fields)(condition[2])


class Block(nn.Module):
    """A DiT block with attention over the tokens of a frame or, if `temporal`, over the frames at each token.

    AdaGN -> attention -> gate, AdaGN -> MLP(GELU tanh) -> gate, both residual. The gates of a spatial block start at
    `gate_start`, those of a temporal block at zero; with gates of zero, a fresh block is the exact identity.
    """

    width: int
    heads: int
    mlp_dim: int
    groups: int
    temporal: bool
    inject: str
    rope: bool
    gate_start: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_btnd, temb_bt1d, m_bt1m, cond_bt1d):
        (before_attention, before_mlp), (gate_attention, gate_mlp) = conditioning(
            self.inject,
            (temb_bt1d, m_bt1m, cond_bt1d),
            self.width,
            2,
            "conditioning",
            gates=True,
            gate_start=0.0 if self.temporal else self.gate_start,
            dtype=self.dtype,
        )
        dense = functools.partial(nn.Dense, kernel_init=xavier, dtype=self.dtype)
        h = group_norm(x_btnd, self.groups, *before_attention)
        split = functools.partial(forms.Split, kernel_init=xavier, dtype=self.dtype)
        h = attention(h, heads=self.heads, dense=dense, split=split, attend=self._attend)
        x_btnd = x_btnd + gate_attention * h
        h = group_norm(x_btnd, self.groups, *before_mlp)
        return x_btnd + gate_mlp * mlp(h, self.mlp_dim, dense=dense)

    def _attend(self, q_btnhe: jax.Array, k_btnhe: jax.Array, v_btnhe: jax.Array) -> jax.Array:
        if not self.temporal:
            rows = (rearrange(x, "b t n h e -> (b t) n h e") for x in (q_btnhe, k_btnhe, v_btnhe))
            return attend(*rows).reshape(q_btnhe.shape)
        if self.rope:
            q_btnhe, k_btnhe = rotary(q_btnhe), rotary(k_btnhe)
        return attend_frames(q_btnhe, k_btnhe, v_btnhe)


class Unit(nn.Module):
    """The run of blocks that repeats: spatial blocks, with a temporal block after each one that `pattern` marks.

    With `alternate` a temporal block stands in place of the marked spatial block.
    """

    pattern: tuple[bool, ...]
    alternate: bool
    temporal: bool  # False skips the temporal blocks (first training stage); their parameters exist all the same
    block: dict

    @nn.compact
    def __call__(self, x_btnd, *condition):
        for i, marked in enumerate(self.pattern):
            if not (marked and self.alternate):
                x_btnd = Block(**self.block, temporal=False, name=f"spatial_{i}")(
                    x_btnd, *condition
                )
            if marked and (self.temporal or self.is_initializing()):
                x_btnd = Block(**self.block, temporal=True, name=f"temporal_{i}")(
                    x_btnd, *condition
                )
        return x_btnd, None


class VideoDiT(nn.Module):
    """The video denoiser F(x, time | content, motion): the raw network inside the diffusion preconditioning.

    Attributes:
      height: the side of the latent video's square frames.
      channels: the channels of the latent video.
      patch, width, layers, heads, mlp_dim: the sizes of the DiT; `mlp_dim` 0 means 4 * width.
      temporal_blocks: the indices of the spatial blocks after which a temporal block stands (Tables A4, A5).
      placement: ``insert`` (18 blocks for 12 layers and 6 indices) or ``alternate`` (a temporal block
        instead of the indexed spatial one).
      temporal: False runs without the temporal blocks; their parameters exist all the same.
      temporal_from: the update from which training uses the temporal blocks. Before it, in the first stage, each frame
        is rebuilt on its own; both stages are one run, with one schedule and one temperature.
      temporal_position: ``rope`` or ``sincos`` (added once after the patch embedding).
      motion_inject: ``adagn`` (Eq. 5) or ``add_temb``.
      content_concat: how the content c is combined with the noisy latent z_t: ``channel`` (a linear layer makes a patch
        of each content token, and the patches are put together and concatenated on channels; K must be the number of
        tokens, or 1 for broadcast), ``patch`` (each content token, of any width, is concatenated to the values of its
        patch; the same K), ``token`` (appended to the frame's tokens in the spatial attention) or ``reshape`` (c has
        exactly the number of values of one latent frame).
      groups: the number of groups of the group norms.
      gate_start: the value of the spatial blocks' gates in a fresh network; 0 is adaLN-Zero. The gates of temporal
        blocks always start at 0, so that these blocks can join later without a jump.
      remat: whether to recompute blocks in the backward pass.
      scan: whether to compile the repeating unit only once.
      dtype: the dtype of the computation; the result is float32.

    Raises:
      ValueError: at initialisation, if the sizes do not fit together.
    """

    height: int
    channels: int
    patch: int
    width: int
    layers: int
    heads: int
    mlp_dim: int = 0
    temporal_blocks: tuple[int, ...] = (0, 2, 4, 6, 8, 10)
    placement: str = "insert"
    temporal: bool = True
    temporal_from: int = 0
    temporal_position: str = "rope"
    motion_inject: str = "adagn"
    content_concat: str = "channel"
    groups: int = 32
    gate_start: float = 0.0
    remat: bool = False
    scan: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def tokens(self) -> int:
        """The number of tokens of one frame."""
        return (self.height // self.patch) ** 2

    def check(self, content_tokens: int, content_width: int) -> None:
        """Raises ValueError if the sizes do not fit together or a choice is unknown."""
        choices = {
            "placement": ("insert", "alternate"),
            "temporal_position": ("rope", "sincos"),
            "motion_inject": ("adagn", "add_temb"),
            "content_concat": ("channel", "patch", "token", "reshape"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"denoiser.{name}={getattr(self, name)!r}: choose {' or '.join(known)}"
                )
        outside = [i for i in self.temporal_blocks if not 0 <= i < self.layers]
        if outside:
            raise ValueError(
                f"denoiser.temporal_blocks={self.temporal_blocks}: there are {self.layers} layers, "
                f"numbered from 0; {outside} are not among them"
            )
        if self.height % self.patch:
            raise ValueError(
                f"denoiser.patch={self.patch} does not divide the {self.height} px frame"
            )
        if self.width % self.groups or self.width % (2 * self.heads) or self.width % 4:
            raise ValueError(
                f"denoiser.width={self.width} must be divisible by groups={self.groups}, by "
                f"2 * heads={2 * self.heads} and by 4"
            )
        if self.content_concat == "channel" and content_tokens not in (1, self.tokens):
            raise ValueError(
                f"denoiser.content_concat='channel' needs encoder.content_tokens = 1 or {self.tokens} "
                f"(one per patch), got {content_tokens}"
            )
        values = self.height**2 * self.channels
        if self.content_concat == "patch" and content_tokens not in (1, self.tokens):
            raise ValueError(
                f"denoiser.content_concat='patch' needs encoder.content_tokens = 1 or {self.tokens} "
                f"(one per patch), got {content_tokens}"
            )
        if self.content_concat == "reshape" and content_tokens * content_width != values:
            raise ValueError(
                f"denoiser.content_concat='reshape' needs content_tokens * content_width = {values}, got "
                f"{content_tokens} * {content_width}"
            )

    @nn.compact
    def __call__(
        self, x_bthwc: jax.Array, time_bt: jax.Array, c_bkd: jax.Array, m_btm: jax.Array
    ) -> jax.Array:
        """Runs the network.

        Args:
          x_bthwc: (B, T, H, W, C) noisy latents, already scaled by c_in.
          time_bt: (B, T) diffusion time of each frame.
          c_bkd: (B, K, C_c) content tokens.
          m_btm: (B, T, M) quantised motion.

        Returns:
          (B, T, H, W, C) float32.
        """
        self.check(c_bkd.shape[1], c_bkd.shape[2])
        frames = x_bthwc.shape[1]

        def dense(features, name, init=xavier):
            return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)

        c_bkd, m_btm = c_bkd.astype(self.dtype), m_btm.astype(self.dtype)

        x_bthwc = x_bthwc.astype(self.dtype)
        if self.content_concat in ("channel", "reshape"):
            content = self._content_image(dense, c_bkd)
            content = jnp.broadcast_to(content, x_bthwc.shape)
            x_bthwc = jnp.concatenate([x_bthwc, content], axis=-1)
        x_btnd = dense(self.width, "patch_embed")(patchify(x_bthwc, self.patch))
        content_btnd = None
        if self.content_concat in ("patch", "token"):
            content_btnd = dense(self.width, "content")(c_bkd)[:, None]
        if self.content_concat == "patch":
            # A linear embedding of the concatenation is the sum of two embeddings; all frames share the content's.
            x_btnd += content_btnd
            content_btnd = None
        side = self.height // self.patch
        x_btnd += sincos_2d(self.width, side, side).astype(self.dtype)[None, None]
        if self.temporal_position == "sincos":
            x_btnd += sincos_1d(self.width, np.arange(frames)).astype(self.dtype)[None, :, None]
        if content_btnd is not None:
            content_btnd = jnp.broadcast_to(
                content_btnd, (*x_btnd.shape[:2], *content_btnd.shape[2:])
            )
            x_btnd = jnp.concatenate([x_btnd, content_btnd], axis=2)

        temb_btd = TimeEmbedding(self.width, self.dtype, name="time")(time_bt)
        cond_btd = nn.silu(temb_btd + dense(self.width, "motion")(m_btm))
        condition = tuple(x[:, :, None] for x in (temb_btd, m_btm, cond_btd))
        x_btnd = self._units(x_btnd, condition)

        name, fields = "final_conditioning", {"gates": False, "dtype": self.dtype}
        (norm,), _ = conditioning(self.motion_inject, condition, self.width, 1, name, **fields)
        x_btnd = group_norm(x_btnd[:, :, : self.tokens], self.groups, *norm)
        x_btnc = dense(self.patch**2 * self.channels, "final", zeros)(x_btnd)
        return unpatchify(x_btnc.astype(jnp.float32), self.patch, self.height)

    def _content_image(self, dense, c_bkd: jax.Array) -> jax.Array:
        """Returns the content as one latent frame, (B, 1, H, W, C)."""
        if self.content_concat == "reshape":
            return c_bkd.reshape(-1, 1, self.height, self.height, self.channels)
        c_bkd = dense(self.patch**2 * self.channels, "content")(c_bkd)
        c_bkd = jnp.broadcast_to(c_bkd, (c_bkd.shape[0], self.tokens, c_bkd.shape[2]))
        return unpatchify(c_bkd[:, None], self.patch, self.height)

    def _units(self, x_btnd: jax.Array, condition: tuple) -> jax.Array:
        marked = tuple(i in self.temporal_blocks for i in range(self.layers))
        period = next(
            p
            for p in range(1, self.layers + 1)
            if self.layers % p == 0 and marked == marked[:p] * (self.layers // p)
        )
        block = dict(
            width=self.width,
            heads=self.heads,
            mlp_dim=self.mlp_dim or 4 * self.width,
            groups=self.groups,
            inject=self.motion_inject,
            rope=self.temporal_position == "rope",
            gate_start=self.gate_start,
            dtype=self.dtype,
        )
        arguments = (marked[:period], self.placement == "alternate", self.temporal, block)
        loops = {"scan": self.scan, "remat": self.remat}
        return stack(Unit, arguments, self.layers // period, "unit", x_btnd, condition, **loops)
