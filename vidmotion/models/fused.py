"""Attention as accelerators compute it best: in one kernel that keeps no logits, or without turning anything around.

What is chosen depends on the platform for which an operation is traced (`forms.platform`) and on its shape; `attend` in
`attention` falls back to XLA's own form. On a TPU an array lies in tiles of 8 x 128 values of its last two axes, so
that a last axis of one head's width of 64 wastes half of each tile and every split into heads is a copy. The forms for
the TPU therefore leave channels whole, or cut them at multiples of 128.

Shape suffixes: n rows, l queries, s keys, h heads, d width of one head, c = h d channels, m heads that share a tile of
e = 128 lanes; b batch, t frames, p places.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import flash_attention as flash
from jax.sharding import PartitionSpec

from vidmotion import chunked_map
from vidmotion.models import forms

LANES = 128
# Keys from which on a kernel is worth its start; fewer make few logits.
CUDNN_KEYS = 64
# Logits of one head from which on they are not to stand in a TPU's memory.
FLASH_LOGITS = 2**19
BLOCK = 512  # queries and keys that the TPU's kernel takes at a time, where there are as many
# Frames up to which every pair of them is gone through one after the other.
PAIRS = 8


def attention(
    q_nlhd: jax.Array,
    k_nshd: jax.Array,
    v_nshd: jax.Array,
    mask_ns: jax.Array | None = None,
    causal: bool = False,
) -> jax.Array | None:
    """softmax(q k' / sqrt(d)) v in a form for the platform, or None where XLA's own is the better one.

    Args:
      q_nlhd, k_nshd, v_nshd: queries, keys and values.
      mask_ns: bool, False for keys that are left out.
      causal: query i attends to the keys up to i.

    Returns:
      (n, l, h, d) of the dtype of the values.
    """
    queries, heads, width = q_nlhd.shape[1:]
    keys = k_nshd.shape[1]
    narrow = all(x.dtype in (jnp.bfloat16, jnp.float16) for x in (q_nlhd, k_nshd, v_nshd))
    if forms.platform() == "gpu":
        if not narrow or mask_ns is not None or width % 8 or width > 128 or keys < CUDNN_KEYS:
            return None
        return jax.nn.dot_product_attention(
            q_nlhd, k_nshd, v_nshd, is_causal=causal, implementation="cudnn"
        )
    if forms.platform() != "tpu":
        return None
    if narrow and queries * keys >= FLASH_LOGITS and not queries % LANES:
        return _flash(q_nlhd, k_nshd, v_nshd, mask_ns, causal)
    shared = LANES // width if LANES % width == 0 else 0
    if mask_ns is None and shared and heads % shared == 0 and queries * keys < FLASH_LOGITS:
        return _packed(q_nlhd, k_nshd, v_nshd, shared, causal)
    return None


def _packed(q_nlhd, k_nshd, v_nshd, shared: int, causal: bool) -> jax.Array:
    """Attention of `shared` heads at a time, which fill a tile's lanes together.

    Queries are written once for each of these heads, with zeros in the place of the others: a product over all lanes
    takes a TPU as long as one over a head's, and nothing is cut within a tile.
    """
    queries, heads, width = q_nlhd.shape[1:]
    late_ls = np.tile(~np.tri(queries, k_nshd.shape[1], dtype=bool), (shared, 1))
    mask_me = np.repeat(np.eye(shared), width, 1).astype(q_nlhd.dtype)

    def tile(q_nle, k_nse, v_nse):
        each = [q_nle * (mask_e * mask_e.dtype.type(width**-0.5))[None, None] for mask_e in mask_me]
        q_nle = jnp.concatenate(each, 1)
        logits_nls = jnp.einsum("nle,nse->nls", q_nle, k_nse, preferred_element_type=jnp.float32)
        if causal:
            logits_nls = jnp.where(late_ls[None], -jnp.inf, logits_nls)
        weight_nls = jax.nn.softmax(logits_nls).astype(v_nse.dtype)
        y_nle = jnp.einsum("nls,nse->nle", weight_nls, v_nse)
        return sum(
            part * mask_e[None, None] for part, mask_e in zip(jnp.split(y_nle, shared, 1), mask_me)
        )

    tiles = (
        jnp.split(x.reshape(*x.shape[:2], heads * width), heads // shared, -1)
        for x in (q_nlhd, k_nshd, v_nshd)
    )
    return jnp.concatenate([tile(*each) for each in zip(*tiles)], -1).reshape(q_nlhd.shape)


def frames(
    q_btphd: jax.Array, k_btphd: jax.Array, v_btphd: jax.Array, causal: bool
) -> jax.Array | None:
    """Attention among the frames at each place, for a TPU, or None where another form is the better one.

    One frame of keys after the other meets all queries, channel by channel; two products with zeros and ones sum the
    channels of a head, and spread a head's weight over its channels. Frames stay where they are.
    """
    b, t, p, heads, width = v_btphd.shape
    if forms.platform() != "tpu" or t > PAIRS:
        return None
    q_btpc, k_btpc, v_btpc = (
        x.reshape(b, t, p, heads * width) for x in (q_btphd, k_btphd, v_btphd)
    )
    own_ch = np.repeat(np.eye(heads), width, 0).astype(q_btpc.dtype)
    logits = [
        jnp.einsum(
            "btpc,ch->btph",
            q_btpc * k_btpc[:, s : s + 1],
            own_ch * own_ch.dtype.type(width**-0.5),
            preferred_element_type=jnp.float32,
        )
        for s in range(t)
    ]
    if causal:
        late_ts = np.arange(t)[:, None] < np.arange(t)[None]
        logits = [
            jnp.where(late_t[None, :, None, None], -jnp.inf, x)
            for late_t, x in zip(late_ts.T, logits)
        ]
    top_btph = jax.lax.stop_gradient(functools.reduce(jnp.maximum, logits))
    weights = [jnp.exp(x - top_btph) for x in logits]
    total_btph = sum(weights)
    y_btpc = sum(
        jnp.einsum("btph,ch->btpc", (x / total_btph).astype(v_btpc.dtype), own_ch)
        * v_btpc[:, s : s + 1]
        for s, x in enumerate(weights)
    )
    return y_btpc.reshape(v_btphd.shape)


def _flash(q_nlhd, k_nshd, v_nshd, mask_ns, causal: bool) -> jax.Array | None:
    """jax's own kernel for the TPU, on each device's rows; None where the devices cannot share the rows."""
    rows, queries, _, width = q_nlhd.shape
    keys = k_nshd.shape[1]
    mesh = jax.sharding.get_abstract_mesh()
    shards = chunked_map.row_shards(rows)
    if shards != math.prod(mesh.shape.get(axis, 1) for axis in chunked_map.BATCH_AXES):
        return None
    room = -keys % LANES  # keys that are filled up are left out like those of the mask
    if room:
        mask_ns = jnp.ones((rows, keys), bool) if mask_ns is None else mask_ns
        mask_ns = jnp.pad(mask_ns, ((0, 0), (0, room)))
        k_nshd, v_nshd = (jnp.pad(x, ((0, 0), (0, room), (0, 0), (0, 0))) for x in (k_nshd, v_nshd))
    sizes = _blocks(queries, keys + room)

    def own(q_nlhd, k_nshd, v_nshd, mask_ns):
        segments = None
        if mask_ns is not None:
            alike_nl = jnp.ones(q_nlhd.shape[:2], jnp.int32)
            segments = flash.SegmentIds(alike_nl, mask_ns.astype(jnp.int32))
        heads_first = (x.swapaxes(1, 2) for x in (q_nlhd, k_nshd, v_nshd))
        y_nhld = flash.flash_attention(
            *heads_first,
            segment_ids=segments,
            causal=causal,
            sm_scale=width**-0.5,
            block_sizes=sizes,
        )
        return y_nhld.swapaxes(1, 2)

    if shards > 1:
        cut = PartitionSpec(chunked_map.BATCH_AXES)
        own = jax.shard_map(own, mesh=mesh, in_specs=cut, out_specs=cut, check_vma=False)
    return own(q_nlhd, k_nshd, v_nshd, mask_ns)


def _blocks(queries: int, keys: int) -> flash.BlockSizes:
    """Blocks of the kernel: divisors of the numbers of queries and keys, multiples of `LANES`."""

    def block(length):
        return next(size for size in range(BLOCK, 0, -LANES) if length % size == 0)

    q, k = block(queries), block(keys)
    names = {name: q if "_q" in name else k for name in flash.BlockSizes.__dataclass_fields__}
    return flash.BlockSizes(**names | {"block_b": 1})
