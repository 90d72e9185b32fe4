"""Classifier-free guidance against values computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion.diffusion.guidance import guided

X = np.arange(6, dtype=np.float32).reshape(2, 3)
COND = {"a": np.array([[1.0], [2.0]], np.float32), "b": np.full((2, 3), 10.0, np.float32)}
NULL = {"a": np.array([[-1.0], [-3.0]], np.float32), "b": np.zeros((2, 3), np.float32)}


def denoise(x, sigma, condition):
    return x * condition["a"] + condition["b"] + sigma


@pytest.mark.parametrize("scale", [0.0, 1.5, 3.0])
def test_guided_by_hand(scale):
    sigma = jnp.float32(0.25)
    with_cond = X * COND["a"] + 10.25
    without = X * NULL["a"] + 0.25
    got = jax.jit(guided(denoise, COND, NULL, scale))(X, sigma)
    np.testing.assert_allclose(got, without + scale * (with_cond - without), rtol=1e-6)


def test_scale_1_is_the_conditional_model_and_evaluates_nothing_else():
    batches = []

    def recording(x, sigma, condition):
        batches.append(len(x))
        return denoise(x, sigma, condition)

    got = jax.jit(guided(recording, COND, NULL, 1.0))(X, 0.25)
    np.testing.assert_array_equal(got, X * COND["a"] + 10.25)
    jax.jit(guided(recording, COND, NULL, 1.5))(X, 0.25)
    assert batches == [2, 4]  # at a scale other than 1, both branches run in one batch
