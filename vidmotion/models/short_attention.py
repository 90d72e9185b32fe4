"""Attention of short rows of tokens as one kernel for the TPU, forward and backward, written in Pallas.

XLA computes such an attention as a dozen operations, each of which reads and writes whole arrays and cuts every head
out of tiles of 128 channels. This kernel reads queries, keys and values once, keeps all logits of some rows in fast
memory, and never separates the heads of a tile: each head's keys and values are the tile's with zeros in the channels
of the other heads, and a product over 128 channels takes the matrix unit as long as one over 64.

Attention among the frames at each place is attention of `PLACES` places at a time, in which tokens of different places
do not see each other. Most of these logits are wasted, but they cost less than reordering the axes.

Shape suffixes: b batch, t frames, p places, c channels, e = 128 channels of a tile, l queries and s keys of a row.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
# The places of one row of `frames`: as many as a tile of bfloat16 has rows, so that no tile is cut.
PLACES = 16
# About this many tokens are computed by one step of the kernel's grid, which is enough to hide the loads of the next.
TOKENS = 256
TILES = 4  # the most tiles of channels that one step computes
MOST = 832  # the most tokens of a row: the logits of one head, several times over, fill `MEMORY`
MEMORY = 32 * 2**20  # bytes of fast memory, of which a v4 has the least
FAR = -1e30  # the logit of a key that is not seen; infinity would make NaN of a row without keys


class Shape(NamedTuple):
    """What the kernel must know about the rows.

    Attributes:
      width: the channels of a head; divides `LANES` or is a multiple of it.
      scale: the factor of the logits.
      places: the places in a row, if tokens of different places do not see each other, or 0.
      count: the number of valid places, of which the last row may hold only some.
      causal: whether a query sees only keys up to its own place in the row (or, with places, its own frame).
    """

    width: int
    scale: float
    places: int = 0
    count: int = 0
    causal: bool = False


def fits(queries: int, keys: int, channels: int, width: int) -> bool:
    """Returns whether the kernel can compute heads of `width` channels in rows of these sizes."""
    whole = LANES % width == 0 or width % LANES == 0
    return whole and channels % LANES == 0 and max(queries, keys) <= MOST


def rows(
    q_blc: jax.Array,
    k_bsc: jax.Array,
    v_bsc: jax.Array,
    bias_hls: jax.Array | None = None,
    *,
    width: int,
    scale: float,
    causal: bool = False,
) -> jax.Array:
    """Computes softmax(scale q k' + bias) v for each row and each head of `width` channels: (b, l, c).

    The bias is float32 and the same for all rows.
    """
    shape = Shape(width, scale, causal=causal)
    return _attention(*(x[:, None] for x in (q_blc, k_bsc, v_bsc)), bias_hls, shape)[:, 0]


def frames(
    q_btpc: jax.Array,
    k_btpc: jax.Array,
    v_btpc: jax.Array,
    *,
    width: int,
    scale: float,
    causal: bool = False,
) -> jax.Array:
    """Computes the attention among the frames at each place, for each head of `width` channels: (b, t, p, c)."""
    shape = Shape(width, scale, PLACES, q_btpc.shape[2], causal)
    return _attention(q_btpc, k_btpc, v_btpc, None, shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q_btpc, k_btpc, v_btpc, bias_hls, shape: Shape):
    return _call(_forward, (q_btpc, k_btpc, v_btpc), 1, bias_hls, 2, shape)[0]


def _attention_forward(q_btpc, k_btpc, v_btpc, bias_hls, shape):
    given = q_btpc, k_btpc, v_btpc, bias_hls
    return _attention(*given, shape), given


def _attention_backward(shape, saved, g_btpc):
    *qkv, bias_hls = saved
    found = _call(_backward, (*qkv, g_btpc), 3, bias_hls, 5, shape)
    return *found[:3], (None if bias_hls is None else found[3])


_attention.defvjp(_attention_forward, _attention_backward)


def _call(body, arrays, outputs: int, bias_hls, products: int, shape: Shape):
    """Runs `body` on blocks of the arrays and on the bias, if there is one.

    The results have the shapes of the first `outputs` arrays and, in the backward pass, of the bias.
    """
    q_btpc, k_btpc = arrays[:2]
    batch, frames, places, channels = q_btpc.shape
    together = shape.places or places
    # The tokens of one row.
    queries, keys = frames * together, k_btpc.shape[1] * (shape.places or k_btpc.shape[2])
    tile = max(LANES, shape.width)
    tiles = next(n for n in range(TILES * LANES // tile or 1, 0, -1) if channels % (n * tile) == 0)
    most = max(TOKENS // max(queries, keys), 1)
    many = next(n for n in range(most, 0, -1) if batch % n == 0)
    # The batch varies fastest, so that the steps that add to the same gradient of the bias follow each other.
    grid = (pl.cdiv(places, together), channels // (tiles * tile), batch // many)

    def spec(x):
        block = (many, x.shape[1], shape.places or x.shape[2], tiles * tile)
        return pl.BlockSpec(block, lambda j, k, i: (i, 0, j, k))

    specs, results = [spec(x) for x in arrays], list(arrays[:outputs])
    out_specs = specs[:outputs]
    if bias_hls is not None:
        block = (tiles * tile // shape.width, *bias_hls.shape[1:])
        specs.append(pl.BlockSpec(block, lambda j, k, i: (k, 0, 0)))
        arrays = (*arrays, bias_hls)
        if body is _backward:
            out_specs.append(specs[-1])
            results.append(bias_hls)
    per_head = batch * grid[0] * queries * keys
    return pl.pallas_call(
        functools.partial(body, biased=bias_hls is not None, shape=shape),
        grid=grid,
        in_specs=specs,
        out_specs=out_specs,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=MEMORY),
        name="short_attention" + body.__name__,
        cost_estimate=pl.CostEstimate(
            flops=2 * products * per_head * max(channels, channels // shape.width * LANES),
            transcendentals=per_head * channels // shape.width,
            bytes_accessed=sum(x.nbytes for x in (*arrays, *results)),
        ),
    )(*arrays)


def _forward(*refs, biased: bool, shape: Shape):
    *qkv, y_ref = refs
    bias_ref = qkv.pop() if biased else None
    for row, lanes in _tiles(qkv[0], shape):
        q_le, k_se, v_se = (_load(ref, row, lanes, shape) for ref in qkv)
        y_le = 0.0
        for heads in _groups(len(k_se), shape):
            bias = [bias_ref[_number(lanes, head, shape)] for head in heads] if biased else []
            weight_ls = _weights(q_le, _spread(k_se, heads, shape), bias, heads, shape)
            y_le += _product(weight_ls.astype(v_se.dtype), _spread(v_se, heads, shape))
        _store(y_ref, row, lanes, y_le)


def _backward(*refs, biased: bool, shape: Shape):
    given, found = refs[:4], list(refs[4:])
    if biased:
        bias_ref, dbias_ref = found.pop(0), found.pop()

        @pl.when(pl.program_id(2) == 0)
        def _():
            dbias_ref[...] = jnp.zeros_like(dbias_ref)

    for row, lanes in _tiles(given[0], shape):
        q_le, k_se, v_se, g_le = (_load(ref, row, lanes, shape) for ref in given)
        dq_le, dk_se, dv_se = 0.0, 0.0, 0.0
        for heads in _groups(len(k_se), shape):
            k_fe, v_fe = (_spread(x, heads, shape) for x in (k_se, v_se))
            numbers = [_number(lanes, head, shape) for head in heads]
            bias = [bias_ref[number] for number in numbers] if biased else []
            weight_lf = _weights(q_le, k_fe, bias, heads, shape)
            change_lf = _product(g_le, v_fe, (1, 1))
            mean_lf = _each(weight_lf * change_lf, heads, jnp.sum)
            change_lf = weight_lf * (change_lf - mean_lf)
            if biased:
                for number, change_ls in zip(numbers, jnp.split(change_lf, len(heads), 1)):
                    dbias_ref[number] += change_ls
            change_lf = (change_lf * shape.scale).astype(q_le.dtype)
            dq_le += _product(change_lf, k_fe)
            dk_se += _gather(_product(change_lf, q_le, (0, 0)), heads, shape)
            weight_lf = weight_lf.astype(g_le.dtype)
            dv_se += _gather(_product(weight_lf, g_le, (0, 0)), heads, shape)
        for ref, value in zip(found, (dq_le, dk_se, dv_se)):
            _store(ref, row, lanes, value)


def _tiles(ref, shape: Shape):
    """Yields (row, channels) of each tile in a block."""
    tile = max(LANES, shape.width)
    for row in range(ref.shape[0]):
        for first in range(0, ref.shape[3], tile):
            yield row, slice(first, first + tile)


def _number(lanes: slice, head: int, shape: Shape) -> int:
    """Returns the number within its block of the tile's head `head`."""
    return lanes.start // shape.width + head


def _load(ref, row, lanes, shape: Shape):
    """Loads the tokens of a row, frame by frame; places beyond the last are zeros."""
    x_tpe = ref[row, :, :, lanes]
    if shape.count % (shape.places or 1):
        place = jax.lax.broadcasted_iota(jnp.int32, x_tpe.shape, 1)
        valid = place + pl.program_id(0) * shape.places < shape.count
        x_tpe = jnp.where(valid, x_tpe, jnp.zeros_like(x_tpe))
    return x_tpe.reshape(-1, x_tpe.shape[-1])


def _store(ref, row, lanes, x_le):
    ref[row, :, :, lanes] = x_le.astype(ref.dtype).reshape(*ref.shape[1:3], -1)


def _groups(keys: int, shape: Shape) -> list[tuple[int, ...]]:
    """Groups the heads of a tile so that the logits of a group fill the lanes."""
    heads = max(LANES // shape.width, 1)
    if keys * heads <= LANES and keys % PLACES == 0:
        return [tuple(range(heads))]
    return [(head,) for head in range(heads)]


def _spread(x_se, heads, shape: Shape):
    """Returns the keys or values of each of the heads, one after the other, with zeros in the other heads' channels."""
    return jnp.concatenate([_own(x_se, head, shape) for head in heads], 0)


def _gather(x_fe, heads, shape: Shape):
    """Adds up what `_spread` has made of the tokens: its transpose."""
    parts = jnp.split(x_fe, len(heads), 0)
    return sum(_own(part, head, shape) for part, head in zip(parts, heads))


def _own(x_se, head: int, shape: Shape):
    if shape.width >= LANES:
        return x_se
    lane = jax.lax.broadcasted_iota(jnp.int32, x_se.shape, 1)
    return jnp.where(jax.lax.div(lane, shape.width) == head, x_se, jnp.zeros_like(x_se))


def _weights(q_le, k_fe, bias, heads, shape: Shape):
    """Returns the weights (l, f) of the heads' keys, float32; `bias` has one (l, s) for each head, or is empty."""
    logits_lf = _product(q_le, k_fe, (1, 1)) * shape.scale
    if bias:
        logits_lf += jnp.concatenate(bias, 1)
    keys = k_fe.shape[0] // len(heads)
    query = jax.lax.broadcasted_iota(jnp.int32, logits_lf.shape, 0)
    key = jax.lax.rem(jax.lax.broadcasted_iota(jnp.int32, logits_lf.shape, 1), keys)
    seen = None
    if shape.places:
        seen = jax.lax.rem(query, shape.places) == jax.lax.rem(key, shape.places)
    if shape.causal:
        past = key <= query
        seen = past if seen is None else seen & past
    if seen is not None:
        logits_lf = jnp.where(seen, logits_lf, FAR)
    weight_lf = jnp.exp(logits_lf - _each(logits_lf, heads, jnp.max))
    return weight_lf / _each(weight_lf, heads, jnp.sum)


def _each(x_lf, heads, reduce):
    """Reduces the keys of each head, and gives every key its head's result."""
    if len(heads) == 1:
        return reduce(x_lf, axis=1, keepdims=True)
    keys = x_lf.shape[1] // len(heads)
    place = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, x_lf.shape, 1), keys)
    blank = 0.0 if reduce is jnp.sum else FAR
    found = None
    for head in range(len(heads)):
        own = place == head
        one = reduce(jnp.where(own, x_lf, blank), axis=1, keepdims=True)
        found = one if found is None else jnp.where(own, one, found)
    return found


def _product(x, y, over=(1, 0)):
    """Multiplies two matrices over one axis of each, in float32."""
    return jax.lax.dot_general(
        x, y, (((over[0],), (over[1],)), ((), ())), preferred_element_type=jnp.float32
    )
