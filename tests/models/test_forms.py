"""Forms for the CPU against the plain forms and against numpy, forwards and backwards."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from vidmotion import chunked_map
from vidmotion.models import forms
from vidmotion.models.attention import attend


@pytest.fixture(autouse=True)
def cpu():
    if jax.default_backend() != "cpu":
        pytest.skip("the forms are those of the CPU")


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def with_gradients(function, *inputs):
    """Returns the function's value, and the gradients of its product with a fixed array."""

    def run(*inputs):
        y, back = jax.vjp(function, *inputs)
        return y, *back(jnp.asarray(random(*y.shape, seed=9)))

    return quick_jit(run)(*inputs)


def close(got, want, atol=2e-5):
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, atol=atol, rtol=2e-4)


def softmax(q, k, v, mask):
    """Computes attention with numpy in float64."""
    logits = np.einsum("nlhd,nshd->nhls", q.astype(float), k.astype(float))
    logits = logits / np.sqrt(q.shape[-1])
    if mask is not None:
        logits[~np.broadcast_to(mask[:, None, None], logits.shape)] = -np.inf
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("nhls,nshd->nlhd", weight / weight.sum(-1, keepdims=True), v)


# (queries, keys) for the three forms: few keys, all heads at once, head by head.
SHAPES = {"plain": (4, 2), "at once": (8, 12), "one by one": (160, 128)}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", SHAPES)
def test_attention(kind, masked):
    queries, keys = SHAPES[kind]
    q, k, v = random(2, queries, 3, 4), random(2, keys, 3, 4, seed=1), random(2, keys, 3, 4, seed=2)
    mask = random(2, keys, seed=3) > 0 if masked else None
    if masked:
        mask[:, 0] = True
    got = forms.attention(q, k, v, mask)
    assert (got is None) == (kind == "plain")
    np.testing.assert_allclose(attend(q, k, v, mask), softmax(q, k, v, mask), atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("limit", [forms.AT_ONCE, 5 * 128])
@pytest.mark.parametrize("kind", ["at once", "one by one"])
def test_gradients_of_attention(kind, limit, masked):
    queries, keys = SHAPES[kind]
    q, k, v = random(2, queries, 3, 4), random(2, keys, 3, 4, seed=1), random(2, keys, 3, 4, seed=2)
    mask = np.arange(keys)[None] < np.array([[keys], [keys - 3]]) if masked else None

    def ours(q, k, v):
        return forms.attention(q, k, v, mask, limit)

    def plain(q, k, v):
        return jax.nn.dot_product_attention(
            q, k, v, mask=None if mask is None else mask[:, None, None]
        )

    close(with_gradients(ours, q, k, v), with_gradients(plain, q, k, v))


def test_large_logits():
    """Attention does not overflow for logits whose exponentials exceed float32."""
    q, v = 100 * random(1, 128, 1, 4), random(1, 128, 1, 4, seed=1)
    np.testing.assert_allclose(attend(q, q, v), softmax(q, q, v, None), atol=1e-4)


@pytest.mark.parametrize("use_bias", [False, True])
def test_dense(use_bias):
    x = random(2, 3, 5)
    ours, flax = (make(7, use_bias=use_bias) for make in (forms.Dense, nn.Dense))
    same(ours, flax, x)


@pytest.mark.parametrize("strides", [1, 2])
def test_conv(strides):
    size = 6, (3, 3), strides
    same(
        forms.Conv(*size, padding=((1, 1), (1, 1))),
        nn.Conv(*size, padding=((1, 1), (1, 1))),
        random(2, 4, 4, 5),
    )


def same(ours, flax, x):
    """Checks that the two modules have the same fresh parameters, values and gradients."""
    fresh = [jax.tree.leaves_with_path(net.init(jax.random.key(0), x)) for net in (ours, flax)]
    assert [path for path, _ in fresh[0]] == [path for path, _ in fresh[1]]
    close(*([leaf for _, leaf in leaves] for leaves in fresh), atol=0)
    params = random_like(flax.init(jax.random.key(0), x))
    got, want = (
        with_gradients(lambda p, x, net=net: net.apply(p, x), params, x) for net in (ours, flax)
    )
    close(jax.tree.leaves(got), jax.tree.leaves(want))


def test_gelu():
    x = np.linspace(-8, 8, 4001, dtype=np.float32)
    close(
        with_gradients(forms.gelu, x),
        with_gradients(lambda x: jax.nn.gelu(x, approximate=False), x),
    )


def test_accelerators_keep_the_plain_form():
    """The plain form is also kept for narrower floats, and while operations are counted."""
    q = random(1, 128, 1, 8)

    def text():
        return str(jax.make_jaxpr(lambda q: attend(q, q, q))(q))

    assert "custom_vjp_call" in text()
    with forms.of("any"):
        assert "custom_vjp_call" not in text() and not forms.on_cpu()
    with chunked_map.all_at_once():
        assert "custom_vjp_call" not in text() and not forms.on_cpu()
    assert forms.attention(*[jnp.asarray(q, jnp.bfloat16)] * 3) is None


@pytest.mark.parametrize(
    ("narrow", "shape"),
    [((5,), (2, 3, 4, 5)), ((2, 3, 1, 5), (2, 3, 4, 5)), ((2, 1, 1, 5), (2, 3, 4, 5))],
)
def test_the_gradient_of_what_is_spread_is_a_sum(narrow, shape):
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in (narrow, shape))

    def total(x):
        y = forms.spread(x, shape)
        assert y.shape == shape
        return (y * weight).sum()

    expected = np.asarray(weight, np.float64)
    for axis, size in enumerate((1,) * (len(shape) - len(narrow)) + narrow):
        if size < shape[axis]:
            expected = expected.sum(axis, keepdims=True)
    for platform in ("cpu", "tpu"):
        with forms.of(platform):
            gradient = jax.jit(jax.grad(total))(x)
        np.testing.assert_allclose(gradient, expected.reshape(narrow), rtol=1e-5)
