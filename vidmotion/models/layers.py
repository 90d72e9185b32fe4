"""The parts shared by all transformers: multi-head attention, the feed-forward layer, adaptive norms, stacked blocks.

Attention and the feed-forward layer are functions. Their dense layers belong to the module that calls the function and
have the names that it gives, since checkpoints and converters know the parameters of each network by its own names. The
caller passes `dense`, which makes a layer from a number of features and a name:

    dense = functools.partial(nn.Dense, kernel_init=xavier, dtype=self.dtype)
    x = x + attention(norm(x), heads=self.heads, dense=dense)
    x = x + mlp(norm(x), 4 * width, dense=dense)

Shape suffixes: l queries, s keys, h heads, d width of one head, c channels; any axes may stand before them.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike

from vidmotion.chunked_map import on_own_rows

Dense = Callable[..., Callable[[jax.Array], jax.Array]]
SEPARATE = ("query", "key", "value")
SHORT = ("q", "k", "v")
zeros = nn.initializers.zeros


def attention(
    x_lc: jax.Array,
    context_sc: jax.Array | None = None,
    *,
    heads: int,
    dense: Dense,
    out: Dense | None = None,
    names: Sequence[str] = SEPARATE,
    split: Dense | None = None,
    width: int = 0,
    attend: Callable[..., jax.Array] = jax.nn.dot_product_attention,
) -> jax.Array:
    """Computes the multi-head attention of tokens to themselves or to a context, without the residual.

    Args:
      x_lc: the tokens from which the queries are made, (..., l, c).
      context_sc: the tokens from which keys and values are made, (..., s, any width); None means `x_lc`.
      heads: the number of heads; divides `width`.
      dense: makes the layers of queries, keys and values.
      out: makes the last layer, ``out``; None means `dense`.
      names: the names of the layers of queries, keys and values.
      split: makes a single layer, ``qkv``, that returns queries, keys and values apart, such as `forms.Split`, in place
        of the three layers of `dense`; then there is no context.
      width: the width of all heads together; 0 means the width of `x_lc`.
      attend: the function that maps queries (..., l, h, d), keys and values (..., s, h, d) to (..., l, h, d).

    Returns:
      (..., l, c).
    """
    channels = x_lc.shape[-1]
    width = width or channels
    if split:
        parts = split(width, name="qkv")(x_lc)
    else:
        read = (x_lc, *(2 * [x_lc if context_sc is None else context_sc]))
        parts = (dense(width, name=name)(y) for name, y in zip(names, read))
    q, k, v = (rearrange(on_own_rows(part), "... l (h d) -> ... l h d", h=heads) for part in parts)
    y_lc = rearrange(attend(q, k, v), "... l h d -> ... l (h d)")
    return on_own_rows((out or dense)(channels, name="out")(y_lc))


def mlp(
    x_lc: jax.Array,
    hidden: int,
    *,
    dense: Dense,
    out: Dense | None = None,
    names: tuple[str, str] = ("mlp_in", "mlp_out"),
    activation: Callable[[jax.Array], jax.Array] = nn.gelu,
) -> jax.Array:
    """Applies a feed-forward layer, without the residual: (..., c) -> (..., c).

    Args:
      x_lc: the tokens.
      hidden: the number of features of the first layer.
      dense: makes the first layer.
      out: makes the second layer; None means `dense`.
      names: the names of the two layers.
      activation: the function applied between the two layers; GELU in its tanh form by default.
    """
    y = activation(on_own_rows(dense(hidden, name=names[0])(x_lc)))
    return on_own_rows((out or dense)(x_lc.shape[-1], name=names[1])(y))


def plain_norm(
    x_lc: jax.Array,
    scale: jax.Array | float = 1.0,
    shift: jax.Array | float = 0.0,
    epsilon: float = 1e-6,
) -> jax.Array:
    """Applies layer norm to each token, then scale and shift: scale * norm(x) + shift, in float32.

    The variance is E[x^2] - E[x]^2, so that one pass over the tokens gives both moments.
    """
    x = x_lc.astype(jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True) - jnp.square(mean)
    return (x - mean) * jax.lax.rsqrt(jnp.maximum(variance, 0.0) + epsilon) * scale + shift


def split_dense(
    x_c: jax.Array, count: int, width: int, dtype: DTypeLike, name: str, start: float = 0.0
) -> list[jax.Array]:
    """Makes `count` vectors of length `width` from a condition by a dense layer; all their numbers begin as `start`."""
    bias = nn.initializers.constant(start)
    dense = nn.Dense(count * width, kernel_init=zeros, bias_init=bias, dtype=dtype, name=name)
    return jnp.split(dense(x_c), count, axis=-1)


class AdaLN(nn.Module):
    """Scales, shifts and gates of a block's norms, read from a condition (adaLN-Zero of Peebles and Xie 2022).

    Attributes:
      width: the width of the tokens.
      sites: the number of norms.
      gates: whether each norm has a gate as well.
      gate_start: the value of the gates in a fresh network; the scales begin at 1 and the shifts at 0.
      dtype: the dtype of the computation.
    """

    width: int
    sites: int
    gates: bool
    gate_start: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, condition: jax.Array
    ) -> tuple[list[tuple[jax.Array, jax.Array]], list[jax.Array]]:
        """Reads the condition (..., c), which must broadcast against the tokens in all axes but the last.

        Returns:
          One pair of scale and shift per norm, and a list of one gate per norm, empty if there are no gates.
        """
        both = split_dense(condition, 2 * self.sites, self.width, self.dtype, "both")
        norms = [(1.0 + scale, shift) for scale, shift in zip(both[::2], both[1::2])]
        if not self.gates:
            return norms, []
        start = self.gate_start
        return norms, split_dense(condition, self.sites, self.width, self.dtype, "gate", start)


def stack(
    block: type[nn.Module],
    arguments: Sequence,
    count: int,
    name: str,
    x: jax.Array,
    shared: Sequence[jax.Array] = (),
    each: Sequence[jax.Array] = (),
    *,
    scan: bool = False,
    remat: bool = False,
) -> jax.Array:
    """Runs `count` blocks with the same fields, one after the other.

    Args:
      block: the class of the blocks; calling a block takes x, `shared` and one row of `each`, and returns x and None.
      arguments: the fields of every block.
      count: the number of blocks.
      name: the blocks' name; they are called name_0, name_1, ..., or `names` if they are scanned.
      x: the input of the first block.
      shared: further arrays, given to every block.
      each: arrays with `count` rows; block i gets row i of each.
      scan: whether to compile one block for all; their parameters are then stacked.
      remat: whether to recompute each block in the backward pass instead of keeping its activations.

    Returns:
      x after the last block.
    """
    if remat:
        block = nn.remat(block, prevent_cse=not scan)
    if not scan:
        for i in range(count):
            x, _ = block(*arguments, name=f"{name}_{i}")(x, *shared, *(rows[i] for rows in each))
        return x
    block = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=count,
        in_axes=(nn.broadcast,) * len(shared) + (0,) * len(each),
    )
    return block(*arguments, name=f"{name}s")(x, *shared, *each)[0]
