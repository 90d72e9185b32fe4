"""Attention in the forms that accelerators compute fastest: in one kernel that stores no logits, or without transposes.

The form depends on the platform for which an operation is traced (`forms.platform`) and on its shape; where no form
fits, `attend` in `attention` falls back to XLA's own. A TPU stores an array in tiles of 8 x 128 values of its last two
axes, so a last axis as wide as one head of 64 channels wastes half of each tile, and every split into heads is a copy.
The forms for the TPU therefore leave channels whole, or cut them at multiples of 128.

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
# The number of keys from which a kernel pays for its launch; fewer keys make few logits.
CUDNN_KEYS = 64
# With at least this many logits per head, a TPU should not keep them in memory.
FLASH_LOGITS = 2**19
BLOCK = 512  # the most queries or keys that the TPU's kernel takes at a time
# The most frames for which `frames` goes through the frames of keys one after the other.
PAIRS = 8


def attention(
    q_nlhd: jax.Array,
    k_nshd: jax.Array,
    v_nshd: jax.Array,
    mask_ns: jax.Array | None = None,
    causal: bool = False,
) -> jax.Array | None:
    """Computes softmax(q k' / sqrt(d)) v in a form for the platform, or returns None where XLA's own form is better.

    Args:
      q_nlhd, k_nshd, v_nshd: queries, keys and values.
      mask_ns: bool, False for keys that are left out.
      causal: whether query i attends only to keys up to i.

    Returns:
      (n, l, h, d) of the dtype of the values, or None.
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
    """Computes the attention of `shared` heads at a time, which together fill the lanes of a tile.

    The queries are repeated once for each of these heads, with zeros in the channels of the other heads. A TPU takes as
    long for a product over all lanes as for one over the lanes of a single head, and no tile has to be cut.
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
    """Computes attention among the frames at each place on a TPU, or returns None where another form is better.

    It takes the keys one frame at a time and multiplies them with all queries channel by channel. Products with a
    matrix of zeros and ones sum the channels of each head, and spread each head's weight over its channels. The axes
    are never reordered.
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
    """Runs JAX's flash attention kernel for the TPU on each device's rows.

    Returns None where the rows cannot be divided among the devices.
    """
    rows, queries, _, width = q_nlhd.shape
    keys = k_nshd.shape[1]
    mesh = jax.sharding.get_abstract_mesh()
    shards = chunked_map.row_shards(rows)
    if shards != math.prod(mesh.shape.get(axis, 1) for axis in chunked_map.BATCH_AXES):
        return None
    room = -keys % LANES  # keys of padding, which are masked out
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
    """Returns the kernel's block sizes: multiples of `LANES` that divide the numbers of queries and keys."""

    def block(length):
        return next(size for size in range(BLOCK, 0, -LANES) if length % size == 0)

    q, k = block(queries), block(keys)
    names = {name: q if "_q" in name else k for name in flash.BlockSizes.__dataclass_fields__}
    return flash.BlockSizes(**names | {"block_b": 1})
