"""The GPT-2 trunk on embeddings (Radford et al. 2019, section 2.3), with cached decoding.

The caller, for example `motion_gpt.MotionGPT`, embeds the inputs (content, motion, tokens) and maps the features to
outputs.

Shape suffixes: b batch, s new positions, t positions held by the cache, d width, h heads,
k width of one head, l layers.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vidmotion.models.layers import attention, mlp


class Cache(NamedTuple):
    """Keys and values of everything decoded so far, in arrays of fixed size.

    Each layer has its own array. With all layers in one array, XLA would copy all of it at every write, and decoding
    would take quadratic time.

    Attributes:
      keys_bthk, values_bthk: for each layer, (batch, capacity, heads, head width).
      length: the number of positions that are filled, an int32 scalar.
    """

    keys_bthk: tuple[jax.Array, ...]
    values_bthk: tuple[jax.Array, ...]
    length: jax.Array

    def write(self, layer: int, k_bshk: jax.Array, v_bshk: jax.Array) -> "Cache":
        """Returns the cache with new keys and values of one layer placed after the first `length` positions."""

        def placed(all_bthk, new_bshk):
            at = (0, self.length, 0, 0)
            new = jax.lax.dynamic_update_slice(all_bthk[layer], new_bshk, at)
            return (*all_bthk[:layer], new, *all_bthk[layer + 1 :])

        return self._replace(
            keys_bthk=placed(self.keys_bthk, k_bshk), values_bthk=placed(self.values_bthk, v_bshk)
        )


def _dense(stddev: float, dtype: DTypeLike) -> functools.partial:
    return functools.partial(nn.Dense, kernel_init=nn.initializers.normal(stddev), dtype=dtype)


class Attention(nn.Module):
    """Multi-head attention with biases and a float32 softmax; no dropout on its weights.

    `__call__(x_bsd, mask_11st, layer, cache)` returns (y_bsd, cache). With a cache, the new keys
    and values are written into its layer `layer`, and the queries attend to everything that it holds.
    """

    heads: int
    residual_stddev: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x_bsd: jax.Array, mask_11st: jax.Array, layer: int, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        def attend(q_bshk, k_bthk, v_bthk):
            nonlocal cache
            if cache is not None:
                cache = cache.write(layer, k_bthk, v_bthk)
                k_bthk, v_bthk = cache.keys_bthk[layer], cache.values_bthk[layer]
            return jax.nn.dot_product_attention(q_bshk, k_bthk, v_bthk, mask=mask_11st)

        dense, out = _dense(0.02, self.dtype), _dense(self.residual_stddev, self.dtype)
        return attention(x_bsd, heads=self.heads, dense=dense, out=out, attend=attend), cache


class Block(nn.Module):
    """A transformer block: pre-norm attention and GELU (tanh form) feed-forward, each with a residual."""

    heads: int
    mlp_dim: int
    residual_stddev: float
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x_bsd: jax.Array,
        mask_11st: jax.Array,
        layer: int,
        cache: Cache | None,
        deterministic: bool,
    ) -> tuple[jax.Array, Cache | None]:
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        drop = functools.partial(nn.Dropout, self.dropout, deterministic=deterministic)
        dense, out = _dense(0.02, self.dtype), _dense(self.residual_stddev, self.dtype)

        y = norm(name="attention_norm")(x_bsd)
        attend = Attention(self.heads, self.residual_stddev, self.dtype, name="attention")
        y, cache = attend(y, mask_11st, layer, cache)
        x_bsd = x_bsd + drop(name="attention_dropout")(y)

        y = norm(name="mlp_norm")(x_bsd)
        y = mlp(y, self.mlp_dim, dense=dense, out=out, names=("wi", "wo"))
        return x_bsd + drop(name="mlp_dropout")(y), cache


class GPT2(nn.Module):
    """A causal pre-norm transformer with learned positions (GPT-2, section 2.3).

    Initial weights are normal with std 0.02, divided by sqrt(2 * layers) where a residual branch
    ends. Parameters are float32; the residual stream, matrix products and cache are in `dtype`,
    softmax and norm statistics in float32. Dropout needs the rng "dropout" unless `deterministic`;
    it acts on the embeddings and on both residual branches.

    Attributes:
      width: the number of channels; a multiple of heads.
      layers: the number of blocks, named layer_0, layer_1, ...
      heads: the number of attention heads.
      max_positions: the number of rows of the position table, which is the length of the longest sequence.
      mlp_dim: the hidden channels of the feed-forward; None means 4 * width.
      dropout: the dropout rate.
      dtype: the dtype of the computation and of the result.
    """

    width: int
    layers: int
    heads: int
    max_positions: int
    mlp_dim: int | None = None
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32

    def init_cache(self, batch: int, capacity: int | None = None) -> Cache:
        """Returns an empty cache for `batch` sequences of up to `capacity` (None: max_positions) positions.

        It needs no parameters.

        Raises:
          ValueError: if capacity exceeds max_positions.
        """
        capacity = self.max_positions if capacity is None else capacity
        if capacity > self.max_positions:
            raise ValueError(
                f"GPT2: {capacity} positions asked for, but the position table has only {self.max_positions}"
            )
        shape = (batch, capacity, self.heads, self.width // self.heads)
        zeros = (jnp.zeros(shape, self.dtype),) * self.layers
        return Cache(zeros, zeros, jnp.zeros((), jnp.int32))

    @nn.compact
    def __call__(
        self,
        x_bsd: jax.Array,
        cache: Cache | None = None,
        positions: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Cache | None]:
        """Runs new elements through the network, each attending to itself and to everything before it.

        Args:
          x_bsd: the embeddings (batch, new positions, width), without position embeddings.
          cache: the cache of earlier elements, from `init_cache` or an earlier call; None if there are none.
          positions: the rows of the position table to use, int (batch or 1, new positions); None continues counting
            from the cache's length. Order and causality follow the place in `x_bsd`, not `positions`.
          deterministic: switches dropout off.

        Returns:
          Features (batch, new positions, width) of `dtype` after the final norm, and the cache
          with the new elements appended (None if no cache was given). Running past the end of the position table
          cannot be detected under jit; the features are NaN from that position on.

        Raises:
          ValueError: if heads do not divide width, `x_bsd` has another width, or there are more new
            positions than max_positions or than the cache can hold in all.
        """
        if self.width % self.heads:
            raise ValueError(f"GPT2: {self.heads} heads do not divide width {self.width}")
        if x_bsd.ndim != 3 or x_bsd.shape[-1] != self.width:
            raise ValueError(f"GPT2: x must be (batch, positions, {self.width}), got {x_bsd.shape}")
        tokens = x_bsd.shape[1]
        held = tokens if cache is None else cache.keys_bthk[0].shape[1]
        if tokens > min(held, self.max_positions):
            raise ValueError(
                f"GPT2: {tokens} positions given, but there is room for {min(held, self.max_positions)}"
            )
        place_s = jnp.arange(tokens) + (0 if cache is None else cache.length)
        mask_11st = (jnp.arange(held)[None, :] <= place_s[:, None])[None, None]
        positions = place_s[None] if positions is None else positions

        table = nn.Embed(
            self.max_positions,
            self.width,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name="positions",
        )
        x_bsd = x_bsd.astype(self.dtype) + table(positions)
        x_bsd = nn.Dropout(self.dropout, name="dropout")(x_bsd, deterministic=deterministic)
        for i in range(self.layers):
            x_bsd, cache = Block(
                self.heads,
                self.mlp_dim or 4 * self.width,
                0.02 / (2 * self.layers) ** 0.5,
                self.dropout,
                self.dtype,
                name=f"layer_{i}",
            )(x_bsd, mask_11st, i, cache, deterministic)
        x_bsd = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="final_norm")(x_bsd)
        if cache is not None:
            cache = cache._replace(length=cache.length + tokens)
        return x_bsd, cache
