"""The likelihood against torch, pixel by pixel, and against SciPy's density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vidmotion.losses.reconstruction import laplace_nll


@pytest.mark.oracle
def test_equals_torch():
    """Compares value and gradients of r / exp(s) + s, summed over pixels and averaged over images."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    error = rng.uniform(0, 1, (3, 4, 5, 3)).astype(np.float32)
    lpips = rng.uniform(0, 1, 3).astype(np.float32)
    e, p, s = (torch.tensor(x, requires_grad=True) for x in (error, lpips, np.float32(-0.7)))
    nll = (e + 0.05 * p[:, None, None, None]) / torch.exp(s) + s
    want = nll.sum() / 3
    want.backward()

    def loss(e, p, s):
        return laplace_nll(e, p, s, 0.05)

    got, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(error, lpips, jnp.float32(-0.7))
    assert got.shape == () and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want.item(), rtol=1e-6)
    for ours, theirs in zip(gradients, (e, p, s)):
        np.testing.assert_allclose(ours, theirs.grad, rtol=1e-5)


def test_is_the_laplace_density():
    """Without the perceptual part, the loss is the negative log density up to log 2 per value."""
    error = np.random.default_rng(1).uniform(0, 2, (2, 3, 3, 3)).astype(np.float32)
    got = laplace_nll(error, jnp.zeros(2), jnp.float32(0.4), 0.05)
    density = stats.laplace.logpdf(error, scale=np.exp(0.4)) + np.log(2)
    np.testing.assert_allclose(got, -density.sum() / 2, rtol=1e-6)


def test_what_a_frame_pays_for_its_distance():
    """Section 7: at s = 0, LPIPS adds 0.05 * 150528 * p per frame of 224x224 pixels."""
    got = laplace_nll(jnp.zeros((1, 224, 224, 3)), jnp.array([0.25]), jnp.float32(0), 0.05)
    np.testing.assert_allclose(got, 0.05 * 150528 * 0.25, rtol=1e-6)


def test_sums_in_float32():
    error = jnp.ones((1, 64, 64, 3), jnp.bfloat16)
    got = laplace_nll(error, jnp.zeros(1, jnp.bfloat16), jnp.zeros((), jnp.bfloat16), 0.05)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, 64 * 64 * 3, rtol=1e-6)
