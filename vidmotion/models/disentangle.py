"""BCD's disentangling encoder: one T5 pass gives content tokens and per-frame motion (spec 3).

Shape suffixes: b batch, t frames, k content tokens, n = k + t sequence, d encoder width, m motion feature;
bthwc is a latent video.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vidmotion.models.dit import patchify
from vidmotion.models.t5 import T5Encoder

STEMS = ("linear", "conv")
QUERIES = ("learned", "patches")


class FrameStem(nn.Module):
    """Turns each latent frame into exactly one token of the sequence.

    ``linear`` flattens the frame and applies one linear map; ``conv`` runs three stride-2 3x3 convolutions first, for
    data where one linear map underfits.
    """

    kind: str
    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z_bthwc: jax.Array) -> jax.Array:
        """(B, T, H, W, C) -> (B, T, width).

        Raises:
          ValueError: if `kind` is unknown.
        """
        if self.kind not in STEMS:
            raise ValueError(f"frame stem {self.kind!r}: choose {' or '.join(STEMS)}")
        batch, frames = z_bthwc.shape[:2]
        x = z_bthwc.reshape(batch * frames, *z_bthwc.shape[2:]).astype(self.dtype)
        if self.kind == "conv":
            for i, features in enumerate((64, 128, 256)):
                x = nn.Conv(
                    features, (3, 3), (2, 2), padding=1, dtype=self.dtype, name=f"conv_{i}"
                )(x)
                x = nn.silu(x)
        x = nn.Dense(self.width, dtype=self.dtype, name="out")(x.reshape(batch * frames, -1))
        return x.reshape(batch, frames, self.width)


class DisentanglingEncoder(nn.Module):
    """Separates a clip into content and motion by one pass of T5 over the sequence [q_1..q_K ; f_1..f_T].

    The first K outputs give the content c, the other T the motion m. Gaps 1 and 2 of the gaps register (spec bcd.md,
    section 11), which the paper leaves open, are fields of this class.

    Attributes:
      layers, width, heads, mlp_dim: the sizes of the T5 stack (Tables A4, A5); the head width is width / heads.
      motion_width: C_m.
      content_tokens: K. Not in paper; 64 is one token per patch of the denoiser's 8x8 grid.
      content_width: C_c. Not in paper; 0 takes `width`.
      frame_stem: how a frame becomes one token, see `FrameStem`. Not in paper.
      queries: ``learned``: the queries are learned, and content gets information about a frame only through the frame's
        single token. ``patches``: a linear map of patch n of the first frame is added to the learned query n; K is then
        a square number. Not in paper.
      remat, dtype: see `T5Encoder`.
    """

    layers: int
    width: int
    heads: int
    mlp_dim: int
    motion_width: int
    content_tokens: int = 64
    content_width: int = 0
    frame_stem: str = "linear"
    queries: str = "learned"
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def content_shape(self) -> tuple[int, int]:
        """The shape of a clip's content, (K, C_c)."""
        return self.content_tokens, self.content_width or self.width

    @nn.compact
    def __call__(self, z_bthwc: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Latents (B, T, H, W, C), for any T -> content (B, K, C_c) and motion (B, T, C_m), float32."""
        f_btd = FrameStem(self.frame_stem, self.width, self.dtype, name="stem")(z_bthwc)
        q_kd = self.param(
            "queries", nn.initializers.normal(0.02), (self.content_tokens, self.width)
        )
        q_bkd = jnp.broadcast_to(q_kd.astype(self.dtype)[None], (f_btd.shape[0], *q_kd.shape))
        if self.queries == "patches":
            patch = z_bthwc.shape[2] // math.isqrt(self.content_tokens)
            first_bkp = patchify(z_bthwc[:, :1], patch)[:, 0].astype(self.dtype)
            q_bkd += nn.Dense(self.width, dtype=self.dtype, name="patches")(first_bkp)
        x_bnd = T5Encoder(
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            head_dim=self.width // self.heads,
            mlp_dim=self.mlp_dim,
            remat=self.remat,
            dtype=self.dtype,
            name="t5",
        )(jnp.concatenate([q_bkd, f_btd], axis=1))
        c_bkd = nn.Dense(self.content_shape[1], dtype=self.dtype, name="content")(
            x_bnd[:, : self.content_tokens]
        )
        m_btm = nn.Dense(self.motion_width, use_bias=False, dtype=self.dtype, name="motion")(
            x_bnd[:, self.content_tokens :]
        )
        return c_bkd.astype(jnp.float32), m_btm.astype(jnp.float32)
