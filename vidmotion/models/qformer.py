"""The Q-Former: learned queries that read a sequence (Li et al., arXiv 2301.12597).

As VidTwin uses it (spec vidtwin.md, section 2.1): post-norm, without positions, cross-attention in
every second layer, exact GELU.

Shape suffixes: b batch, q queries, l tokens that are read, c width of a query, n heads, d width of
one head.
"""

import dataclasses
import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vidmotion.models.layers import attention, mlp

EPSILON = 1e-12  # of every LayerNorm
BERT = nn.initializers.normal(0.02)  # how kernels start in the released code
SHARPNESS = (
    2.0  # of queries that begin at times of their own: times the width of a head's root, a logit
)


def time_code(frames: int, width: int) -> np.ndarray:
    """(frames, width) codes of the times of frames, orthogonal where `frames` divides `width`.

    Row t is the orthogonal cosine basis (DCT-II) at t, repeated over the channels with alternating signs, so that a
    layer norm finds a mean of 0 and takes nothing away; its mean square is 1.
    """
    t, (repeat, j) = np.arange(frames)[:, None], np.divmod(np.arange(width)[None], frames)
    scale = np.where(j == 0, 1.0, np.sqrt(2.0)) * (-1.0) ** repeat
    return (scale * np.cos(np.pi * (t + 0.5) * j / frames)).astype(np.float32)


def _own_times(frames: int, queries: int, width: int, memory_width: int) -> dict[str, np.ndarray]:
    """How the queries and the kernels of the first cross-attention begin, so that each query looks at its own time.

    The kernel of the keys takes the code of a time in `memory_width` channels to that in `width` channels, and nearly
    nothing else.
    """
    code = time_code(frames, width)
    at = (np.arange(queries) + 0.5) * frames / queries - 0.5
    columns = [np.interp(at, np.arange(frames), column) for column in code.T]
    return {
        "queries": np.stack(columns, axis=1),
        "query": SHARPNESS * np.eye(width),
        "key": time_code(frames, memory_width).T @ code / memory_width,
    }


def _constant(value: np.ndarray) -> nn.initializers.Initializer:
    return lambda key, shape, dtype=jnp.float32: jnp.asarray(value, dtype).reshape(shape)


class Attention(nn.Module):
    """Queries attend to `memory`; width and heads are the queries'.

    Attributes:
      heads: number of heads; divides the width.
      dropout: rate, on the attention weights.
      dtype: the dtype of the matrix products.
      kernel_init: the initializer of the kernels of query, key and value.
      out_init: the initializer of the output layer's kernel.
      other_init: of the kernels of query, key and value that begin otherwise, by name.
    """

    heads: int
    dropout: float
    dtype: DTypeLike
    kernel_init: nn.initializers.Initializer = BERT
    out_init: nn.initializers.Initializer = BERT
    other_init: Mapping[str, nn.initializers.Initializer] = dataclasses.field(default_factory=dict)

    @nn.compact
    def __call__(self, x_bqc: jax.Array, memory_blc: jax.Array, deterministic: bool) -> jax.Array:
        """(b, q, c), (b, l, any width) -> (b, q, c)."""
        # Not jax.nn's: that one cannot drop attention weights. The softmax is float32 here as well.
        attend = functools.partial(
            nn.dot_product_attention,
            broadcast_dropout=False,
            dropout_rng=None if deterministic else self.make_rng("dropout"),
            dropout_rate=self.dropout,
            deterministic=deterministic,
            force_fp32_for_softmax=True,
        )

        def dense(features: int, name: str) -> nn.Dense:
            init = self.other_init.get(name, self.kernel_init)
            return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)

        out = functools.partial(nn.Dense, kernel_init=self.out_init, dtype=self.dtype)
        return attention(x_bqc, memory_blc, heads=self.heads, dense=dense, out=out, attend=attend)


