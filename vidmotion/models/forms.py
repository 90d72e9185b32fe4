"""Attention, dense layers, convolutions and GELU in the form that the current device computes fastest.

The results are the same for every form; only the order of the work differs. XLA compiles a few operations badly for the
CPU though not for accelerators, so this module writes those out for the CPU. The form is chosen when an operation is
traced, by device and shape; accelerators always get the plain form.

Shape suffixes: n rows, l queries, s keys, h heads, d width of one head, r = n h, p pieces of the queries.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidmotion import chunked_map

# With at least this many logits per head, computing one head at a time is faster than computing all at once.
ONE_BY_ONE = 2**14
# The number of one head's logits that are computed at once: 4 MiB, about the size of a core's cache.
AT_ONCE = 2**20
_PLATFORM = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def of(platform: str) -> Iterator[None]:
    """Makes everything traced inside the `with` block take the forms for `platform`, whatever device is present.

    Such a program can be compiled for that platform but not run on this one.

    Args:
      platform: ``tpu``, ``gpu``, or ``any`` for any accelerator.
    """
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def platform() -> str:
    """Returns the platform whose forms are used by operations traced now: ``cpu``, ``tpu``, ``gpu``, or ``any``, which
    means XLA's own forms."""
    return (_PLATFORM.get() or jax.default_backend()) if chunked_map.wanted() else "any"


def on_cpu() -> bool:
    """Returns whether operations traced now take the forms for the CPU."""
    return platform() == "cpu"


def plain(*arrays: jax.Array) -> bool:
    """Returns whether an operation on `arrays` traced now takes XLA's plain form.

    That is so on accelerators, and wherever an array is not float32.
    """
    return not on_cpu() or any(x.dtype != jnp.float32 for x in arrays)


# Attention.


