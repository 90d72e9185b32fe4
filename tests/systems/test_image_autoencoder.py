"""The image autoencoder: its loss against torch, its discriminator, and its use as a codec of other systems."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from vidmotion import weights
from vidmotion.checkpoint import Checkpointer
from vidmotion.convert import read
from vidmotion.errors import ConfigError
from vidmotion.open_run import load_config
from vidmotion.run import Run
from vidmotion.system import Vars, build
from vidmotion.systems import codecs
from vidmotion.train import train

SIZES = {"channels": (8,), "layers_per_block": 0, "norm_groups": 4, "patch": 4}
FIELDS = {"name": "image_autoencoder", "size": 16, "frames": 2, "network": SIZES}


def system(**fields):
    return build({**FIELDS, **fields})


def clips(count=3):
    return np.random.default_rng(0).integers(0, 256, (count, 2, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Trains configs/heads_codec.py:debug; returns the folder of the finished run."""
    workdir = tmp_path_factory.mktemp("codec")
    assert train(load_config("heads_codec:debug"), str(workdir)) == 0
    return workdir


def test_the_loss_is_the_weighted_sum_of_its_terms():
    own = system(loss_terms={"l1": 0.5, "l2": 2.0, "kl": 0.1})
    params = own.init(jax.random.key(1), None)
    batch, key = {"video": clips()}, jax.random.key(2)
    value, _ = own.loss("model", Vars(params, {}, {}), batch, key, jnp.int32(0), None)
    x = clips().reshape(-1, 16, 16, 3) / 127.5 - 1
    apply = {"params": params["model"]}
    mean, logvar = own.net.apply(apply, jnp.float32(x), method="encode")
    drawn = mean + np.exp(logvar / 2) * jax.random.normal(key, mean.shape)
    error = np.asarray(own.net.apply(apply, drawn, method="decode")) - x
    kl = 0.5 * np.mean(np.square(mean) + np.exp(logvar) - 1 - logvar)
    expected = 0.5 * np.abs(error).mean() + 2 * np.square(error).mean() + 0.1 * kl
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert own.net.factor == 4 and mean.shape == (6, 4, 4, 4)


def test_the_adversarial_term_waits_for_its_start():
    own = system(gan={"weight": 0.3, "start": 10, "width": 8, "layers": 1})
    assert [player.name for player in own.players] == ["model", "disc"]
    vars = Vars(own.init(jax.random.key(1), None), own.init_mutable(), {})
    loss = quick_jit(lambda step: own.loss("model", vars, batch, jax.random.key(2), step, None))
    batch = {"video": clips()}
    (before, _), (after, out) = loss(9), loss(10)
    np.testing.assert_allclose(after - before, 0.3 * out.metrics["gan"], rtol=1e-3)
    value, _ = own.loss("disc", vars, batch, jax.random.key(2), jnp.int32(10), out.carry)
    assert np.isfinite(value)


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match="multiple of 4"):
        system(size=18)
    with pytest.raises(ConfigError, match="choose sd, tiny"):
        system(network="big")
    with pytest.raises(ConfigError, match="Known fields: channels"):
        system(network={"width": 3})


# -- as the codec of another system ---------------------------------------------------------------


def codec(weights, **fields):
    values = {"network": SIZES, "mean": (0.0,) * 4, "std": (0.5,) * 4, "weights": str(weights)}
    return codecs.make({**values, **fields})


def test_a_run_is_the_codec_of_others(workdir):
    own = codec(workdir)
    assert own.latent_shape(64) == (16, 4)
    consts = {"vae": own.consts()["vae"].load()}
    run = Run(load_config("heads_codec:debug"), str(workdir))
    made = run.jit_sample()(run.trained_vars(), {"video": clips(8)}, jax.random.key(0))
    latent = own.encode(consts, clips(8))
    np.testing.assert_allclose(latent, made["latent"], atol=1e-5)  # the factor 0.5 / std is 1
    np.testing.assert_allclose(own.decode(consts, latent), made["video"], atol=1e-5)


def test_a_codec_of_other_sizes_is_refused_with_all_that_differs(workdir):
    other = codec(workdir, network={**SIZES, "channels": (12,)})
    with pytest.raises(ConfigError) as error:
        other.consts()["vae"].load()
    assert "decoder/conv_in/kernel" in str(error.value) and "(3, 3, 4, 8)" in str(error.value)
    assert "encoder/conv_out/kernel" in str(error.value)
    with pytest.raises(ConfigError, match="is empty: give the workdir"):
        codec("").consts()["vae"].load()
    with pytest.raises(ConfigError, match="neither a run's workdir"):
        codec(workdir / "nowhere").consts()["vae"].load()


def test_a_run_ships_as_half_precision_and_a_damaged_file_is_noticed(
    workdir, tmp_path, monkeypatch
):
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    file = weights.ship(str(workdir), "small", tmp_path)
    assert weights.names() == ("small",) and weights.card("small")["steps_done"] == 2
    assert {value.dtype for value in read.read(file).values()} == {np.dtype(np.float16)}
    whole = codec(workdir).consts()["vae"].load()
    half = codec("small").consts()["vae"].load()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), half, whole)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        codec("small").consts()["vae"].load()


def test_of_a_run_with_a_discriminator_the_model_ships(workdir, tmp_path, monkeypatch):
    model = weights.read(str(workdir), "workdir")["model"]
    both = {"disc": {"kernel": np.ones(3, np.float32)}, "model": model}
    monkeypatch.setattr(weights.checkpoint, "read_params", lambda where: both)
    file = weights.ship(str(workdir), "one", tmp_path)
    assert {key.split("/")[0] for key in read.read(file)} == {"model"}


def test_numbers_that_are_not_finite_are_refused(workdir, tmp_path):
    run = Run(load_config("heads_codec:debug"), str(workdir))
    with Checkpointer(str(workdir), read_only=True) as checkpointer:
        state, position = run.restore(checkpointer)
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, state.ema)
    with Checkpointer(str(tmp_path)) as checkpointer:
        checkpointer.save(2, dataclasses.replace(state, ema=params), position, True)
    with pytest.raises(ConfigError, match="not finite"):
        codec(tmp_path).consts()["vae"].load()
    with pytest.raises(ConfigError, match="no finished run"):
        weights.ship(str(tmp_path), "broken", tmp_path)


def test_the_evaluator_measures_what_is_lost_and_how_latents_lie(workdir):
    results = {row["metric"]: row["value"] for row in _record(workdir)["results"]}
    run = Run(load_config("heads_codec:debug"), str(workdir))
    source = run.source("eval")
    video = np.stack([source[i]["video"] for i in range(4)])
    made = run.jit_sample()(run.trained_vars(), {"video": video}, jax.random.key(0))
    error = np.square(np.asarray(made["video"]) - video / 255.0).mean(axis=(2, 3, 4))
    np.testing.assert_allclose(results["psnr/codec"], np.mean(-10 * np.log10(error)), rtol=1e-5)
    latent = np.asarray(made["latent"])
    np.testing.assert_allclose(results["latent_std/1"], latent[..., 1].std(), rtol=1e-4)
    np.testing.assert_allclose(results["latent_mean/2"], latent[..., 2].mean(), atol=1e-5)


def _record(workdir):
    return json.loads((workdir / "record.json").read_text())
