"""Latent codecs: normalisation by hand, chunks, weights read from a file, and what is refused."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from vidmotion import sharding
from vidmotion.convert import __main__ as convert
from vidmotion.convert import engine, read
from vidmotion.convert.maps import vae as vae_maps
from vidmotion.errors import EXIT_DONE, ConfigError
from vidmotion.models import vae
from vidmotion.systems import codecs

MEAN, STD = (1.0, -2.0, 0.5, 0.25), (4.0, 2.0, 8.0, 0.5)
CLIPS, FRAMES, SIZE = 2, 5, 16


def make(network="tiny", **fields):
    return codecs.make({"network": network, "mean": MEAN, "std": STD, **fields})


def videos(seed=0):
    shape = (CLIPS, FRAMES, SIZE, SIZE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def weights():
    """Returns random parameters of the tiny autoencoder."""
    return random_like(make()._shapes(), scale=0.15)


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    """Writes these parameters to a file in diffusers' layout; returns its path."""
    path = tmp_path_factory.mktemp("weights") / "vae.safetensors"
    read.write_safetensors(path, engine.export(weights, vae_maps.DIFFUSERS))
    return str(path)


# -- the patch codec ------------------------------------------------------------------------------


def test_a_plain_patch_by_hand():
    codec = make("patch")
    assert codec.latent_shape(64) == (8, 4)
    # Colours 255, 0 and 51 become 1, -1 and -0.6; the constant of an orthonormal basis over an 8x8 patch makes them 8
    # times as large. Without a gradient the fourth channel is 0.
    video = np.broadcast_to(np.array([255, 0, 51], np.uint8), (1, 2, 8, 8, 3))
    latent = codec.encode({}, video)
    assert latent.shape == (1, 2, 1, 1, 4) and latent.dtype == jnp.float32
    by_hand = [0.5 * (8 - 1) / 4, 0.5 * (-8 + 2) / 2, 0.5 * (-4.8 - 0.5) / 8, 0.5 * -0.25 / 0.5]
    np.testing.assert_allclose(latent[0, 1, 0, 0], by_hand, rtol=1e-5)
    np.testing.assert_allclose(codec.decode({}, latent), video / 255, atol=1e-6)


def test_latents_are_decoded_into_the_range_of_pixels():
    codec = make("patch")
    # Red at +-100 * std is far out of range; decoding clips it to [0, 1].
    latent = np.zeros((1, 2, 1, 1, 4), np.float32)
    latent[0, :, 0, 0, 0] = [-100, 100]
    red = codec.decode({}, latent)[..., 0]
    np.testing.assert_array_equal(red[0, 0], 0)
    np.testing.assert_array_equal(red[0, 1], 1)


# -- the autoencoder ------------------------------------------------------------------------------


def test_weights_come_back_from_a_file(weights, file):
    consts = {"vae": make(weights=file).consts()["vae"].load()}
    jax.tree.map(np.testing.assert_array_equal, consts["vae"], weights)
    video = videos()
    codec, net = make(), vae.AutoencoderKL(**vae.SIZES["tiny"])

    @quick_jit
    def direct(frames):
        return net.apply({"params": weights}, frames, method="encode")[0]

    @quick_jit
    def paint(z):
        return net.apply({"params": weights}, z, method="decode")

    raw = np.asarray(direct(video.reshape(-1, SIZE, SIZE, 3) / np.float32(127.5) - 1))
    expected = (raw - np.array(MEAN)) / np.array(STD) * 0.5
    expected = expected.reshape(CLIPS, FRAMES, 2, 2, 4)
    latent = quick_jit(codec.encode)(consts, video)
    np.testing.assert_allclose(latent, expected, atol=1e-5)
    pixels = np.asarray(paint(raw)).reshape(CLIPS, FRAMES, SIZE, SIZE, 3) / 2 + 0.5
    back = quick_jit(codec.decode)(consts, latent)
    np.testing.assert_allclose(back, np.clip(pixels, 0, 1), atol=1e-5)
    assert np.mean((pixels > 0) & (pixels < 1)) > 0.2  # not everything is clipped