class Layer(nn.Module):
    """A layer of the Q-Former: self-attention, cross-attention if `cross`, feed-forward; each added and then normed.

    The kernels of the cross-attention begin as `cross_init` says by name, all others by `kernel_init`.
    """

    heads: int
    mlp_dim: int
    cross: bool
    dropout: float
    kernel_init: nn.initializers.Initializer
    cross_init: Mapping[str, nn.initializers.Initializer] = dataclasses.field(default_factory=dict)

    @nn.compact
    def __call__(self, x_bqc: jax.Array, memory_blc: jax.Array, deterministic: bool) -> jax.Array:
        """(b, q, c), (b, l, any width) -> (b, q, c)."""
        init = self.kernel_init
        dense = functools.partial(nn.Dense, kernel_init=init, dtype=jnp.float32)

        def add(name: str, x: jax.Array, y: jax.Array) -> jax.Array:
            y = nn.Dropout(self.dropout, deterministic=deterministic, name=f"{name}_dropout")(y)
            return layer_norm(f"{name}_norm")(x + y)

        attend = functools.partial(Attention, self.heads, self.dropout, jnp.float32, init)
        # Queries that begin with an aim of their own go to the cross-attention as they are.
        self_out = nn.initializers.zeros if self.cross_init else init
        y = attend(self_out, name="self")(x_bqc, x_bqc, deterministic)
        x_bqc = add("self", x_bqc, y)
        if self.cross:
            y = attend(init, self.cross_init, name="cross")(x_bqc, memory_blc, deterministic)
            x_bqc = add("cross", x_bqc, y)
        exact = functools.partial(nn.gelu, approximate=False)
        return add("mlp", x_bqc, mlp(x_bqc, self.mlp_dim, dense=dense, activation=exact))


class QFormer(nn.Module):
    """Sequence (b, l, any width) -> what the queries found, (b, queries, width).

    Everything is float32, as in the released code, whose autocast leaves it alone (section 1.5).
    Dropout acts on the normed queries, on every branch and on the attention weights; it needs the
    rng "dropout" unless `deterministic`.

    Attributes:
      queries: number of queries; they are learned and shared by the batch.
      width, layers, heads, mlp_dim: sizes; layers 0, 2, 4, ... read the sequence.
      dropout: rate.
      kernel_init: the initializer of every kernel.
      times: the tokens are frames in their order, each of which has its `time_code` added, and every query begins by
        looking at a time of its own. Otherwise a query can tell frames apart only by what they show.
    """

    queries: int
    width: int = 64
    layers: int = 6
    heads: int = 8
    mlp_dim: int = 768
    dropout: float = 0.1
    kernel_init: nn.initializers.Initializer = BERT
    times: bool = False

    @nn.compact
    def __call__(self, memory_blc: jax.Array, deterministic: bool = True) -> jax.Array:
        """See the class."""
        own = {}
        if self.times:
            frames, width = memory_blc.shape[1:]
            own = _own_times(frames, self.queries, self.width, width)
            own = {name: _constant(value) for name, value in own.items()}
            memory_blc = memory_blc + time_code(frames, width)[None]
        begin = own.pop("queries", nn.initializers.normal(1.0))
        query_qc = self.param("queries", begin, (self.queries, self.width))
        x = layer_norm("norm")(query_qc[None])
        x = jnp.broadcast_to(x, (memory_blc.shape[0], *query_qc.shape))
        x = nn.Dropout(self.dropout, deterministic=deterministic, name="dropout")(x)
        for i in range(self.layers):
            layer = Layer(
                self.heads,
                self.mlp_dim,
                i % 2 == 0,
                self.dropout,
                self.kernel_init,
                own if i == 0 else {},
                name=f"layer_{i}",
            )
            x = layer(x, memory_blc, deterministic)
        return x


def layer_norm(name: str) -> nn.LayerNorm:
    """LayerNorm with affine and two-pass statistics, in float32."""
    return nn.LayerNorm(epsilon=EPSILON, dtype=jnp.float32, use_fast_variance=False, name=name)
