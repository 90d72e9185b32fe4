"""The T5 v1.0 encoder on embeddings (Raffel et al., arXiv 1910.10683, section 2.1).

BCD reads a clip with it (spec bcd.md, 3.3): learned content queries and one token per frame go in,
the same number of features comes out. There is no vocabulary; the caller makes the embeddings.

Shape suffixes: b batch, n tokens, d width, h heads, k width of one head.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vidmotion.models.attention import attend
from vidmotion.models.layers import attention, mlp

# BCD, Tables A4 and A5 (head_dim = width / heads). Use it as T5Encoder(**SIZES["bcd_lrs3"]).
SIZES = {
    "bcd_lrs3": dict(width=512, layers=12, heads=8, head_dim=64, mlp_dim=2048),
    "bcd_sprites": dict(width=384, layers=12, heads=6, head_dim=64, mlp_dim=1536),
}


def relative_buckets(distance: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
    """Returns the bucket of each signed distance in tokens (key position - query position).

    Half of the buckets serve keys at or before the query, the other half keys after it. In each of these halves, half
    of the buckets hold one distance each. The others grow logarithmically up to `max_distance`, beyond
    which all distances share the last bucket (arXiv 1910.10683, section 2.1).

    Args:
      distance: the distances, integers of any shape.
      buckets: the number of buckets; a multiple of 4.
      max_distance: the distance in tokens from which the last bucket is used; above buckets / 4.

    Returns:
      Integers in [0, buckets) with the shape of `distance`.

    Raises:
      ValueError: if `buckets` or `max_distance` is not as required.
    """
    if buckets % 4 or buckets <= 0 or max_distance <= buckets // 4:
        raise ValueError(
            f"T5 needs buckets in multiples of 4 and max_distance > buckets / 4; "
            f"got buckets={buckets}, max_distance={max_distance}"
        )
    half, exact = buckets // 2, buckets // 4
    away = np.abs(distance)
    growth = np.log(np.maximum(away, exact) / exact) / np.log(max_distance / exact)
    far = exact + (growth * (half - exact)).astype(np.int32)
    return np.where(distance > 0, half, 0) + np.where(away < exact, away, np.minimum(far, half - 1))


def _dense(features: int, stddev: float, dtype: DTypeLike, name: str) -> nn.Dense:
    init = nn.initializers.normal(stddev)
    return nn.Dense(features, use_bias=False, kernel_init=init, dtype=dtype, name=name)


class RelativeBias(nn.Module):
    """An attention bias looked up by the bucket of the relative position; one table serves all layers.

    `__call__(tokens)` returns float32 (heads, tokens, tokens), to be added to the logits.
    """

    width: int  # the encoder's width, which sets the scale of the initial table
    heads: int
    buckets: int
    max_distance: int

    @nn.compact
    def __call__(self, tokens: int) -> jax.Array:
        init = nn.initializers.normal(self.width**-0.5)
        table = self.param("table", init, (self.buckets, self.heads))
        distance = np.arange(1 - tokens, tokens)
        by_distance = table[relative_buckets(distance, self.buckets, self.max_distance)]
        position = jnp.arange(tokens)
        index_nn = position[None, :] - position[:, None] + (tokens - 1)
        return by_distance[index_nn].transpose(2, 0, 1)


class Attention(nn.Module):
    """Full self-attention without biases and without the 1/sqrt(head_dim) scale.

    `__call__(x_bnd, bias_hnn, mask_bn)` takes a bias (h, n, n) float32 and a mask, bool (b, n) or None.
    The softmax is computed in float32; there is no dropout on its weights.
    """

    heads: int
    head_dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x_bnd: jax.Array, bias_hnn: jax.Array, mask_bn: jax.Array | None
    ) -> jax.Array:
        width, inner = x_bnd.shape[-1], self.heads * self.head_dim

        def dense(features: int, name: str) -> nn.Dense:
            # The initial query kernel makes up for the missing scale of the logits.
            scale = width * self.head_dim if name == "query" else width
            return _dense(features, scale**-0.5, self.dtype, name)

        return attention(
            x_bnd,
            heads=self.heads,
            dense=dense,
            out=lambda features, name: _dense(features, inner**-0.5, self.dtype, name),
            width=inner,
            attend=lambda q, k, v: attend(q, k, v, mask_bn, bias_hls=bias_hnn),
        )


class Block(nn.Module):
    """A T5 block: pre-norm attention and ReLU feed-forward, each with a residual; (b, n, d) -> (b, n, d)."""

    heads: int
    head_dim: int
    mlp_dim: int
    dropout: float
    eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x_bnd: jax.Array, bias_hnn: jax.Array, mask_bn: jax.Array | None, deterministic: bool
    ) -> jax.Array:
        width = x_bnd.shape[-1]
        norm = functools.partial(nn.RMSNorm, epsilon=self.eps, dtype=self.dtype)
        drop = functools.partial(nn.Dropout, self.dropout, deterministic=deterministic)

        y = norm(name="attention_norm")(x_bnd)
        y = Attention(self.heads, self.head_dim, self.dtype, name="attention")(y, bias_hnn, mask_bn)
        x_bnd = x_bnd + drop(name="attention_dropout")(y)

        y = norm(name="mlp_norm")(x_bnd)
        y = mlp(
            y,
            self.mlp_dim,
            dense=lambda features, name: _dense(features, width**-0.5, self.dtype, name),
            out=lambda features, name: _dense(features, self.mlp_dim**-0.5, self.dtype, name),
            names=("wi", "wo"),
            activation=lambda y: drop(name="wi_dropout")(nn.relu(y)),
        )
        return x_bnd + drop(name="wo_dropout")(y)


class T5Encoder(nn.Module):
    """The T5 v1.0 encoder stack over embeddings (arXiv 1910.10683, section 2.1; spec bcd.md, 3.3).

    Parameters are float32; the residual stream and all matrix products are in `dtype`, softmax and
    norm statistics in float32. Dropout needs the rng "dropout" unless `deterministic`; it acts on
    the input, on both residual branches, inside the feed-forward and on the output.

    Attributes:
      width: the channels of a token.
      layers: the number of blocks, named layer_0, layer_1, ...
      heads, head_dim: the number of attention heads and the channels of each; their product may differ from width.
      mlp_dim: the hidden channels of the feed-forward.
      buckets, max_distance: see `relative_buckets`.
      dropout: the dropout rate.
      eps: the epsilon of every RMSNorm.
      dtype: the dtype of the computation and of the result.
      remat: whether to recompute each block in the backward pass instead of keeping its activations.
    """

    width: int
    layers: int
    heads: int
    head_dim: int
    mlp_dim: int
    buckets: int = 32
    max_distance: int = 128
    dropout: float = 0.0
    eps: float = 1e-6
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x_bnd: jax.Array, mask_bn: jax.Array | None = None, deterministic: bool = True
    ) -> jax.Array:
        """Encodes a batch of token sequences; every token attends to every valid token.

        Args:
          x_bnd: the embeddings (batch, tokens, width), for any number of tokens.
          mask_bn: bool (batch, tokens), False where a token is padding, to which no token may attend;
            None means that all are valid. The features at padding have no meaning.
          deterministic: switches dropout off.

        Returns:
          Features (batch, tokens, width) of `dtype`, after the final RMSNorm.

        Raises:
          ValueError: if the shapes of `x_bnd` or `mask_bn` do not fit, or the buckets are not as required.
        """
        if x_bnd.ndim != 3 or x_bnd.shape[-1] != self.width:
            raise ValueError(
                f"T5Encoder: x must be (batch, tokens, {self.width}), got {x_bnd.shape}"
            )
        if mask_bn is not None and mask_bn.shape != x_bnd.shape[:2]:
            raise ValueError(
                f"T5Encoder: mask must be (batch, tokens) = {x_bnd.shape[:2]}, got {mask_bn.shape}"
            )
        drop = functools.partial(nn.Dropout, self.dropout, deterministic=deterministic)
        block = nn.remat(Block, static_argnums=(4,)) if self.remat else Block

        bias_hnn = RelativeBias(
            self.width, self.heads, self.buckets, self.max_distance, name="relative_bias"
        )(x_bnd.shape[1])
        x_bnd = drop(name="input_dropout")(x_bnd.astype(self.dtype))
        for i in range(self.layers):
            x_bnd = block(
                self.heads,
                self.head_dim,
                self.mlp_dim,
                self.dropout,
                self.eps,
                self.dtype,
                name=f"layer_{i}",
            )(x_bnd, bias_hnn, mask_bn, deterministic)
        x_bnd = nn.RMSNorm(epsilon=self.eps, dtype=self.dtype, name="final_norm")(x_bnd)
        return drop(name="output_dropout")(x_bnd)
