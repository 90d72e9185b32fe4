"""The Q-Former: learned queries that read a sequence (Li et al., arXiv 2301.12597).

This is the form that VidTwin uses (spec vidtwin.md, section 2.1): post-norm, without positions, with
cross-attention in every second layer and the exact GELU.

Shape suffixes: b batch, q queries, l tokens of the sequence that is read, c width of a query, n heads, d width of
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

EPSILON = 1e-12  # for every LayerNorm
BERT = nn.initializers.normal(0.02)  # the initializer of kernels in the released code
SHARPNESS = 2.0  # scale of the first query kernel where each query begins at its own time


def time_code(frames: int, width: int) -> np.ndarray:
    """Returns codes (frames, width) of the times of frames, which are orthogonal if `frames` divides `width`.

    Row t is the orthogonal cosine basis (DCT-II) at t, repeated over the channels with alternating signs, so that its
    mean is about 0 and a layer norm keeps it; its mean square is 1.
    """
    t, (repeat, j) = np.arange(frames)[:, None], np.divmod(np.arange(width)[None], frames)
    scale = np.where(j == 0, 1.0, np.sqrt(2.0)) * (-1.0) ** repeat
    return (scale * np.cos(np.pi * (t + 0.5) * j / frames)).astype(np.float32)


def _own_times(frames: int, queries: int, width: int, memory_width: int) -> dict[str, np.ndarray]:
    """Returns initial queries and kernels of the first cross-attention with which each query looks at its own time.

    The key kernel maps the code of a time in `memory_width` channels to its code in `width` channels, and reads hardly
    anything else.
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
    """Multi-head attention of queries to a memory; the queries give the width.

    Attributes:
      heads: the number of heads; divides the width of the queries.
      dropout: the dropout rate of the attention weights.
      dtype: the dtype of the matrix products.
      kernel_init: the initializer of the kernels of query, key and value.
      out_init: the initializer of the output layer's kernel.
      other_init: initializers by name, for those of the kernels query, key and value that begin otherwise.
    """

    heads: int
    dropout: float
    dtype: DTypeLike
    kernel_init: nn.initializers.Initializer = BERT
    out_init: nn.initializers.Initializer = BERT
    other_init: Mapping[str, nn.initializers.Initializer] = dataclasses.field(default_factory=dict)

    @nn.compact
    def __call__(self, x_bqc: jax.Array, memory_blc: jax.Array, deterministic: bool) -> jax.Array:
        """Queries (b, q, c) and memory (b, l, any width) -> (b, q, c)."""
        # jax.nn.dot_product_attention cannot drop attention weights. The softmax is float32 in both.
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
    """A layer of the Q-Former: self-attention, cross-attention if `cross`, feed-forward; each added and then normed."""

    heads: int
    mlp_dim: int
    cross: bool
    dropout: float
    kernel_init: nn.initializers.Initializer
    cross_init: Mapping[str, nn.initializers.Initializer] = dataclasses.field(default_factory=dict)

    @nn.compact
    def __call__(self, x_bqc: jax.Array, memory_blc: jax.Array, deterministic: bool) -> jax.Array:
        """Queries (b, q, c) and memory (b, l, any width) -> (b, q, c)."""
        init = self.kernel_init
        dense = functools.partial(nn.Dense, kernel_init=init, dtype=jnp.float32)

        def add(name: str, x: jax.Array, y: jax.Array) -> jax.Array:
            y = nn.Dropout(self.dropout, deterministic=deterministic, name=f"{name}_dropout")(y)
            return layer_norm(f"{name}_norm")(x + y)

        attend = functools.partial(Attention, self.heads, self.dropout, jnp.float32, init)
        # Queries that begin at their own times reach the cross-attention unchanged.
        self_out = nn.initializers.zeros if self.cross_init else init
        y = attend(self_out, name="self")(x_bqc, x_bqc, deterministic)
        x_bqc = add("self", x_bqc, y)
        if self.cross:
            y = attend(init, self.cross_init, name="cross")(x_bqc, memory_blc, deterministic)
            x_bqc = add("cross", x_bqc, y)
        exact = functools.partial(nn.gelu, approximate=False)
        return add("mlp", x_bqc, mlp(x_bqc, self.mlp_dim, dense=dense, activation=exact))


class QFormer(nn.Module):
    """Reads a sequence (b, l, any width) with learned queries, and returns the queries' outputs (b, queries, width).

    Everything is float32, as in the released code, where autocast does not cover it (section 1.5).
    Dropout acts on the normed queries, on every branch and on the attention weights; it needs the
    rng "dropout" unless `deterministic`.

    Attributes:
      queries: the number of queries; they are learned and shared by the batch.
      width, layers, heads, mlp_dim: the sizes of the network; layers 0, 2, 4, ... read the sequence.
      dropout: the dropout rate.
      kernel_init: the initializer of every kernel.
      times: whether the tokens are frames in order: then each has its `time_code` added, and every query begins by
        looking at a time of its own. Otherwise a query can tell frames apart only by their content.
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
        """Sequence (b, l, any width) -> (b, queries, width)."""
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
    """Makes a LayerNorm with scale and bias and two-pass statistics, in float32."""
    return nn.LayerNorm(epsilon=EPSILON, dtype=jnp.float32, use_fast_variance=False, name=name)
