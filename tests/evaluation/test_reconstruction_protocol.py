"""The reconstruction protocol with a stand-in whose answers are known; its baseline against scikit-image."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vidmotion.evaluation import reconstruction
from vidmotion.system import Vars

CLIPS = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16, 3), np.uint8)


class StubRun:
    """Reconstructs every clip with `error` added to one frame of three."""

    def __init__(self, error, **settings):
        self.config = ConfigDict({"seed": 0, "eval": {"clips": 0, "batch": 2, **settings}})
        self.system = types.SimpleNamespace(
            net=types.SimpleNamespace(rate=0.002),
            face_side=0,
            perceptual_distance=lambda vars, x, y: jnp.mean(jnp.abs(x - y), axis=(2, 3, 4)),
        )
        self.networks = {"lpips": "0123456789abcdef"}
        self.error = error

    def source(self, split):
        assert split == "eval"
        return [{"video": clip} for clip in CLIPS]

    def rows(self, count):
        return count

    def put_rows(self, batch):
        return batch

    def jit_sample(self):
        def sample(vars, batch, key):
            np.testing.assert_array_equal(batch["content"], batch["motion"])
            video = batch["motion"].astype(np.float32) / 255
            video[:, 0] = np.clip(
                np.where(video[:, 0] > 0.5, -1, 1) * self.error + video[:, 0], 0, 1
            )
            return {"video": video}

        return sample


def rows_of(run, consts):
    rows = reconstruction.evaluate(run, Vars({}, {}, consts), None)
    return {row.metric: row for row in rows}


def test_figures_of_a_known_error_and_of_the_mean_frame():
    rows = rows_of(StubRun(0.25), {})
    # Each value of one frame is off by 0.25, the others are right: 80 dB by the 1e-8.
    expected = (-10 * np.log10(0.25**2 + 1e-8) + 2 * 80) / 3
    assert rows["psnr/reconstruction"].value == pytest.approx(expected, abs=1e-3)
    assert rows["psnr/reconstruction"].n == 5
    assert rows["psnr/reconstruction"].resolution == "16x16"
    truth = CLIPS / 255
    mean = np.broadcast_to(truth.mean(axis=1, keepdims=True), truth.shape)
    pairs = list(zip(truth.reshape(-1, 16, 16, 3), mean.reshape(-1, 16, 16, 3)))
    psnr = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in pairs]
    ssim = [
        structural_similarity(
            a,
            b,
            data_range=1,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in pairs
    ]
    assert rows["psnr/mean_frame"].value == pytest.approx(np.mean(psnr), abs=1e-3)
    assert rows["ssim/mean_frame"].value == pytest.approx(np.mean(ssim), abs=1e-4)
    assert rows["rate"].value == pytest.approx(0.2)


def test_lpips_is_computed_with_its_weights_and_otherwise_says_what_it_needs():
    row = rows_of(StubRun(0.25), {})["lpips/reconstruction"]
    assert row.value is None and "needs config.system.perceptual.weights" in row.convention
    rows = rows_of(StubRun(0.25), {"lpips": {}})
    assert rows["lpips/reconstruction"].value == pytest.approx(0.25 / 3, abs=1e-5)
    assert rows["lpips/reconstruction"].weights == "0123456789ab"
    assert "lpips/mean_frame" in rows


def test_as_many_clips_as_asked_for():
    assert rows_of(StubRun(0.1, clips=3), {})["psnr/reconstruction"].n == 3
