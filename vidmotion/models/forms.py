"""Operations in the form that the device computes best: the same numbers, another order of work.

XLA's program for the CPU is slow in places where that for accelerators is not, so that there a few operations
are written out here. Which form is taken is decided where an operation is traced, by the device and the shape;
accelerators always get the plain form.

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

# Logits of one head from which on a head at a time is faster than all of them at once.
ONE_BY_ONE = 2**14
# Logits of one head that are computed at once: 4 MiB, about what a core's cache holds.
AT_ONCE = 2**20
_PLATFORM = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def of(platform: str) -> Iterator[None]:
    """What is traced within has the forms of a platform, ``tpu``, ``gpu`` or ``any`` accelerator, whatever the device
    here: to be compiled, not to be run."""
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def platform() -> str:
    """Whose forms what is traced now takes: ``cpu``, ``tpu``, ``gpu``, or ``any``: XLA's own."""
    return (_PLATFORM.get() or jax.default_backend()) if chunked_map.wanted() else "any"


def on_cpu() -> bool:
    """Whether what is traced now takes the forms for the CPU."""
    return platform() == "cpu"


def plain(*arrays: jax.Array) -> bool:
    """Whether what is traced now is left to XLA as it is: on accelerators, and with narrower floats than float32."""
    return not on_cpu() or any(x.dtype != jnp.float32 for x in arrays)


# Attention.


def attention(
    q_nlhd: jax.Array,
    k_nshd: jax.Array,
    v_nshd: jax.Array,
    mask_ns: jax.Array | None = None,
    limit: int = AT_ONCE,
) -> jax.Array | None:
    """softmax(q k' / sqrt(d)) v in a form for the CPU.

    Queries lie along the last axis of the logits, so that the softmax goes over columns, which vectorises, and no
    product has to turn the logits around. Many logits are computed one head at a time, in pieces that stay in a
    core's cache, and again in the backward pass.

    Args:
      q_nlhd, k_nshd, v_nshd: queries, keys and values.
      mask_ns: bool, False for keys that are left out; each row keeps at least one.
      limit: number of logits for a device to hold at once; those of one query at least are held.

    Returns:
      (n, l, h, d) of the dtype of the values, or None where the plain form is the better one: on accelerators,
      with narrower floats than float32, with a handful of keys.
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
    """Attention of scaled queries, one head after the other."""
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
            # Of the softmax, by sum_s weight * (g v) = g y.
            change_sl = weight_sl * (v_ds.T @ g_dl - (g_dl * y_dl).sum(0)[None])
            return k_ds @ change_sl, change_sl @ q_ld, weight_sl @ g_ld

        dq_pdl, dk_psd, dv_psd = chunked_map.each(piece, tuple(queries))
        return dq_pdl, dk_psd.sum(0), dv_psd.sum(0)

    # Queries and gradients lie both ways, since the logits are to be turned around nowhere.
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
    """(n, l, h, d) -> (n h, p, d, l / p)."""
    n, l, h, d = x_nlhd.shape
    x_nplhd = x_nlhd.reshape(n, cuts, l // cuts, h, d)
    return x_nplhd.transpose(0, 3, 1, 4, 2).reshape(n * h, cuts, d, l // cuts)


def _back(x_rpdl, n):
    """The other way round."""
    x_nhpdl = x_rpdl.reshape(n, -1, *x_rpdl.shape[1:])
    x_nplhd = x_nhpdl.transpose(0, 2, 4, 1, 3)
    return x_nplhd.reshape(n, -1, *x_nplhd.shape[3:])


# Layers. XLA's program for the CPU merges what comes before a sum or a turned factor into it, and computes all that
# again value by value in an order that does not vectorise: for the gradient of a bias or a kernel that is a norm, an
# activation, a whole sum of other gradients. Products take their factors from memory, so that here both are products.


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


def biased(y: jax.Array, bias_d: jax.Array) -> jax.Array:
    """(..., d) plus (d,), in the dtype of the former."""
    bias_d = bias_d.astype(y.dtype)
    if plain(y):
        return y + bias_d.reshape((1,) * (y.ndim - 1) + (-1,))
    return _biased(y.reshape(-1, y.shape[-1]), bias_d).reshape(y.shape)


class Dense(nn.Dense):
    """`flax.linen.Dense` with gradients in the form for the device; its attributes and parameters."""

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
        if not self.use_bias:
            return y
        return biased(y, self.param("bias", self.bias_init, (self.features,), self.param_dtype))


class Split(nn.Module):
    """A dense layer whose output is cut into equal parts, such as queries, keys and values.

    On accelerators each part is a product of its own with its columns of the kernel: cutting the kernel is cheap, while
    parts that are cut from activations, and put together again in the backward pass, are copied.

    Attributes:
      features: how many each part has.
      parts: how many.
      kernel_init: the initializer of the kernel (c, parts features), whose columns are in the order of the parts.
      dtype: the dtype of the computation.
    """

    features: int
    parts: int = 3
    kernel_init: nn.initializers.Initializer = nn.linear.default_kernel_init
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """(..., c) -> as many (..., features) as there are parts."""
        width = self.parts * self.features
        kernel_cd = self.param("kernel", self.kernel_init, (x.shape[-1], width))
        bias_d = self.param("bias", nn.initializers.zeros, (width,))
        x, kernel_cd, bias_d = nn.dtypes.promote_dtype(x, kernel_cd, bias_d, dtype=self.dtype)
        if on_cpu():
            return tuple(jnp.split(biased(x @ kernel_cd, bias_d), self.parts, axis=-1))
        kernels, biases = (jnp.split(y, self.parts, axis=-1) for y in (kernel_cd, bias_d))
        return tuple(biased(x @ kernel, bias) for kernel, bias in zip(kernels, biases))


class Conv(nn.Conv):
    """`flax.linen.Conv` with a bias whose gradient has the form for the device; its other attributes and parameters."""

    use_bias: bool = False  # of the class above

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., c) -> (..., features)."""
        y = super().__call__(x)
        return biased(y, self.param("bias", self.bias_init, (self.features,), self.param_dtype))


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x / 2 (1 + erf(x / sqrt 2)).

    `jax.nn.gelu` writes it with erfc, which is exact in the far left tail as well and twice as dear on the CPU.
    """
    if plain(x):
        return jax.nn.gelu(x, approximate=False)
    return 0.5 * x * (1 + jax.lax.erf(x * np.float32(0.5**0.5)))
