"""PSNR, SSIM, L1 and sharpness against scikit-image and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vidmotion.metrics.pixel import l1, psnr, sharpness, ssim


def pair(seed=0, shape=(64, 64, 3)):
    """Returns the float64 image pair of the golden numbers below."""
    x = np.random.RandomState(seed).rand(*shape)
    noise = np.random.RandomState(seed + 1).rand(*shape) - 0.5
    return x, np.clip(x + 0.2 * noise, 0, 1)


def wang(x, y, **kwargs):
    return structural_similarity(
        x, y, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, **kwargs
    )


@pytest.mark.parametrize(
    ("convention", "decibel"),
    # Computed from the definitions with numpy in float64.
    [("vidtok", 25.007747572), ("common", 25.007761330), ("uint8", 25.002165982)],
)
def test_psnr_golden(convention, decibel):
    assert float(psnr(*pair(), convention)) == pytest.approx(decibel, abs=2e-5)


def test_psnr_against_skimage():
    x, y = pair(5, (20, 30, 3))
    bytes_x, bytes_y = (np.round(v * 255).astype(np.uint8) for v in (x, y))
    assert float(psnr(x, y, "uint8")) == pytest.approx(
        peak_signal_noise_ratio(bytes_x, bytes_y, data_range=255), abs=1e-4
    )
    assert float(psnr(x, y, "common")) == pytest.approx(
        peak_signal_noise_ratio(x, y, data_range=1), abs=1e-4
    )


def test_psnr_of_equal_frames_and_of_a_known_error():
    x = np.full((8, 8, 3), 0.25, np.float32)
    assert float(psnr(x, x, "vidtok")) == pytest.approx(80)
    assert float(psnr(x, x, "common")) == 100
    assert float(psnr(x, x, "uint8")) == np.inf
    assert float(psnr(x, x + 0.1, "common")) == pytest.approx(20, abs=1e-4)  # MSE 0.01
    with pytest.raises(ValueError, match="convention must be one of"):
        psnr(x, x, "best")


def test_ssim_golden_and_skimage():
    x, y = pair()
    assert float(ssim(x, y, "wang")) == pytest.approx(0.980565614, abs=1e-6)
    assert float(ssim(x, y, "wang")) == pytest.approx(wang(x, y, channel_axis=-1), abs=1e-6)
    # Too small to be pooled.
    assert float(ssim(x, y, "vidtok")) == pytest.approx(0.980565614, abs=1e-6)
    assert float(ssim(x, y, "wang", gray=True)) == pytest.approx(0.980471397, abs=1e-6)


def test_ssim_pools_large_frames_in_vidtok():
    x, y = pair(2, (512, 512, 3))
    assert float(ssim(x, y, "wang")) == pytest.approx(0.980496246, abs=1e-6)
    assert float(ssim(x, y, "vidtok")) == pytest.approx(0.980521612, abs=1e-6)


def test_ssim_of_flat_bright_frames():
    # Without structure only the luminance term is left: (2ab + c1) / (a^2 + b^2 + c1).
    a, b = 0.95, 0.9
    x, y = np.full((16, 16, 1), a), np.full((16, 16, 1), b)
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert float(ssim(x, y, "wang")) == pytest.approx(expected, abs=1e-5)


def test_ssim_refuses_small_frames_and_luma_of_gray():
    x = np.zeros((10, 40, 1), np.float32)
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(x, x, "wang")
    with pytest.raises(ValueError, match="RGB"):
        ssim(x, x, "wang", gray=True)
    with pytest.raises(ValueError, match="convention"):
        ssim(x, x, "skimage")


METRICS = {
    "l1": l1,
    "sharpness": sharpness,
    "psnr": lambda x, y: psnr(x, y, "vidtok"),
    "ssim": lambda x, y: ssim(x, y, "wang"),
}


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_leading_axes_are_kept_and_jit_agrees(metric):
    x, y = (v.astype(np.float32) for v in pair(7, (2, 3, 16, 20, 3)))
    values = metric(x, y)
    assert values.shape == (2, 3)
    assert values.dtype == jnp.float32
    single = [[float(metric(x[i, j], y[i, j])) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(values, single, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(metric)(x, y), values, rtol=1e-5)


def test_l1_by_hand():
    x = np.zeros((2, 1, 2, 1))
    y = np.array([[[[0.5], [0.0]]], [[[1.0], [1.0]]]])
    np.testing.assert_allclose(l1(x, y), [0.25, 1.0])


def test_sharpness_by_hand():
    edge = np.array([[0.0, 0.0, 1.0, 1.0]] * 2)[..., None]  # one step of 1 in each of two rows
    ramp = np.array([[0.0, 1 / 3, 2 / 3, 1.0]] * 2)[
        ..., None
    ]  # three steps of a third: 3 / 9 of the energy
    assert float(sharpness(ramp, edge)) == pytest.approx(1 / 3)
    assert float(sharpness(edge, ramp)) == pytest.approx(3)
    assert float(sharpness(edge, edge)) == 1
    # Rows and columns count alike.
    assert float(sharpness(ramp.swapaxes(0, 1), edge.swapaxes(0, 1))) == pytest.approx(1 / 3)


def test_a_blurred_picture_is_less_sharp_by_what_the_filter_leaves():
    # Averaging each pixel of white noise with its right neighbour halves the energy along y. Along x, the differences
    # become (x[i + 2] - x[i]) / 2, with a quarter of the energy. The mean of 1/2 and 1/4 is .375.
    noise = np.random.default_rng(0).uniform(size=(256, 257, 1))
    blurred = (noise[:, 1:] + noise[:, :-1]) / 2
    assert float(sharpness(blurred, noise[:, 1:])) == pytest.approx(0.375, rel=0.02)


def test_sharpness_of_a_picture_of_one_colour_is_finite():
    flat = np.full((8, 8, 3), 0.5, np.float32)
    assert float(sharpness(flat, flat)) == 0
    assert np.isfinite(float(sharpness(np.eye(8, dtype=np.float32)[..., None], flat[..., :1])))


def test_what_is_refused():
    good = np.full((4, 4, 3), 0.5, np.float32)
    with pytest.raises(ValueError, match=r"shapes \(4, 4, 3\) and \(4, 4, 1\)"):
        l1(good, good[..., :1])
    with pytest.raises(ValueError, match="second images must be floats"):
        l1(good, (good * 255).astype(np.uint8))
    with pytest.raises(ValueError, match=r"first images must lie in \[0, 1\], but span -1"):
        l1(good * 2 - 2, good)
    with pytest.raises(ValueError, match="nan"):
        l1(jnp.asarray(good).at[0, 0, 0].set(jnp.nan), good)
    with pytest.raises(ValueError, match=r"\(\.\.\., H, W, C\)"):
        l1(good[0], good[0])
    with pytest.raises(ValueError, match="floats"):  # also detected under jit
        jax.jit(l1)(good, good.astype(np.int32))