def test_weights_come_back_from_a_converted_folder(weights, file, tmp_path):
    assert convert.main(["sd_vae", f"--src={file}", f"--out={tmp_path}"]) == EXIT_DONE
    loaded = make(weights=str(tmp_path)).consts()["vae"].load()
    jax.tree.map(np.testing.assert_array_equal, dict(loaded), dict(weights))
    codec = make(weights=file)
    known = codec.fingerprints({"vae": weights})
    assert codec.fingerprints({"vae": loaded}) == known  # a run may continue with either


def test_mean_and_draw_come_of_one_run(weights, monkeypatch):
    codec, consts, video, key = make(), {"vae": weights}, videos(), jax.random.key(4)
    mean, drawn = quick_jit(codec.encode_and_draw)(consts, video, key)
    np.testing.assert_allclose(mean, quick_jit(codec.encode)(consts, video), atol=1e-5)
    again = quick_jit(lambda v: codec.encode(consts, v, key))(video)
    np.testing.assert_allclose(drawn, again, atol=1e-5)
    # The deviation by hand: noise of the key, times exp(logvar / 2) of the network, divided by twice the std.
    net = vae.AutoencoderKL(**vae.SIZES["tiny"])
    frames = video.reshape(-1, SIZE, SIZE, 3) / np.float32(127.5) - 1
    logvar = quick_jit(lambda x: net.apply({"params": weights}, x, method="encode")[1])(frames)
    noise = jax.random.normal(key, (CLIPS, FRAMES, 2, 2, 4))
    apart = (
        np.exp(np.asarray(logvar) / 2).reshape(noise.shape) * np.asarray(noise) / np.array(STD) / 2
    )
    np.testing.assert_allclose(drawn - mean, apart, atol=1e-5)
    pixels = codecs.make({"mean": 0.1, "std": 0.2})
    for x in pixels.encode_and_draw({}, jnp.asarray(video), key):
        np.testing.assert_array_equal(x, pixels.encode({}, jnp.asarray(video)))


def test_half_precision_is_of_the_network_alone(weights):
    """bfloat16 has eight bits, so latents of random weights, and pictures decoded from them, change by about 2^-8."""
    exact, half = make(), make(compute="bfloat16")
    video = videos()
    latents = [codec.encode({"vae": weights}, video) for codec in (exact, half)]
    pictures = [codec.decode({"vae": weights}, latents[0]) for codec in (exact, half)]
    for a, b in (latents, pictures):
        assert a.dtype == b.dtype == jnp.float32
        moved = np.abs(np.asarray(a) - np.asarray(b)).mean() / np.asarray(a).std()
        assert 1e-5 < moved < 0.03
    assert exact.fingerprints({"vae": weights}) == half.fingerprints({"vae": weights})
    with pytest.raises(ConfigError, match="float16"):
        make(compute="float16")


@pytest.mark.parametrize("chunk", [2, 5, 8])
def test_chunks_do_not_show(weights, chunk):
    def latents(chunk):
        codec = make(chunk=chunk)
        return quick_jit(codec.encode)({"vae": weights}, videos())

    np.testing.assert_allclose(latents(chunk), latents(1), atol=1e-5)


def test_each_device_encodes_its_own_clips(weights):
    # Frames are encoded one after another and clips stay on their device, so nothing has to be gathered.
    mesh = sharding.make_mesh({"data": 8})
    video = jax.ShapeDtypeStruct((8, 4, 16, 16, 3), jnp.uint8, sharding=sharding.batch(mesh))
    whole = sharding.replicated(mesh)
    consts = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), {"vae": weights}
    )
    program = quick_jit(make().encode).lower(consts, video).compile()
    assert not [
        name for name in ("all-gather", "all-reduce", "all-to-all") if name in program.as_text()
    ]
    assert program.output_shardings.is_equivalent_to(sharding.batch(mesh), 5)


