"""The Kullback-Leibler divergence against numerical integration and in its limits."""

import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion.losses.kl import gaussian_kl


@pytest.mark.parametrize(("mean", "logvar"), [(0.0, 0.0), (1.0, np.log(4.0)), (-0.7, -1.3)])
def test_equals_the_integral(mean, logvar):
    x = np.linspace(-30, 30, 200_001)

    def log_density(mean, logvar):
        return -0.5 * ((x - mean) ** 2 / np.exp(logvar) + logvar + np.log(2 * np.pi))

    p, q = log_density(mean, logvar), log_density(0.0, 0.0)
    want = np.trapezoid(np.exp(p) * (p - q), x)
    got = gaussian_kl(jnp.full((1, 1), mean), jnp.full((1, 1), logvar))
    np.testing.assert_allclose(got, [want], atol=1e-6)


def test_sums_over_all_but_the_batch():
    mean = np.zeros((2, 3, 4, 5), np.float32)
    mean[1, :, 2, :] = 2.0
    np.testing.assert_allclose(gaussian_kl(mean, np.zeros_like(mean)), [0.0, 0.5 * 15 * 4])


def test_does_not_cancel_near_the_prior():
    got = gaussian_kl(np.zeros((1, 1)), np.full((1, 1), 1e-3))
    np.testing.assert_allclose(got, [0.5 * (0.5e-6 + 1e-9 / 6)], rtol=1e-3)
