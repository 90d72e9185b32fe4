"""MGME, WarpFace's multi-group motion encoder, and the algebra of its motion codes.

WarpFace, section 3.3.1 and Eq. 3, 4, 7, 8 (spec warpface.md, sections 3 and 4). The encoder turns a picture's latent
into two codes: theta_{s->r}, unconstrained, leads towards a canonical pose r, which is never seen; theta_{r->s} leads
back from that pose and is a combination of K groups of orthonormal vectors.

Shape suffixes: b batch, h w latent rows and columns, c latent channels, n tokens, d width, k groups,
i coefficients of a group (N_k), e dimensions of a group (D_k), m = k e the whole code.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike

from vidmotion.models import forms
from vidmotion.models.attention import attend
from vidmotion.models.dit import sincos_2d
from vidmotion.models.layers import attention, mlp

WIDE = ("tight_frame", "truncate")
TRANSFERS = ("difference", "sum")
# For kernels. With a fixed deviation of 0.02, the codes of a narrow encoder, and with them its gradients, would be
# about as small as Adam's epsilon.
_init = nn.initializers.lecun_normal()
_table = nn.initializers.truncated_normal(0.02)


class MotionCodes(NamedTuple):
    """The motion codes of a picture s, float32.

    Attributes:
      to_canonical_bm: theta_{s->r}, read from the reverse feature without a codebook.
      alpha_bki: the coefficients read from the forward feature.
      from_canonical_bm: theta_{r->s}, the groups' vectors combined with the coefficients (Eq. 7, 8).
    """

    to_canonical_bm: jax.Array
    alpha_bki: jax.Array
    from_canonical_bm: jax.Array


def orthogonal(codebook_kei: jax.Array, wide: str = "tight_frame") -> jax.Array:
    """Orthonormalises the vectors of each group: C_k^orth = QR(C_k) of Eq. 7, always in float32.

    The diagonal of R is made positive. Otherwise the sign of each vector, and with it the meaning of a coefficient,
    would depend on the device's linear algebra.

    Args:
      codebook_kei: (K, D_k, N_k), with full rank in each group. The gradient of a rank-deficient group is NaN, so the
        codebook must never start at zero.
      wide: what to do if N_k > D_k, where that many orthonormal vectors do not exist:
        ``tight_frame``, N_k vectors whose D_k rows are orthonormal; ``truncate``, only the first
        D_k vectors are kept.

    Returns:
      (K, D_k, N_k), orthonormal columns; with ``truncate`` (K, D_k, min(D_k, N_k)).

    Raises:
      ValueError: if `wide` is unknown.
    """
    if wide not in WIDE:
        raise ValueError(f"codebook_wide={wide!r}: choose {' or '.join(WIDE)}")
    codebook_kei = codebook_kei.astype(jnp.float32)
    _, size, count = codebook_kei.shape
    turned = count > size and wide == "tight_frame"
    if count > size and not turned:
        codebook_kei = codebook_kei[:, :, :size]
    q, r = jnp.linalg.qr(codebook_kei.swapaxes(1, 2) if turned else codebook_kei)
    diagonal = jnp.diagonal(r, axis1=1, axis2=2)
    q = q * jnp.where(diagonal < 0, -1.0, 1.0)[:, None, :]
    return q.swapaxes(1, 2) if turned else q


def transfer(source: MotionCodes, driving: MotionCodes, how: str = "difference") -> jax.Array:
    """Returns the code theta_{s->d} of the motion from source to driving picture, (b, m).

    Args:
      source, driving: the codes of the two pictures.
      how: ``difference``, theta_{r->d} - theta_{r->s} (Eq. 4), which is zero for s = d and antisymmetric; or
        ``sum``, theta_{s->r} + theta_{r->d}, which equals the difference where the symmetry of Eq. 13 holds.

    Raises:
      ValueError: if `how` is unknown.
    """
    if how == "difference":
        return driving.from_canonical_bm - source.from_canonical_bm
    if how == "sum":
        return source.to_canonical_bm + driving.from_canonical_bm
    raise ValueError(f"transfer={how!r}: choose {' or '.join(TRANSFERS)}")


class Block(nn.Module):
    """A transformer block: pre-norm self-attention and a GELU feed-forward layer of ratio 4, each with a residual."""

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_bnd: jax.Array) -> jax.Array:
        dense = functools.partial(nn.Dense, kernel_init=_init, dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        y = norm(name="attention_norm")(x_bnd)
        split = functools.partial(forms.Split, kernel_init=_init, dtype=self.dtype)
        x_bnd = x_bnd + attention(y, heads=self.heads, dense=dense, split=split, attend=attend)
        y = norm(name="mlp_norm")(x_bnd)
        return x_bnd + mlp(y, 4 * x_bnd.shape[-1], dense=dense)


class GroupHead(nn.Module):
    """A two-layer perceptron for each group of channels, all of them computed as one batched product.

    Attributes:
      groups: K, the number of groups.
      hidden: the hidden width of each perceptron; not in paper.
      features: the number of outputs of each group.
    """

    groups: int
    hidden: int
    features: int

    @nn.compact
    def __call__(self, feature_bd: jax.Array) -> jax.Array:
        """(b, d) -> (b, K, features), float32."""
        x_bkd = rearrange(feature_bd.astype(jnp.float32), "b (k d) -> b k d", k=self.groups)
        for name, features in (("in", self.hidden), ("out", self.features)):
            init = nn.initializers.lecun_normal(batch_axis=(0,))
            kernel = self.param(f"{name}_kernel", init, (self.groups, x_bkd.shape[-1], features))
            bias = self.param(f"{name}_bias", nn.initializers.zeros, (self.groups, features))
            x_bkd = jnp.einsum("bkd,kdf->bkf", x_bkd, kernel) + bias[None]
            x_bkd = nn.gelu(x_bkd) if name == "in" else x_bkd
        return x_bkd


class MGME(nn.Module):
    """The multi-group motion encoder: a vision transformer on latents with two read-out tokens and group heads (3.3.1).

    We take the paper's "zero-initialised" to mean "without pretrained weights" (spec 3.4), since weights of zero could
    not learn. The transformer's blocks have 4.74M parameters at the defaults.

    Attributes:
      side: the number of rows, and of columns, of a latent.
      patch: the side of a token in latent pixels; not in paper.
      depth, width: the number of layers and the hidden size of the transformer.
      heads: the number of heads of the attention; 0 means one per 64 channels. Not in paper.
      groups, basis, size: K, N_k and D_k.
      hidden: the hidden width of the group heads; not in paper.
      wide: see `orthogonal`.
      dtype: the dtype of the transformer; group heads, codebooks and codes are float32.

    Raises:
      ValueError: when it is bound, if the sizes do not fit together.
    """

    side: int = 32
    patch: int = 2
    depth: int = 6
    width: int = 256
    heads: int = 0
    groups: int = 4
    basis: int = 128
    size: int = 256
    hidden: int = 256
    wide: str = "tight_frame"
    dtype: DTypeLike = jnp.float32

    def setup(self):
        heads = self.heads or max(1, self.width // 64)
        if self.width % heads or self.width % self.groups:
            raise ValueError(
                f"MGME: width={self.width} must be divisible by heads={heads} and by groups={self.groups}"
            )
        if self.side % self.patch:
            raise ValueError(
                f"MGME: patches of {self.patch} do not divide a latent of {self.side}x{self.side}"
            )
        self.embed = nn.Conv(
            self.width,
            (self.patch, self.patch),
            strides=self.patch,
            padding="VALID",
            kernel_init=_init,
            dtype=self.dtype,
        )
        self.blocks = [Block(heads, self.dtype) for _ in range(self.depth)]
        self.final_norm = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)
        self.reverse_head = GroupHead(self.groups, self.hidden, self.size)
        self.forward_head = GroupHead(self.groups, self.hidden, self.coefficients)
        self.codebook = self.param(
            "codebook", nn.initializers.normal(1.0), (self.groups, self.size, self.basis)
        )
        self.readout = self.param("readout", _table, (2, self.width))
        self.position = self.param("position", self._places)

    def _places(self, key: jax.Array) -> jax.Array:
        """Returns the start of the learnt position table, (2 + tokens, d): sines and cosines of row and column.

        The usual table of small random numbers is drowned by the patches' embeddings: the code would hardly change if
        all patches changed places, so the position of the face could not be learnt from the first step on.
        """
        side = self.side // self.patch
        reads = _table(key, (2, self.width), jnp.float32)
        return jnp.concatenate([reads, sincos_2d(self.width, side, side)])

    @property
    def coefficients(self) -> int:
        """The number of coefficients of a group: N_k, or D_k if more vectors are truncated to that."""
        return min(self.basis, self.size) if self.wide == "truncate" else self.basis

    def __call__(self, z_bhwc: jax.Array) -> MotionCodes:
        """Encodes pictures.

        Args:
          z_bhwc: the latents (b, side, side, c), scaled as the denoiser's latents are.

        Returns:
          The codes of each picture.

        Raises:
          ValueError: if the latents have another size.
        """
        if z_bhwc.shape[1:3] != (self.side, self.side):
            raise ValueError(
                f"MGME: latents must be {self.side}x{self.side}, got "
                f"{z_bhwc.shape[1]}x{z_bhwc.shape[2]}"
            )
        x = rearrange(self.embed(z_bhwc), "b h w d -> b (h w) d")
        reads = jnp.broadcast_to(self.readout[None], (x.shape[0], *self.readout.shape))
        x = jnp.concatenate([reads.astype(x.dtype), x], axis=1)
        x = x + self.position[None].astype(x.dtype)
        for block in self.blocks:
            x = block(x)
        reverse, forward = jnp.moveaxis(self.final_norm(x[:, :2]), 1, 0)
        alpha_bki = self.forward_head(forward)
        return MotionCodes(
            rearrange(self.reverse_head(reverse), "b k e -> b (k e)"),
            alpha_bki,
            self.combine(alpha_bki),
        )

    def basis_kei(self) -> jax.Array:
        """Returns the orthonormal vectors of every group, (K, D_k, coefficients); one call per video is enough."""
        return orthogonal(self.codebook, self.wide)

    def combine(self, alpha_bki: jax.Array) -> jax.Array:
        """Combines the groups' vectors by Eq. 7 and 8: coefficients (b, K, coefficients) -> theta (b, m)."""
        g_bke = jnp.einsum("kei,bki->bke", self.basis_kei(), alpha_bki)
        return rearrange(g_bke, "b k e -> b (k e)")
