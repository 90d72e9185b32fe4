"""DDIM over discrete times: all three predictions, against values computed by hand and against diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion.diffusion.guidance import guide, scale_of
from vidmotion.diffusion.process import DDPM, PREDICTIONS
from vidmotion.diffusion.samplers import ddim, leading_times

PROCESS = DDPM(beta_start=0.00085, beta_end=0.012, schedule="scaled_linear")


def test_scaled_linear_by_hand():
    # The betas are the squares of evenly spaced numbers: 0.1^2, 0.2^2, 0.3^2.
    abar = DDPM(3, 0.01, 0.09, "scaled_linear").alpha_bar()
    np.testing.assert_allclose(abar, [0.99, 0.99 * 0.96, 0.99 * 0.96 * 0.91], rtol=1e-12)
    # Published values of WarpFace's schedule, which is Stable Diffusion's.
    known = {1: 0.99829603, 26: 0.97565291, 501: 0.27499907, 976: 0.00612401, 999: 0.00466010}
    for time, value in known.items():
        assert PROCESS.alpha_bar()[time] == pytest.approx(value, abs=5e-9)
    with pytest.raises(ValueError, match="schedule 'cosine': choose one of linear, scaled_linear"):
        DDPM(schedule="cosine")


def test_times():
    assert leading_times(40)[[0, 1, -2, -1]].tolist() == [976, 951, 26, 1]
    assert leading_times(4, 8, 0).tolist() == [6, 4, 2, 0]
    for steps, offset in ((0, 0), (9, 0), (8, 1), (1, -1)):
        with pytest.raises(ValueError, match="steps"):
            leading_times(steps, 8, offset)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_targets_and_noised_by_hand(prediction):
    process = DDPM(3, 0.1, 0.3)  # alpha bar is .9, .72, .504
    z, noise = jnp.array([[1.0, 2.0], [3.0, -1.0]]), jnp.array([[0.5, -1.0], [2.0, 0.0]])
    times = jnp.array([0, 2])
    a, s = np.sqrt([[0.9], [0.504]]), np.sqrt([[0.1], [0.496]])
    np.testing.assert_allclose(process.noised(z, noise, times), a * z + s * noise, rtol=1e-6)
    wanted = {"eps": noise, "x0": z, "v": a * noise - s * z}[prediction]
    np.testing.assert_allclose(process.target(z, noise, times, prediction), wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="prediction 'y': choose one of eps, x0, v"):
        process.target(z, noise, times, "y")


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_true_answer_leads_to_it_whatever_is_predicted(prediction):
    rng = np.random.default_rng(0)
    z, noise = (rng.normal(size=(2, 3, 4)).astype(np.float32) for _ in range(2))
    times = leading_times(10)

    def predict(x, time):  # a perfect network for a data set whose only sample is z
        abar = jnp.asarray(PROCESS.alpha_bar(), jnp.float32)[time]
        rest = (x - jnp.sqrt(abar) * z) / jnp.sqrt(1 - abar)
        return PROCESS.target(z, rest, time, prediction)

    start = PROCESS.noised(z, noise, int(times[0]))
    end = jax.jit(lambda x: ddim(predict, x, times, PROCESS.alpha_bar(), prediction))(start)
    np.testing.assert_allclose(end, z, atol=2e-5)
    last = float(PROCESS.alpha_bar()[0])
    end = ddim(predict, start, times, PROCESS.alpha_bar(), prediction, final=last)
    np.testing.assert_allclose(end, PROCESS.noised(z, noise, 0), atol=2e-4)


@pytest.mark.oracle
def test_against_diffusers():
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    start = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    for prediction, theirs in (("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")):
        scheduler = diffusers.DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=theirs,
        )
        scheduler.set_timesteps(8)
        x = torch.from_numpy(start)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.sin(x) + t / 1000, t, x).prev_sample
        ours = ddim(
            lambda x, t: jnp.sin(x) + t / 1000,
            jnp.asarray(start),
            leading_times(8),
            PROCESS.alpha_bar(),
            prediction,
            final=float(PROCESS.alpha_bar()[0]),
        )
        np.testing.assert_allclose(ours, x, atol=2e-4, err_msg=prediction)


def test_three_readings_of_the_guidance_weight():
    cond, null = jnp.array([2.0, 0.0]), jnp.array([1.0, -1.0])
    # Eq. 2 with w = 3.5: 4.5 * cond - 3.5 * null.
    literal = guide(cond, null, scale_of(3.5, "excess"))
    np.testing.assert_allclose(literal, 4.5 * cond - 3.5 * null)
    np.testing.assert_allclose(guide(cond, null, scale_of(2.5, "scale")), [3.5, 1.5])
    assert scale_of(0.0, "excess") == 1.0  # no guidance
    with pytest.raises(ValueError, match="reading 'w'"):
        scale_of(1.0, "w")
