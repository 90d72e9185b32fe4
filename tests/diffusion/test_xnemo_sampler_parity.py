"""X-NeMo's released sampler: the recorded trajectory, the blur and the first noisy latent."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion.diffusion.guidance import XNEMO_PRESETS, scale_of
from vidmotion.diffusion.process import DDPM
from vidmotion.diffusion.samplers import ddim, leading_times
from vidmotion.diffusion.start import gaussian_blur, start_from_reference


def recorded(folder):
    for path in sorted(folder.glob("xnemo_sampler*.npz")):
        with np.load(path) as file:
            meta = json.loads(str(file["meta"]))
            yield meta, {k[3:]: file[k] for k in file.files if k.startswith("io/")}


def channels_last(x):
    return np.moveaxis(x, -4 if x.ndim > 4 else -3, -1)


@pytest.fixture(scope="module")
def records(fixtures_dir):
    found = list(recorded(fixtures_dir))
    if not found:
        pytest.skip(f"no xnemo_sampler*.npz in {fixtures_dir}")
    return found


def process_of(meta):
    scheduler = meta["scheduler"]
    kept = {"beta_start", "beta_end"}
    return DDPM(
        steps=scheduler["num_train_timesteps"],
        schedule=scheduler["beta_schedule"],
        **{k: scheduler[k] for k in kept},
    )


def test_schedule_and_times_parity(records):
    for meta, io in records:
        scheduler, process = meta["scheduler"], process_of(meta)
        np.testing.assert_allclose(process.alpha_bar(), io["alphas_cumprod"], rtol=2e-5)
        times = leading_times(meta["steps"], process.steps, scheduler["steps_offset"])
        np.testing.assert_array_equal(times, io["timesteps"])


def test_trajectory_parity(records):
    for meta, io in records:
        process, times = process_of(meta), io["timesteps"]
        eps, order = jnp.asarray(channels_last(io["eps"])), jnp.asarray(times)

        def recorded_noise(x, time, eps=eps, order=order):
            return eps[jnp.argmax(order == time)]

        expected = channels_last(io["traj"])
        run = jax.jit(
            lambda x, predict=recorded_noise, process=process, times=times: ddim(
                predict, x, times, process.alpha_bar(), trajectory=True
            )
        )
        got = run(expected[0])
        scale = np.abs(expected).max()
        np.testing.assert_allclose(got / scale, expected / scale, atol=1e-5)
        np.testing.assert_allclose(got[-1], expected[-1], atol=1e-5 * np.abs(expected[-1]).max())


def test_blur_and_first_latent_parity(records):
    for meta, io in records:
        process, first = process_of(meta), int(io["timesteps"][0])
        blurred = jax.jit(gaussian_blur)(channels_last(io["blur_in"]))
        np.testing.assert_allclose(blurred, channels_last(io["blur_out"]), atol=1e-6)
        noisy = process.noised(  # the recording used the latent without blur
            channels_last(io["blur_in"]), channels_last(io["add_noise_n"]), first
        )
        np.testing.assert_allclose(noisy, channels_last(io["add_noise_t0"]), atol=1e-6)


def test_what_the_release_does_by_the_numbers():
    # Square root of alpha bar at the first time and at the end of the schedule, computed by hand from prod(1 - beta)
    # with beta = (sqrt(.00085) + k / 999 (sqrt(.02) - sqrt(.00085)))^2.
    process = DDPM(beta_start=0.00085, beta_end=0.02, schedule="scaled_linear")
    share = np.sqrt(process.alpha_bar())
    assert share[961] == pytest.approx(0.0220, abs=5e-5)
    assert share[953] == pytest.approx(0.0237, abs=5e-5)
    assert share[999] == pytest.approx(0.0152, abs=5e-5)
    assert leading_times(35)[[0, 1, -2, -1]].tolist() == [953, 925, 29, 1]
    scales = {k: (p.steps, scale_of(p.weight, p.reading)) for k, p in XNEMO_PRESETS.items()}
    assert scales == {"released": (35, 2.5), "paper": (25, 3.5), "literal": (25, 4.5)}


def test_the_start_is_the_blurred_reference_and_each_frames_own_noise():
    process = DDPM(beta_start=0.00085, beta_end=0.02, schedule="scaled_linear")
    reference = jnp.full((1, 16, 16, 4), 100.0)  # the blur leaves a flat picture unchanged
    start = start_from_reference(jax.random.key(0), reference, 6, process, 961)
    assert start.shape == (1, 6, 16, 16, 4) and start.dtype == jnp.float32
    rest = np.float64(start) - 100 * np.sqrt(process.alpha_bar()[961])
    assert abs(rest.mean()) < 5 / np.sqrt(rest.size)
    assert rest.std() == pytest.approx(np.sqrt(1 - process.alpha_bar()[961]), rel=0.03)
    frames = rest.reshape(6, -1)
    correlation = np.corrcoef(frames) - np.eye(6)
    assert np.abs(correlation).max() < 0.15
