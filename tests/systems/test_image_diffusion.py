"""The picture diffusion: its loss by hand, exact denoising by a known answer, and training that starts from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from configs import heads_foundation
from vidmotion import checkpoint, paths
from vidmotion.errors import ConfigError
from vidmotion.open_run import load_config
from vidmotion.run import Run
from vidmotion.system import Vars, build
from vidmotion.train import train

FIELDS = {
    "name": "image_diffusion",
    "size": 16,
    "frames": 2,
    "codec": {"mean": 0.5, "std": 0.5, "patch": 4},
    "unet": {
        "channels": (8, 8),
        "attention": (True, True),
        "layers_per_block": 1,
        "heads": 2,
        "norm_groups": 4,
    },
    "diffusion": {"steps": 10, "beta_end": 0.5},
}


def system(**fields):
    return build({**FIELDS, **fields})


@pytest.fixture(scope="module")
def untrained():
    """Returns a system that predicts x0, and its fresh parameters, whose last layer is zero."""
    own = system(prediction="x0")
    return own, Vars(own.init(jax.random.key(0), None), {}, {})


def clips(count=2):
    return np.random.default_rng(0).integers(0, 256, (count, 2, 16, 16, 3), np.uint8)


def test_a_network_that_says_zero_pays_the_latents_variance(untrained):
    own, vars = untrained
    batch = {"video": clips()}
    loss, out = own.loss("model", vars, batch, jax.random.key(1), jnp.int32(0), None)
    latent = (clips() / 256.0 - 0.5) / 0.5 * 0.5  # the pixel codec's latents, in another layout
    np.testing.assert_allclose(loss, np.mean(latent**2), rtol=1e-5)
    np.testing.assert_allclose(out.metrics["mse"], loss)


def test_zero_is_the_mean_picture_whatever_the_noise(untrained):
    own, vars = untrained
    for time in (0, 9):
        made = own.denoised(vars, {"video": clips()}, jax.random.key(1), time)["video"]
        assert made.shape == (2, 2, 16, 16, 3)
        np.testing.assert_allclose(made, 0.5 * 256 / 255, rtol=1e-5)
    sampled = own.sample(vars, {"video": clips()}, jax.random.key(1), steps=5)["video"]
    # The last step keeps the noise's share at the first time: 1 - abar_0 = beta_start = 1e-4.
    np.testing.assert_allclose(sampled, 0.5 * 256 / 255, atol=0.05)
    assert np.std(sampled) > 1e-4


def test_what_does_not_fit_is_named():
    with pytest.raises(ConfigError, match="choose eps, x0, v"):
        system(prediction="x")
    with pytest.raises(ConfigError, match="Known fields"):
        system(unet={"width": 3})
    with pytest.raises(ConfigError, match="multiple of patch=4"):
        system(size=18)


@pytest.fixture(scope="module")
def foundation(tmp_path_factory):
    """Trains configs/heads_foundation.py:debug; returns the folder of the finished run."""
    workdir = tmp_path_factory.mktemp("foundation")
    with quick.unoptimised():
        assert train(load_config("heads_foundation:debug"), str(workdir)) == 0
    assert (workdir / "samples" / "samples.png").exists()
    return workdir


@pytest.mark.slow
def test_both_networks_of_a_recipe_start_from_it(foundation, unoptimised, one_device):
    config = load_config("warpface:debug")
    config.system.unet.update({"channels": (16, 16), "heads": 2, "norm_groups": 4})
    config.system.update({"size": 16, "codec": {"mean": 0.639, "std": 0.238 / 2, "patch": 4}})
    config.init_from, config.init_rules = str(foundation), heads_foundation.INIT_RULES
    run = Run(config, str(foundation / "unused"))
    there = paths.flatten(checkpoint.read_params(str(foundation))["model"]["unet"])
    params = paths.flatten(run.fresh_state().params["model"])
    for path, leaf in there.items():
        np.testing.assert_array_equal(params[f"denoiser/{path}"], leaf)
    shared = [path for path in there if f"reference/{path}" in params]
    assert "conv_in/kernel" in shared and "down_0/attn_0/self/q/kernel" in shared
    for path in shared:
        np.testing.assert_array_equal(params[f"reference/{path}"], there[path])


@pytest.mark.slow
def test_widths_that_do_not_fit_are_all_named(foundation, unoptimised, one_device):
    config = load_config("warpface:debug")
    config.system.unet.update({"channels": (8, 16), "heads": 2, "norm_groups": 4})
    config.init_from, config.init_rules = str(foundation), heads_foundation.INIT_RULES
    with pytest.raises(checkpoint.CheckpointError) as error:
        Run(config, str(foundation / "unused")).fresh_state()
    for path in ("conv_in/kernel", "time_0/kernel", "down_0/res_0/conv1/kernel", "conv_out/kernel"):
        assert f"model/denoiser/{path}" in str(error.value)
