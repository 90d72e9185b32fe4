"""A transformer that denoises VidTwin's two latents at once, given a class (spec vidtwin.md, section 12).

    patches = Patches((16, 7, 7, 4), (2, 2, 2)), Patches((1, 16, 14, 8), (1, 2, 2))
    tokens = [part.split(z) for part, z in zip(patches, (structure, dynamics))]  # 128 and 56 of them
    clean = LatentDiT(...).apply(variables, tokens, time, label)
    structure, dynamics = (part.join(x) for part, x in zip(patches, clean))

The blocks are DiT's, with adaLN-Zero conditioned on the time alone (Peebles and Xie 2022). The class enters by
cross-attention, as the paper says.

Shape suffixes: b batch, n tokens, w numbers of a token, d width, t h w c of a latent seen as a video.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike

from vidmotion.models import qformer, spacetime
from vidmotion.models.dit import TimeEmbedding
from vidmotion.models.layers import AdaLN, mlp, plain_norm, stack

LATENTS = ("structure", "dynamics")
xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros
small = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class Patches:
    """Cuts a latent, seen as a video, into blocks that are tokens, and joins tokens to the latent again.

    Attributes:
      shape: the latent's shape as a video, (t, h, w, c). Structure is a video of n_q frames; dynamics is one frame of
        f rows and w_D + h_D columns.
      patch: the frames, rows and columns of a block. Where they do not divide the latent, it is filled up with zeros
        at the end; `join` drops these zeros again.
    """

    shape: tuple[int, int, int, int]
    patch: tuple[int, int, int]

    @property
    def grid(self) -> tuple[int, int, int]:
        """The numbers of blocks along t, h and w."""
        return tuple(-(-size // p) for size, p in zip(self.shape, self.patch))

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return math.prod(self.grid)

    @property
    def width(self) -> int:
        """How many numbers a token has."""
        return math.prod(self.patch) * self.shape[3]

    @property
    def numbers(self) -> int:
        """How many numbers the latent has, without the zeros that fill it up."""
        return math.prod(self.shape)

    def split(self, latent: jax.Array) -> jax.Array:
        """Cuts latents (b, ...), with `numbers` numbers each in the order of `shape`, into tokens (b, n, w)."""
        x_bthwc = latent.reshape(-1, *self.shape)
        room = [(0, n * p - size) for size, n, p in zip(self.shape, self.grid, self.patch)]
        x_bthwc = jnp.pad(x_bthwc, ((0, 0), *room, (0, 0)))
        i, j, k = self.patch
        return rearrange(x_bthwc, "b (t i) (h j) (w k) c -> b (t h w) (i j k c)", i=i, j=j, k=k)

    def join(self, tokens_bnw: jax.Array) -> jax.Array:
        """Undoes `split`: tokens (b, n, w) -> latents (b, t, h, w, c)."""
        (t, h, w), (i, j, k) = self.grid, self.patch
        x_bthwc = rearrange(
            tokens_bnw,
            "b (t h w) (i j k c) -> b (t i) (h j) (w k) c",
            t=t,
            h=h,
            w=w,
            i=i,
            j=j,
            k=k,
        )
        frames, rows, columns, _ = self.shape
        return x_bthwc[:, :frames, :rows, :columns]

    def mask(self) -> np.ndarray:
        """Returns bool (n, w): True where a number of a token belongs to the latent, False where it only fills up."""
        return np.asarray(self.split(np.ones((1, *self.shape), bool))[0])


class Block(nn.Module):
    """A block of self-attention, cross-attention to the class, and MLP, each added to the residual stream.

    The time modulates and gates the self-attention and the MLP. Gates and the cross-attention's output layer
    start at zero, so that a fresh block is the identity.

    Attributes:
      heads: the number of heads of both attentions.
      mlp_ratio: the hidden width of the MLP over the width of the tokens.
      dtype: the dtype of the matrix products; the residual stream is float32.
    """

    heads: int
    mlp_ratio: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x_bnd: jax.Array, cond_b1d: jax.Array, class_bkd: jax.Array
    ) -> tuple[jax.Array, None]:
        """Runs the block.

        Args:
          x_bnd: the residual stream, float32.
          cond_b1d: the SiLU of the time's embedding.
          class_bkd: the vector of the class, (b, 1, any width).

        Returns:
          The residual stream and None, the pair that `nn.scan` expects.
        """
        width = x_bnd.shape[-1]
        fields = {"gates": True, "dtype": self.dtype, "name": "conditioning"}
        norms, gates = AdaLN(width, 2, **fields)(cond_b1d)
        dense = functools.partial(nn.Dense, kernel_init=xavier, dtype=self.dtype)

        attend = spacetime.Attention(self.heads, False, self.dtype, name="attention")
        look = qformer.Attention(self.heads, 0.0, self.dtype, out_init=zeros, name="class")
        y_b1nd = attend(plain_norm(x_bnd, *norms[0])[:, None])
        x_bnd = x_bnd + gates[0] * y_b1nd[:, 0]
        x_bnd = x_bnd + look(plain_norm(x_bnd), class_bkd, True)
        y_bnd = plain_norm(x_bnd, *norms[1])
        y_bnd = mlp(y_bnd, self.mlp_ratio * width, dense=dense, names=("in", "out"))
        return x_bnd + gates[1] * y_bnd, None


class LatentDiT(nn.Module):
    """Predicts the clean tokens of both latents from noisy tokens, the time and the class: f(x_t, t, c) (section 12).

    There is one class token, so the softmax of the cross-attention is over one key: every latent token is given the
    same vector, and queries and keys get no gradient. Their layers exist because the paper says
    cross-attention; a text encoder's many tokens would use them.

    Attributes:
      patches: how structure and dynamics are cut into tokens.
      classes: the number of classes; the label `classes` stands for no class.
      class_width: the width of the class vector.
      width, layers, heads, mlp_ratio: the transformer's sizes.
      dtype: the dtype of the matrix products; parameters, residual stream and result are float32.
      remat: whether to recompute each block in the backward pass instead of keeping its activations.
      scan: whether to compile one block for all; their parameters are then stacked under `blocks`.
    """

    patches: tuple[Patches, Patches]
    classes: int
    class_width: int
    width: int
    layers: int
    heads: int
    mlp_ratio: int = 4
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    scan: bool = False

    @nn.compact
    def __call__(
        self, tokens: tuple[jax.Array, jax.Array], time_b: jax.Array, label_b: jax.Array
    ) -> list[jax.Array]:
        """Runs the network.

        Args:
          tokens: the noisy structure and dynamics as `Patches.split` returns them, (B, N, W) each.
          time_b: (B,) diffusion time, 0 to 1000.
          label_b: (B,) int, 0 to `classes`.

        Returns:
          The clean tokens, float32, with the same shapes.
        """

        def dense(features, name, init=xavier):
            return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)

        counts = [part.tokens for part in self.patches]
        kinds = self.param("kind", small, (len(counts), self.width))
        places = self.param("position", small, (sum(counts), self.width))
        embedded = [
            dense(self.width, f"embed_{name}")(x_bnw).astype(jnp.float32) + kinds[i][None, None]
            for i, (name, x_bnw) in enumerate(zip(LATENTS, tokens))
        ]
        x_bnd = jnp.concatenate(embedded, axis=1) + places[None]

        time = TimeEmbedding(self.width, self.dtype, name="time")(time_b[:, None])
        cond_b1d = nn.silu(time)
        # Not in paper: the vectors have variance 1, so that classes differ from the start.
        vectors = self.param(
            "classes", nn.initializers.normal(1.0), (self.classes + 1, self.class_width)
        )
        class_bkd = vectors[label_b][:, None]
        size = (self.heads, self.mlp_ratio, self.dtype)
        loops = {"scan": self.scan, "remat": self.remat}
        x_bnd = stack(Block, size, self.layers, "block", x_bnd, (cond_b1d, class_bkd), **loops)

        fields = {"gates": False, "dtype": self.dtype, "name": "final_conditioning"}
        (norm,), _ = AdaLN(self.width, 1, **fields)(cond_b1d)
        x_bnd = plain_norm(x_bnd, *norm)
        parts = jnp.split(x_bnd, counts[:1], axis=1)
        return [
            dense(patches.width, f"final_{name}", zeros)(part).astype(jnp.float32)
            for name, patches, part in zip(LATENTS, self.patches, parts)
        ]
