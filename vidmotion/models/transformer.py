"""The transformer encoder of "Attention is all you need" (Vaswani et al., arXiv:1706.03762), nothing added.

Post-norm, ReLU, biases everywhere, as libraries have it in stock. VidTwin measures with it what a generator on
its latents would cost (spec vidtwin.md, section 11). Shape suffixes: b batch, l tokens, c channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward layer, each added and then normed.

    Attributes:
      heads: number of heads; divides the width.
      mlp_dim: width of the feed-forward layer.
      dtype: of the matrix products; softmax and norm statistics are float32.
    """

    heads: int
    mlp_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_blc: jax.Array) -> jax.Array:
        """(b, l, c) -> (b, l, c)."""
        *rows, width = x_blc.shape

        def norm(name: str, x: jax.Array) -> jax.Array:
            return nn.LayerNorm(1e-5, dtype=self.dtype, use_fast_variance=False, name=name)(x)

        def dense(name: str, features: int, x: jax.Array) -> jax.Array:
            return nn.Dense(features, dtype=self.dtype, name=name)(x)

        q, k, v = (
            dense(name, width, x_blc).reshape(*rows, self.heads, width // self.heads)
            for name in ("query", "key", "value")
        )
        y_blc = jax.nn.dot_product_attention(q, k, v).reshape(x_blc.shape)
        x_blc = norm("attention_norm", x_blc + dense("out", width, y_blc))
        y_blc = dense("mlp_out", width, nn.relu(dense("mlp_in", self.mlp_dim, x_blc)))
        return norm("mlp_norm", x_blc + y_blc)


class TransformerEncoder(nn.Module):
    """Layers in a row; no positions, no embedding, no norm at the end.

    Attributes:
      layers: number of them.
      heads, mlp_dim, dtype: see `EncoderLayer`.
    """

    layers: int
    heads: int
    mlp_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_blc: jax.Array) -> jax.Array:
        """(b, l, c) -> (b, l, c)."""
        for i in range(self.layers):
            x_blc = EncoderLayer(self.heads, self.mlp_dim, self.dtype, name=f"layer_{i}")(x_blc)
        return x_blc
