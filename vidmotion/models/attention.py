"""Attention and feed-forward layers of the Stable Diffusion transformers.

Latent diffusion (Rombach et al. 2022, arXiv:2112.10752), section 3.3; numerics as in its released
weights: no bias on queries, keys and values, one on the output, layer norms of epsilon 1e-5.

Shape suffixes: n rows (batch and frames, or batch and places), l queries, s keys, h heads, d width
of one head, c channels.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidmotion import chunked_map
from vidmotion.models import forms, fused, layers
from vidmotion.models.blocks import Dtype, one_pass

# The most logits that a device holds at once, 256 MiB of float32; more are computed in pieces, one after the other.
MAX_LOGITS = 2**26


def layer_norm(dtype: Dtype, name: str) -> nn.LayerNorm:
    """Makes a layer norm with statistics in float32."""
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype, use_fast_variance=one_pass(dtype), name=name)


def attend(
    q_nlhd: jax.Array,
    k_nshd: jax.Array,
    v_nshd: jax.Array,
    mask_ns: jax.Array | None = None,
    limit: int = MAX_LOGITS,
    causal: bool = False,
    bias_hls: jax.Array | None = None,
    lengths_n: jax.Array | None = None,
) -> jax.Array:
    """Computes softmax(q k' / sqrt(d)) v with bounded memory, in the form for the platform (`forms`, `fused`).

    If there would be more logits than `limit`, and no kernel avoids storing them, they are computed for some rows at a
    time and, within a row, for pieces of the queries one after the other. They are computed again in the backward pass.
    Memory therefore grows with the number of tokens and not with its square. Where the batch is split over a mesh
    (`sharding.OnMesh`), each device goes through its own rows.

    Args:
      q_nlhd, k_nshd, v_nshd: queries, keys and values.
      mask_ns: bool, False for keys that are left out; each row keeps at least one.
      limit: the number of logits that a device may hold at once; it always holds at least those of one query.
      causal: whether query i attends only to keys up to i; cannot be combined with a mask. Unless a kernel is used, all
        logits are then held at once.
      bias_hls: float32, added to the logits of all rows, which are then not scaled, as in T5: softmax(q k' + bias) v.
        Unless a kernel is used, all logits are then held at once.
      lengths_n: int32, the number of keys, from the first on, to which each row attends; at least one. It takes the
        place of a mask, and more kernels know it.

    Returns:
      (n, l, h, d) of the dtype of the values; the softmax is float32.
    """
    if lengths_n is not None:
        mask_ns = jnp.arange(k_nshd.shape[1])[None] < lengths_n[:, None]
    y_nlhd = fused.attention(q_nlhd, k_nshd, v_nshd, mask_ns, causal, bias_hls, lengths_n)
    mask_n11s = None if mask_ns is None else mask_ns[:, None, None]
    if y_nlhd is None and bias_hls is not None:
        return jax.nn.dot_product_attention(
            q_nlhd, k_nshd, v_nshd, bias_hls[None], mask_n11s, scale=1.0, is_causal=causal
        )
    if y_nlhd is None and causal:
        return jax.nn.dot_product_attention(q_nlhd, k_nshd, v_nshd, is_causal=True)
    if y_nlhd is None:
        y_nlhd = forms.attention(q_nlhd, k_nshd, v_nshd, mask_ns, limit)
    if y_nlhd is not None:
        return y_nlhd
    rows, queries, heads, width = q_nlhd.shape
    per_row = queries * heads * k_nshd.shape[1]
    shards = chunked_map.row_shards(rows)
    if rows // shards * per_row <= limit or not chunked_map.wanted():
        return jax.nn.dot_product_attention(q_nlhd, k_nshd, v_nshd, mask=mask_n11s)
    cuts = chunked_map.cuts(queries, per_row, limit)

    @jax.checkpoint
    def one_row(row):
        q_lhd, k_shd, v_shd, mask_11s = row

        def piece(q):
            return jax.nn.dot_product_attention(q, k_shd, v_shd, mask=mask_11s)

        out = chunked_map.each(piece, q_lhd.reshape(cuts, queries // cuts, heads, width))
        return out.reshape(queries, heads, width)

    row = q_nlhd, k_nshd, v_nshd, mask_n11s
    return chunked_map.each(one_row, row, max(1, limit // per_row), shards)


def attend_frames(
    q_btphd: jax.Array, k_btphd: jax.Array, v_btphd: jax.Array, causal: bool = False
) -> jax.Array:
    """Computes attention among the frames at each place.

    Args:
      q_btphd, k_btphd, v_btphd: queries, keys and values, (batch, frames, places, heads, width).
      causal: whether each frame attends only to itself and to earlier frames.

    Returns:
      (batch, frames, places, heads, width) of the dtype of the values.
    """
    y_btphd = fused.frames(q_btphd, k_btphd, v_btphd, causal)
    if y_btphd is not None:
        return y_btphd
    batch, count, places, heads, width = q_btphd.shape
    # Heads and channels are merged into one axis while the axes of frames and places are swapped.
    rows = (
        x.reshape(batch, count, places, -1).swapaxes(1, 2).reshape(-1, count, heads, width)
        for x in (q_btphd, k_btphd, v_btphd)
    )
    y_bptc = attend(*rows, causal=causal).reshape(batch, places, count, -1)
    return y_bptc.swapaxes(1, 2).reshape(q_btphd.shape)


class Attention(nn.Module):
    """Multi-head attention of each row's tokens to themselves or to a context, and to further given keys.

    Attributes:
      heads: the number of heads; divides the width.
      dtype: the dtype of the matrix products; the softmax is float32.
    """

    heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_nlc: jax.Array,
        context_nsc: jax.Array | None = None,
        bank: tuple[jax.Array, jax.Array] | None = None,
        reads_b: jax.Array | None = None,
    ) -> jax.Array:
        """Computes the attention.

        Args:
          x_nlc: the tokens from which the queries are made.
          context_nsc: the tokens from which keys and values are made; None means `x_nlc`. If there is a single context
            token and no bank, every place pays all its attention to that token; then neither queries nor keys are
            computed, and their layers have no gradient.
          bank: further keys and values, each (b, s', h, d); b is 1 or divides n, and each of its
            rows serves n / b consecutive rows.
          reads_b: bool (b or 1,), whether the bank is read; each value serves as many consecutive rows as a row of the
            bank does. None means that all rows read it.

        Returns:
          (n, l, c), without the residual.
        """
        rows, _, width = x_nlc.shape
        context_nsc = x_nlc if context_nsc is None else context_nsc

        dense = functools.partial(forms.Dense, use_bias=False, dtype=self.dtype)
        out = functools.partial(forms.Dense, dtype=self.dtype)
        if context_nsc.shape[1] == 1 and bank is None and not self.is_initializing():
            only_n1c = out(width, name="out")(dense(width, name="v")(context_nsc))
            return jnp.broadcast_to(only_n1c, x_nlc.shape)

        def with_bank(q, k, v):
            if bank is None:
                return attend(q, k, v)
            own, lengths_n = k.shape[1], None
            # One softmax over own and given keys. Two of them, merged by their log-sum-exp, take
            # as long, and `jax.nn.dot_product_attention` gives its log-sum-exp no gradient.
            k, v = (
                jnp.concatenate(
                    [mine, jnp.repeat(given.astype(mine.dtype), rows // len(given), 0)], 1
                )
                for mine, given in zip((k, v), bank)
            )
            if reads_b is not None:
                lengths_b = jnp.where(reads_b, k.shape[1], own).astype(jnp.int32)
                lengths_n = jnp.repeat(lengths_b, rows // len(reads_b), 0)
            return attend(q, k, v, lengths_n=lengths_n)

        return layers.attention(
            x_nlc,
            context_nsc,
            heads=self.heads,
            dense=dense,
            out=out,
            names=layers.SHORT,
            attend=with_bank,
        )


class FeedForward(nn.Module):
    """A GEGLU feed-forward layer: widens to eight times the width, multiplies values by the exact GELU of gates, and
    narrows again.

    Attributes:
      dtype: the dtype of the computation.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_nlc: jax.Array) -> jax.Array:
        """(n, l, c) -> (n, l, c), without the residual."""

        def gated(y):
            value, gate = jnp.split(y, 2, axis=-1)
            return value * forms.gelu(gate)

        dense = functools.partial(forms.Dense, dtype=self.dtype)
        hidden = 8 * x_nlc.shape[-1]
        return layers.mlp(x_nlc, hidden, dense=dense, names=("in", "out"), activation=gated)
