"""Noise processes: preconditioning, weights and tables, in closed form and against diffusers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion.diffusion.process import DDPM, EDM

SIGMAS = np.array([0.002, 0.1, 0.5, 3.0, 80.0], np.float32)


@pytest.mark.parametrize("data_std", [0.5, 1.0])
def test_edm_network_sees_and_predicts_unit_variance(data_std):
    edm = EDM(sigma_data=data_std)
    scale, sigma = edm.scalings(SIGMAS), np.float64(SIGMAS)
    # z (variance data_std^2) and the unit noise are independent, so the variance of their sum is the sum of variances.
    noisy = data_std**2 + sigma**2
    np.testing.assert_allclose(np.float64(scale.c_in) ** 2 * noisy, 1, rtol=1e-5)
    # The target of F is (z - c_skip (z + sigma n)) / c_out.
    c_skip, c_out = np.float64(scale.c_skip), np.float64(scale.c_out)
    target = ((1 - c_skip) ** 2 * data_std**2 + c_skip**2 * sigma**2) / c_out**2
    np.testing.assert_allclose(target, 1, rtol=1e-4)
    # c_skip minimises c_out: any other value amplifies the network's errors more.
    for other in (0.99, 1.01):
        error = (1 - other * c_skip) ** 2 * data_std**2 + (other * c_skip) ** 2 * sigma**2
        assert np.all(error > c_out**2 * (1 - 1e-6))
    # The weight turns the loss on D into the unweighted loss on F.
    np.testing.assert_allclose(edm.weight(SIGMAS) * c_out**2, 1, rtol=1e-5)
    np.testing.assert_allclose(scale.time, 1000 * np.log(sigma) / 4, rtol=1e-6)


def test_edm_training_noise_is_lognormal():
    shape = (200, 500)
    sigma = EDM(p_mean=-0.4, p_std=1.0).sample_sigma(jax.random.key(0), shape)
    assert sigma.shape == shape
    assert sigma.dtype == jnp.float32
    log = np.log(np.float64(sigma)).ravel()
    assert abs(log.mean() + 0.4) < 5 / math.sqrt(log.size)
    assert abs(log.std() - 1) < 5 / math.sqrt(2 * log.size)
    assert np.mean(log < -0.4 - 1.959964) == pytest.approx(0.025, abs=0.003)
    assert (EDM().p_mean, EDM().p_std) == (-1.2, 1.2)  # Karras et al., Table 1


def test_ddpm_loss_is_the_error_of_the_predicted_noise():
    rng = np.random.default_rng(0)
    z, noise, network = (rng.normal(size=(5, 1000)).astype(np.float32) for _ in range(3))
    process, sigma = DDPM(), SIGMAS[:, None]
    scale = process.scalings(SIGMAS)
    y = z + sigma * noise
    denoised = scale.c_skip[:, None] * y + scale.c_out[:, None] * network
    weighted = process.weight(SIGMAS) * np.mean((np.float64(denoised) - z) ** 2, axis=1)
    expected = np.mean((np.float64(network) - noise) ** 2, axis=1)
    np.testing.assert_allclose(weighted[1:], expected[1:], rtol=1e-3)
    # c_in turns y into the variance-preserving z_t = sqrt(abar) z + sqrt(1 - abar) n.
    abar = 1 / (1 + np.float64(sigma) ** 2)
    preserving = np.sqrt(abar) * z + np.sqrt(1 - abar) * noise
    np.testing.assert_allclose(scale.c_in[:, None] * y, preserving, atol=1e-5)


def test_ddpm_table_by_hand():
    process = DDPM(steps=3, beta_start=0.1, beta_end=0.3)
    abar = np.array([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7])
    sigma = np.sqrt(1 / abar - 1).astype(np.float32)
    assert process.sigma_min == pytest.approx(sigma[0])
    assert process.sigma_max == pytest.approx(sigma[2])
    np.testing.assert_allclose(process.scalings(sigma).time, [0, 1, 2], atol=1e-5)
    between = np.float32(math.sqrt(sigma[0] * sigma[1]))[None]
    np.testing.assert_allclose(process.scalings(between).time, [0.5], atol=1e-5)
    drawn = np.asarray(process.sample_sigma(jax.random.key(0), (3000,)))
    counts = [np.isclose(drawn, s, rtol=1e-5).sum() for s in sigma]
    assert sum(counts) == 3000
    assert np.all(np.abs(np.array(counts) - 1000) < 5 * math.sqrt(3000 * 2 / 9))


@pytest.mark.oracle
def test_ddpm_table_against_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear"
    )
    abar = scheduler.alphas_cumprod.double().numpy()
    sigma = np.sqrt((1 - abar) / abar)
    process = DDPM()
    # diffusers stores alpha bar in float32, so that 1 - alpha bar is inexact.
    assert process.sigma_min == pytest.approx(sigma[0], rel=1e-3)
    assert process.sigma_max == pytest.approx(sigma[-1], rel=1e-4)
    time = process.scalings(jnp.asarray(sigma, jnp.float32)).time
    np.testing.assert_allclose(time, np.arange(1000), atol=0.01)


@pytest.mark.oracle
def test_edm_preconditioning_against_diffusers():
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.5)
    rng = np.random.default_rng(0)
    y, network = (rng.normal(size=(len(SIGMAS), 7)).astype(np.float32) for _ in range(2))
    scale = EDM(sigma_data=0.5).scalings(SIGMAS)
    sigma = torch.from_numpy(SIGMAS)[:, None]
    theirs = scheduler.precondition_inputs(torch.from_numpy(y), sigma)
    np.testing.assert_allclose(scale.c_in[:, None] * y, theirs, rtol=1e-5)
    theirs = scheduler.precondition_outputs(torch.from_numpy(y), torch.from_numpy(network), sigma)
    ours = scale.c_skip[:, None] * y + scale.c_out[:, None] * network
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    theirs = scheduler.precondition_noise(torch.from_numpy(SIGMAS))
    np.testing.assert_allclose(scale.time, 1000 * theirs.numpy(), rtol=1e-5)
