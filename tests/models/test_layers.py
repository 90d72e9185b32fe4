"""Attention, feed-forward layer, adaptive norm and stack of blocks against NumPy and by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import random_like
from scipy.special import softmax

from vidmotion import paths
from vidmotion.models import forms, layers

dense = nn.Dense


class Called(nn.Module):
    """A module that only calls the given function."""

    function: object

    @nn.compact
    def __call__(self, *args):
        """Returns the function's result."""
        return self.function(*args)


def applied(function, *args):
    """Returns the function's value for random parameters, and these parameters by path."""
    module = Called(function)
    params = random_like(module.init(jax.random.key(0), *args)["params"])
    return module.apply({"params": params}, *args), {
        path: np.float64(leaf) for path, leaf in paths.flatten(params).items()
    }


def inputs(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def layer(p, name, x):
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


@pytest.mark.parametrize("kind", ["three layers", "one layer", "context"])
def test_attention_is_numpys_one_head_at_a_time(kind):
    x = inputs(2, 3, 5, 8)
    context = inputs(2, 3, 4, 6, seed=1) if kind == "context" else None
    split = forms.Split if kind == "one layer" else None
    function = functools.partial(layers.attention, heads=2, dense=dense, split=split, width=4)
    if context is not None:
        got, p = applied(lambda x, context: function(x[0], context[0]), x, context)
        x, read = x[0], context[0]
    else:
        got, p = applied(lambda x: function(x[0]), x)
        x = read = x[0]
    if split:
        q, k, v = np.split(layer(p, "qkv", x), 3, axis=-1)
    else:
        q, k, v = (layer(p, name, y) for name, y in zip(layers.SEPARATE, (x, read, read)))
    out = np.empty_like(q)
    for b in range(3):
        for head in (np.s_[:, :2], np.s_[:, 2:]):
            weight = softmax(q[b][head] @ k[b][head].T / np.sqrt(2), axis=-1)
            out[b][head] = weight @ v[b][head]
    np.testing.assert_allclose(got, layer(p, "out", out), rtol=1e-4, atol=1e-5)


def test_the_feed_forward_layer_has_the_names_and_the_activation_it_is_given():
    x = inputs(3, 4)
    function = functools.partial(
        layers.mlp, dense=dense, names=("wi", "wo"), activation=lambda y: y[..., :5] * y[..., 5:]
    )
    got, p = applied(lambda x: function(x, 10), x)
    hidden = layer(p, "wi", x)
    expected = layer(p, "wo", hidden[:, :5] * hidden[:, 5:])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_plain_norm_has_mean_zero_and_variance_one():
    x = 5 + 3 * inputs(2, 7, 64).astype(jnp.bfloat16)
    y = layers.plain_norm(x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1, rtol=1e-4)


def test_an_adaptive_norm_by_hand():
    """For the condition c = 1, checks a scale of 1 + 2 c, a shift of 3 c and a gate of 0.5 + 4 c."""
    module = layers.AdaLN(width=1, sites=1, gates=True, gate_start=0.5)
    condition = jnp.ones((1, 1, 1))
    params = module.init(jax.random.key(0), condition)["params"]
    ((scale, shift),), (gate,) = module.apply({"params": params}, condition)
    assert (scale, shift, gate) == (1, 0, 0.5)
    params["both"]["kernel"] = jnp.array([[2.0, 3.0]])
    params["gate"]["kernel"] = jnp.array([[4.0]])
    ((scale, shift),), (gate,) = module.apply({"params": params}, condition)
    assert (scale, shift, gate) == (3, 3, 4.5)
    assert layers.AdaLN(1, 1, gates=False).apply({"params": params}, condition)[1] == []


class Step(nn.Module):
    """Computes x -> shared * x + weight * row."""

    start: float

    @nn.compact
    def __call__(self, x, shared, row):
        """Returns the pair that `layers.stack` expects."""
        weight = self.param("weight", nn.initializers.constant(self.start), ())
        return shared * x + weight * row, None


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("scan", [False, True])
def test_blocks_follow_each_other_each_with_its_own_row(scan, remat):
    rows = jnp.array([1.0, 10.0, 100.0])

    def function(x):
        loops = {"scan": scan, "remat": remat}
        return layers.stack(Step, (2.0,), 3, "block", x, (jnp.float32(3),), (rows,), **loops)

    module = Called(function)
    params = module.init(jax.random.key(0), jnp.float32(1))["params"]
    names = {"blocks"} if scan else {"block_0", "block_1", "block_2"}
    assert params.keys() == names
    # ((1 * 3 + 2) * 3 + 20) * 3 + 200
    assert module.apply({"params": params}, jnp.float32(1)) == 305
