"""The transformer encoder of "Attention is all you need" (Vaswani et al., arXiv:1706.03762), nothing added.

It has post-norm, ReLU and biases everywhere, like the ready-made encoders of common libraries. VidTwin uses it to
measure the cost of a generator on its latents (spec vidtwin.md, section 11). Shape suffixes: b batch, l tokens,
c channels.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vidmotion.models.layers import attention, mlp


class EncoderLayer(nn.Module):
    """A transformer layer: self-attention and feed-forward layer, each added to its input and then normed.

    Attributes:
      heads: the number of heads; divides the width.
      mlp_dim: the width of the feed-forward layer.
      dtype: the dtype of the matrix products; softmax and norm statistics are float32.
    """

    heads: int
    mlp_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_blc: jax.Array) -> jax.Array:
        """(b, l, c) -> (b, l, c)."""
        dense = functools.partial(nn.Dense, dtype=self.dtype)

        def norm(name: str, x: jax.Array) -> jax.Array:
            return nn.LayerNorm(1e-5, dtype=self.dtype, use_fast_variance=False, name=name)(x)

        x_blc = norm("attention_norm", x_blc + attention(x_blc, heads=self.heads, dense=dense))
        y_blc = mlp(x_blc, self.mlp_dim, dense=dense, activation=nn.relu)
        return norm("mlp_norm", x_blc + y_blc)


class TransformerEncoder(nn.Module):
    """A stack of encoder layers without positions, embedding, or norm at the end.

    Attributes:
      layers: the number of layers.
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