def attention(
    q_nlhd: jax.Array,
    k_nshd: jax.Array,
    v_nshd: jax.Array,
    mask_ns: jax.Array | None = None,
    limit: int = AT_ONCE,
) -> jax.Array | None:
    """Computes softmax(q k' / sqrt(d)) v in a form for the CPU.

    Queries lie along the last axis of the logits. The softmax therefore runs down columns, which vectorises, and no
    matrix product has to transpose the logits. Where there are many logits, they are computed one head at a time in
    pieces that fit into a core's cache, and computed again in the backward pass.

    Args:
      q_nlhd, k_nshd, v_nshd: queries, keys and values.
      mask_ns: bool, False for keys that are left out; each row keeps at least one.
      limit: the number of logits that a device may hold at once; it always holds at least those of one query.

    Returns:
      (n, l, h, d) of the dtype of the values, or None where the plain form is better: on accelerators, with a dtype
      other than float32, and with only a few keys.
    """
    n, queries, heads, width = q_nlhd.shape
    keys = k_nshd.shape[1]
    if plain(q_nlhd, k_nshd, v_nshd) or keys <= width // 2:
        return None
    q_nlhd = q_nlhd * width**-0.5
    shards = chunked_map.row_shards(n)
    if queries * keys >= ONE_BY_ONE or n // shards * heads * queries * keys > limit:
        return _one_by_one(q_nlhd, k_nshd, v_nshd, mask_ns, min(limit, AT_ONCE), shards)
    logits_nhsl = jnp.einsum("nlhd,nshd->nhsl", q_nlhd, k_nshd)
    if mask_ns is not None:
        logits_nhsl = jnp.where(mask_ns[:, None, :, None], logits_nhsl, -jnp.inf)
    top_nh1l = jax.lax.stop_gradient(logits_nhsl.max(2, keepdims=True))
    weight_nhsl = jnp.exp(logits_nhsl - top_nh1l)
    y_nlhd = jnp.einsum("nhsl,nshd->nlhd", weight_nhsl, v_nshd)
    return y_nlhd / weight_nhsl.sum(2).swapaxes(1, 2)[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _one_by_one(q_nlhd, k_nshd, v_nshd, mask_ns, limit, shards):
    """Computes the attention of queries that are already scaled, one head after the other."""
    return _forward(q_nlhd, k_nshd, v_nshd, mask_ns, limit, shards)[0]


def _forward(q_nlhd, k_nshd, v_nshd, mask_ns, limit, shards):
    n, queries, heads, _ = q_nlhd.shape
    keys = k_nshd.shape[1]
    cuts = chunked_map.cuts(queries, queries * keys, limit)
    mask_rs = None if mask_ns is None else jnp.repeat(mask_ns, heads, 0)

    def head(row):
        q_pdl, k_ds, v_ds, mask_s = row

        def piece(q_dl):
            logits_sl = _logits(q_dl, k_ds, mask_s)
            top_l = logits_sl.max(0)
            weight_sl = jnp.exp(logits_sl - top_l[None])
            sum_l = weight_sl.sum(0)
            return (v_ds @ weight_sl) / sum_l[None], top_l + jnp.log(sum_l)

        return chunked_map.each(piece, q_pdl)

    rows = _turned(q_nlhd, cuts), _turned(k_nshd)[:, 0], _turned(v_nshd)[:, 0], mask_rs
    y_rpdl, norm_rpl = chunked_map.each(head, rows, 1, shards)
    return _back(y_rpdl, n), (q_nlhd, rows, y_rpdl, norm_rpl)


def _backward(limit, shards, saved, g_nlhd):
    q_nlhd, (q_rpdl, k_rds, v_rds, mask_rs), y_rpdl, norm_rpl = saved
    n, _, heads, _ = q_nlhd.shape
    cuts = q_rpdl.shape[1]

    def straight(x_nlhd):  # -> (r, p, l / p, d)
        x_nhld = x_nlhd.swapaxes(1, 2)
        return x_nhld.reshape(n * heads, cuts, -1, x_nhld.shape[-1])

    def head(row):
        *queries, k_ds, v_ds, mask_s = row

        def piece(given):
            q_dl, q_ld, g_dl, g_ld, y_dl, norm_l = given
            weight_sl = jnp.exp(_logits(q_dl, k_ds, mask_s) - norm_l[None])
            # The gradient of the softmax, with sum_s weight * (g v) = g y.
            change_sl = weight_sl * (v_ds.T @ g_dl - (g_dl * y_dl).sum(0)[None])
            return k_ds @ change_sl, change_sl @ q_ld, weight_sl @ g_ld

        dq_pdl, dk_psd, dv_psd = chunked_map.each(piece, tuple(queries))
        return dq_pdl, dk_psd.sum(0), dv_psd.sum(0)

    # Queries and gradients are given in both orders, so that the logits never need to be transposed.
    g_rpdl = _turned(g_nlhd, cuts)
    rows = (
        q_rpdl,
        straight(q_nlhd),
        g_rpdl,
        straight(g_nlhd),
        y_rpdl,
        norm_rpl,
        k_rds,
        v_rds,
        mask_rs,
    )
    dq_rpdl, *others = chunked_map.each(head, rows, 1, shards)
    dk_nshd, dv_nshd = (x.reshape(n, heads, *x.shape[1:]).swapaxes(1, 2) for x in others)
    return _back(dq_rpdl, n), dk_nshd, dv_nshd, None


_one_by_one.defvjp(_forward, _backward)


def _logits(q_dl, k_ds, mask_s):
    logits_sl = k_ds.T @ q_dl
    return logits_sl if mask_s is None else jnp.where(mask_s[:, None], logits_sl, -jnp.inf)


def _turned(x_nlhd, cuts=1):
    """Splits rows into heads and queries into pieces, queries last: (n, l, h, d) -> (n h, p, d, l / p)."""
    n, l, h, d = x_nlhd.shape
    x_nplhd = x_nlhd.reshape(n, cuts, l // cuts, h, d)
    return x_nplhd.transpose(0, 3, 1, 4, 2).reshape(n * h, cuts, d, l // cuts)


def _back(x_rpdl, n):
    """Undoes `_turned`: (n h, p, d, l / p) -> (n, l, h, d)."""
    x_nhpdl = x_rpdl.reshape(n, -1, *x_rpdl.shape[1:])
    x_nplhd = x_nhpdl.transpose(0, 2, 4, 1, 3)
    return x_nplhd.reshape(n, -1, *x_nplhd.shape[3:])


# Layers. On the CPU, XLA fuses the operations before a sum or a transposed factor into it and computes them again value
# by value, in an order that does not vectorise. For the gradient of a bias or a kernel, those operations are a norm, an
# activation or a whole sum of other gradients. Matrix products read their factors from memory instead, so both
# gradients are written as matrix products.


@jax.custom_vjp
def _product(x_rc, kernel_cd):
    return x_rc @ kernel_cd


def _product_forward(x_rc, kernel_cd):
    x_rc = jax.lax.optimization_barrier(x_rc)
    return x_rc @ kernel_cd, (x_rc, kernel_cd)


def _product_backward(saved, g_rd):
    x_rc, kernel_cd = saved
    g_rd = jax.lax.optimization_barrier(g_rd)
    return g_rd @ kernel_cd.T, x_rc.T @ g_rd


_product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def _biased(y_rd, bias_d):
    return y_rd + bias_d[None]


def _biased_backward(_, g_rd):
    return g_rd, jnp.ones(len(g_rd)) @ g_rd


_biased.defvjp(lambda y_rd, bias_d: (y_rd + bias_d[None], None), _biased_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _spread(x, shape, narrow):
    return jnp.broadcast_to(x, shape)


def _spread_backward(shape, narrow, _, g):
    # A TPU sums over rows many times faster by a product with ones, which the matrix unit computes. A product with a
    # single row of ones would be turned into a sum again.
    summed = tuple(i for i, size in enumerate(narrow) if size < shape[i])
    kept = tuple(range(summed[0]))
    ones = jnp.ones((*(shape[i] for i in kept), 8, *(shape[i] for i in summed)), g.dtype)
    over = tuple(range(len(kept) + 1, ones.ndim)), summed
    sums = jax.lax.dot_general(ones, g, (over, (kept, kept)), preferred_element_type=jnp.float32)
    return (sums[(slice(None),) * len(kept) + (0,)].reshape(narrow).astype(g.dtype),)


_spread.defvjp(lambda x, shape, narrow: (jnp.broadcast_to(x, shape), None), _spread_backward)


def spread(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Broadcasts `x` to `shape`, with a gradient in the form for the device.

    Args:
      x: an array whose last axis is that of `shape`; other axes of size 1, or missing in front, are spread.
      shape: the shape of the result.
    """
    x = x.reshape((1,) * (len(shape) - x.ndim) + x.shape)
    if platform() != "tpu" or x.shape == shape:
        return jnp.broadcast_to(x, shape)
    return _spread(x, shape, x.shape)


def biased(y: jax.Array, bias_d: jax.Array) -> jax.Array:
    """Adds a bias (d,) to `y` (..., d), in the dtype of `y`."""
    bias_d = bias_d.astype(y.dtype)
    if plain(y):
        return y + spread(bias_d, y.shape)
    return _biased(y.reshape(-1, y.shape[-1]), bias_d).reshape(y.shape)


class Dense(nn.Dense):
    """`flax.linen.Dense` with gradients in the form for the device; attributes and parameters are the same."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., c) -> (..., features)."""
        shape = x.shape[-1], self.features
        kernel_cd = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        x, kernel_cd = nn.dtypes.promote_dtype(x, kernel_cd, dtype=self.dtype)
        if plain(x):
            y = jax.lax.dot_general(x, kernel_cd, (((x.ndim - 1,), (0,)), ((), ())))
        else:
            y = _product(x.reshape(-1, x.shape[-1]), kernel_cd).reshape(*x.shape[:-1], -1)
        y = chunked_map.on_own_rows(y)
        if not self.use_bias:
            return y
        return biased(y, self.param("bias", self.bias_init, (self.features,), self.param_dtype))


class Split(nn.Module):
    """A dense layer whose output is cut into equal parts, such as queries, keys and values.

    On accelerators each part is the product of the input with that part's columns of the kernel. Cutting the kernel is
    cheap, whereas cutting the activations into parts, and joining them again in the backward pass, copies them.

    Attributes:
      features: the number of channels of each part.
      parts: the number of parts.
      kernel_init: the initializer of the kernel (c, parts features), whose columns are in the order of the parts.
      dtype: the dtype of the computation.
    """

    features: int
    parts: int = 3
    kernel_init: nn.initializers.Initializer = nn.linear.default_kernel_init
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """(..., c) -> a tuple of `parts` arrays (..., features)."""
        width = self.parts * self.features
        kernel_cd = self.param("kernel", self.kernel_init, (x.shape[-1], width))
        bias_d = self.param("bias", nn.initializers.zeros, (width,))
        x, kernel_cd, bias_d = nn.dtypes.promote_dtype(x, kernel_cd, bias_d, dtype=self.dtype)
        if on_cpu():
            return tuple(jnp.split(biased(x @ kernel_cd, bias_d), self.parts, axis=-1))
        kernels, biases = (jnp.split(y, self.parts, axis=-1) for y in (kernel_cd, bias_d))
        return tuple(biased(x @ kernel, bias) for kernel, bias in zip(kernels, biases))


class Conv(nn.Conv):
    """`flax.linen.Conv` with a bias whose gradient has the form for the device.

    All other attributes, and the parameters, are those of `flax.linen.Conv`.
    """

    use_bias: bool = False  # the parent class must not add a bias; this class adds it

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., c) -> (..., features)."""
        y = chunked_map.on_own_rows(super().__call__(x))
        return biased(y, self.param("bias", self.bias_init, (self.features,), self.param_dtype))


def gelu(x: jax.Array) -> jax.Array:
    """Computes the exact GELU, x / 2 (1 + erf(x / sqrt 2)).

    `jax.nn.gelu` uses erfc, which is also exact in the far left tail but takes twice as long on the CPU.
    """
    if plain(x):
        return jax.nn.gelu(x, approximate=False)
    return 0.5 * x * (1 + jax.lax.erf(x * np.float32(0.5**0.5)))
