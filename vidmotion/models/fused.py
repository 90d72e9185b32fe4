"""Attention in the forms that accelerators compute fastest: in one kernel that stores no logits, or without transposes.

The form depends on the platform for which an operation is traced (`forms.platform`) and on its shape; where no form
fits, `attend` in `attention` falls back to XLA's own. A TPU stores an array in tiles of 8 x 128 values of its last two
axes, so a last axis as wide as one head of 64 channels wastes half of each tile, and every split into heads is a copy.
The kernel for short rows (`short_attention`) therefore leaves channels whole.

Shape suffixes: n rows, l queries, s keys, h heads, d width of one head; b batch, t frames, p places.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as flash
from jax.sharding import PartitionSpec

from vidmotion import chunked_map
from vidmotion.models import forms, short_attention
from vidmotion.models.short_attention import LANES

# The number of keys from which a kernel pays for its launch; fewer keys make few logits.
CUDNN_KEYS = 64
# With at least this many logits per head, a TPU should not keep them in memory.
FLASH_LOGITS = 2**19
BLOCK = 512  # the most queries or keys that the TPU's kernel takes at a time


def attention(
    q_nlhd: jax.Array,
    k_nshd: jax.Array,
    v_nshd: jax.Array,
    mask_ns: jax.Array | None = None,
    causal: bool = False,
    bias_hls: jax.Array | None = None,
    lengths_n: jax.Array | None = None,
) -> jax.Array | None:
    """Computes softmax(q k' / sqrt(d)) v in a form for the platform, or returns None where XLA's own form is better.

    Args:
      q_nlhd, k_nshd, v_nshd: queries, keys and values.
      mask_ns: bool, False for keys that are left out.
      causal: whether query i attends only to keys up to i.
      bias_hls: float32, added to the logits of all rows, which are then not scaled; or None.
      lengths_n: int32, if `mask_ns` leaves out exactly the keys from these numbers on; or None.

    Returns:
      (n, l, h, d) of the dtype of the values, or None.
    """
    queries, heads, width = q_nlhd.shape[1:]
    keys = k_nshd.shape[1]
    narrow = _narrow(q_nlhd, k_nshd, v_nshd)
    scale = width**-0.5 if bias_hls is None else 1.0
    if forms.platform() == "gpu":
        given = bias_hls is not None or (mask_ns is not None and lengths_n is None)
        if given or not narrow or width % 8 or width > 128 or keys < CUDNN_KEYS:
            return None

        def own(q_nlhd, k_nshd, v_nshd, lengths_n=None):
            return jax.nn.dot_product_attention(
                q_nlhd,
                k_nshd,
                v_nshd,
                is_causal=causal,
                key_value_seq_lengths=lengths_n,
                implementation="cudnn",
            )

        rows = (q_nlhd, k_nshd, v_nshd) + (() if lengths_n is None else (lengths_n,))
        # Left to itself, XLA may split heads or channels, which the kernel refuses when it is compiled.
        return _on_each_device(own, rows)
    if forms.platform() != "tpu":
        return None
    long = queries * keys >= FLASH_LOGITS and not queries % LANES
    if narrow and long and bias_hls is None:
        return _flash(q_nlhd, k_nshd, v_nshd, mask_ns, causal)
    if narrow and mask_ns is None and short_attention.fits(queries, keys, heads * width, width):
        kernel = functools.partial(short_attention.rows, scale=scale, causal=causal)
        return _short(kernel, (q_nlhd, k_nshd, v_nshd), bias_hls)
    return None


def frames(
    q_btphd: jax.Array, k_btphd: jax.Array, v_btphd: jax.Array, causal: bool
) -> jax.Array | None:
    """Computes attention among the frames at each place on a TPU, or returns None where another form is better."""
    t, _, heads, width = q_btphd.shape[1:]
    tokens = t * short_attention.PLACES
    if forms.platform() != "tpu" or not _narrow(q_btphd, k_btphd, v_btphd):
        return None
    if not short_attention.fits(tokens, tokens, heads * width, width):
        return None
    kernel = functools.partial(short_attention.frames, scale=width**-0.5, causal=causal)
    return _short(kernel, (q_btphd, k_btphd, v_btphd))


def _narrow(*arrays: jax.Array) -> bool:
    """Returns whether all arrays have floats of 16 bits, as the kernels need them."""
    return all(x.dtype in (jnp.bfloat16, jnp.float16) for x in arrays)


def _short(
    kernel: Callable, qkv: tuple[jax.Array, ...], bias_hls: jax.Array | None = None
) -> jax.Array | None:
    """Runs a kernel of `short_attention` on each device's rows, with heads and their channels as one axis."""
    shared = () if bias_hls is None else (bias_hls,)

    def own(q, k, v, *shared):
        flat = (x.reshape(*x.shape[:-2], -1) for x in (q, k, v))
        return kernel(*flat, *shared, width=q.shape[-1]).reshape(q.shape)

    return _on_each_device(own, qkv, shared)


def _on_each_device(
    own: Callable[..., jax.Array],
    cut: tuple[jax.Array, ...],
    whole: tuple[jax.Array, ...] = (),
) -> jax.Array | None:
    """Applies `own` on each device to its rows of the arrays `cut` and to the arrays `whole`.

    Returns None if the rows cannot be divided among the devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = chunked_map.row_shards(len(cut[0]))
    if shards != math.prod(mesh.shape.get(axis, 1) for axis in chunked_map.BATCH_AXES):
        return None
    if shards == 1:
        return own(*cut, *whole)
    rows = PartitionSpec(chunked_map.BATCH_AXES)
    specs = (*(rows for _ in cut), *(PartitionSpec() for _ in whole))
    on_mesh = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
    return on_mesh(*cut, *whole)


def _flash(q_nlhd, k_nshd, v_nshd, mask_ns, causal: bool) -> jax.Array | None:
    """Runs JAX's flash attention kernel for the TPU on each device's rows.

    Returns None where the rows cannot be divided among the devices.
    """
    rows, queries, _, width = q_nlhd.shape
    keys = k_nshd.shape[1]
    room = -keys % LANES  # keys of padding, which are masked out
    if room:
        mask_ns = jnp.ones((rows, keys), bool) if mask_ns is None else mask_ns
        mask_ns = jnp.pad(mask_ns, ((0, 0), (0, room)))
        k_nshd, v_nshd = (jnp.pad(x, ((0, 0), (0, room), (0, 0), (0, 0))) for x in (k_nshd, v_nshd))
    sizes = _blocks(queries, keys + room)

    def own(q_nlhd, k_nshd, v_nshd, mask_ns=None):
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

    given = (q_nlhd, k_nshd, v_nshd) if mask_ns is None else (q_nlhd, k_nshd, v_nshd, mask_ns)
    return _on_each_device(own, given)


def _blocks(queries: int, keys: int) -> flash.BlockSizes:
    """Returns the kernel's block sizes: multiples of `LANES` that divide the numbers of queries and keys."""

    def block(length):
        return next(size for size in range(BLOCK, 0, -LANES) if length % size == 0)

    q, k = block(queries), block(keys)
    names = {name: q if "_q" in name else k for name in flash.BlockSizes.__dataclass_fields__}
    return flash.BlockSizes(**names | {"block_b": 1})