def test_no_gradient_or_parameter_of_it_is_trained(file):
    from vidmotion.open_run import load_config
    from vidmotion.run import Run

    config = load_config("lrs3:debug")
    config.system.codec.update({"network": "tiny", "weights": file})
    run = Run(config, "")
    assert set(run.abstract_params["model"]) == {"encoder", "quantizer", "denoiser", "null"}
    jax.tree.map(
        lambda want, have: np.testing.assert_equal(have.shape, want.shape),
        run.abstract_consts["vae"],
        run.consts["vae"],
    )


# -- what is refused ------------------------------------------------------------------------------


def refusal(**fields):
    with pytest.raises(ConfigError) as caught:
        make(**fields).consts()["vae"].load()
    message = str(caught.value)
    assert "\n" not in message and "config.system.codec.weights" in message
    for word in ("Stable Diffusion", "stabilityai/sd-vae-ft-mse", "Hugging Face", "diffusers"):
        assert word in message
    return message


def test_missing_or_foreign_weights_are_one_sentence(weights, file, tmp_path):
    assert "is empty" in refusal()
    assert "gone.safetensors' does not exist" in refusal(weights=str(tmp_path / "gone.safetensors"))
    (tmp_path / "text.safetensors").write_text("not weights")
    assert "cannot be read" in refusal(weights=str(tmp_path / "text.safetensors"))
    (tmp_path / "weights.txt").write_text("not weights")
    assert "cannot be read" in refusal(weights=str(tmp_path / "weights.txt"))
    assert "problems, the first: target " in refusal(network="sd", weights=file)
    assert convert.main(["sd_vae", f"--src={file}", f"--out={tmp_path / 'tiny'}"]) == EXIT_DONE
    assert "has completed" in refusal(weights=str(tmp_path))
    with pytest.raises(ConfigError, match=r"down_0/res_0/conv1/kernel: \(3, 3, 16, 16\), expected"):
        make("sd", weights=str(tmp_path / "tiny")).consts()["vae"].load()
    foreign = tmp_path / "foreign.safetensors"
    read.write_safetensors(foreign, {"transformer.h.0.weight": np.zeros(3, np.float32)})
    assert "problems, the first" in refusal(weights=str(foreign))


def test_a_run_without_weights_leaves_no_workdir(tmp_path):
    from vidmotion.open_run import load_config
    from vidmotion.train import train

    config = load_config("lrs3:debug")
    config.system.codec.network = "tiny"
    with pytest.raises(ConfigError, match=r"config\.system\.codec\.weights is empty"):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(network="vqgan"), r"codec\.network='vqgan': choose sd, tiny, svd, svd_tiny or patch"),
        (dict(mean=(0.0,) * 3), r"mean and std must have 4 numbers"),
        (dict(chunk=0), r"codec\.chunk=0"),
        (dict(scale=0.18215), r"Known fields: network, mean, std, weights, chunk"),
    ],
)
def test_fields_that_do_not_fit_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        make(**fields)


def test_sides_that_are_no_multiple_of_eight_are_refused():
    with pytest.raises(ConfigError, match=r"config\.system\.size=60: .* multiple of 8"):
        make("patch").latent_shape(60)


@pytest.mark.parametrize("variant", ["demo", "debug"])
def test_a_codec_without_weights_says_so(variant, caplog, monkeypatch):
    from vidmotion.open_run import load_config
    from vidmotion.run import Run

    monkeypatch.setattr(logging.getLogger("vidmotion"), "propagate", True)
    with caplog.at_level(logging.INFO, "vidmotion"):
        run = Run(load_config(f"lrs3:{variant}"), "", abstract=True)
        assert run.consts == {} == run.abstract_consts
    said = [r.getMessage() for r in caplog.records if "without weights" in r.getMessage()]
    assert len(said) == 1
