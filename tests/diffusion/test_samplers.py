"""Samplers: schedule, number of evaluations, exact solutions for a point and a Gaussian, and diffusers."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion.diffusion import samplers


def test_schedule_in_closed_form():
    sigmas = np.asarray(samplers.karras_sigmas(18, 0.002, 80.0))
    assert sigmas.shape == (19,)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    expected = [(high + i / 17 * (low - high)) ** 7 for i in range(18)]
    np.testing.assert_allclose(sigmas[:-1], expected, rtol=2e-5)
    assert sigmas[-1] == 0
    np.testing.assert_allclose(samplers.karras_sigmas(1, 0.002, 80.0), [80.0, 0.0], rtol=1e-6)
    linear = samplers.karras_sigmas(4, 1.0, 4.0, rho=1.0)
    np.testing.assert_allclose(linear, [4, 3, 2, 1, 0], rtol=1e-6)
    with pytest.raises(ValueError, match="at least one step, got 0"):
        samplers.karras_sigmas(0, 0.002, 80.0)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("method", ["heun", "euler"])
def test_network_evaluations(method, steps):
    sigmas = samplers.karras_sigmas(steps, 0.1, 10.0)
    seen = []

    def denoise(x, sigma):
        assert sigma.shape == ()
        jax.debug.callback(lambda s: seen.append(float(s)), sigma, ordered=True)
        return 0.5 * x

    jax.jit(lambda noise: samplers.sample(denoise, noise, sigmas, method))(jnp.ones(3))
    jax.effects_barrier()
    levels = [float(s) for s in sigmas[:-1]]
    # Heun evaluates at both ends of every interval, except in the last, which ends at 0 and is an Euler step.
    if method == "heun":
        expected = [s for pair in itertools.pairwise(levels) for s in pair] + levels[-1:]
        assert len(expected) == 2 * steps - 1
    else:
        expected = levels
    np.testing.assert_allclose(seen, expected, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("method", ["heun", "euler"])
def test_perfect_denoiser_of_a_point_returns_the_point(method, steps):
    rng = np.random.default_rng(0)
    point, noise = (rng.normal(size=(2, 5)).astype(np.float32) for _ in range(2))
    sigmas = samplers.karras_sigmas(steps, 0.002, 80.0)
    x = jax.jit(lambda n: samplers.sample(lambda x, sigma: point, n, sigmas, method))(noise)
    # A single step from 80 rounds by up to 80 ulp of 1.
    np.testing.assert_allclose(x, point, atol=2e-5)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence_on_gaussian_data(method, order):
    # Data N(mu, s^2): D(x; sigma) = (s^2 x + sigma^2 mu) / (s^2 + sigma^2), and (x - mu) / sqrt(s^2 + sigma^2) is
    # constant along the flow.
    mu, s, low, high = 0.3, 0.5, 0.05, 5.0
    noise = np.array([-1.5, -0.2, 0.7, 2.0], np.float32)

    def denoise(x, sigma):
        return (s**2 * x + sigma**2 * mu) / (s**2 + sigma**2)

    def solve(steps):
        sigmas = samplers.karras_sigmas(steps, low, high)
        return samplers.sample(denoise, noise, sigmas, method)

    at_low = mu + (np.float64(noise) * high - mu) * math.sqrt((s**2 + low**2) / (s**2 + high**2))
    exact = (s**2 * at_low + low**2 * mu) / (s**2 + low**2)  # the last step is an Euler step
    run = jax.jit(solve, static_argnums=0)
    errors = [np.abs(np.float64(run(steps)) - exact).max() for steps in (10, 20, 40)]
    assert errors[-1] > 2e-5  # far above float32 rounding
    slopes = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(slopes, order, atol=0.3)
    # In the limit the samples have the distribution of the data: the noise mapped to its mean and spread.
    np.testing.assert_allclose(exact, mu + s * (noise - mu / high), atol=0.02)


@pytest.mark.oracle
def test_euler_against_diffusers():
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    steps = 12
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(steps)
    sigmas = samplers.karras_sigmas(steps, 0.002, 80.0)
    np.testing.assert_allclose(sigmas, scheduler.sigmas, rtol=3e-5)
    noise = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    theirs = torch.from_numpy(noise) * 80.0
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(theirs, t)
        theirs = scheduler.step(torch.sin(scaled), t, theirs).prev_sample

    def denoise(x, sigma):
        total = sigma**2 + 0.25
        return 0.25 / total * x + sigma * 0.5 / jnp.sqrt(total) * jnp.sin(x / jnp.sqrt(total))

    ours = jax.jit(lambda n: samplers.sample(denoise, n, sigmas, "euler"))(noise)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="sampler 'dpm': choose one of heun, euler"):
        samplers.sample(lambda x, s: x, jnp.ones(2), jnp.array([1.0, 0.0]), "dpm")
