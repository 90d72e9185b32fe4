"""Cached latents: what is stored, windows of it, and training from the cache as from pixels."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from quick import quick_jit, random_like, unoptimised

from vidmotion import latents, startup
from vidmotion import system as systems
from vidmotion.checkpoint import Checkpointer
from vidmotion.convert import engine, read
from vidmotion.convert.maps import vae as vae_maps
from vidmotion.data import prepare
from vidmotion.data.pipeline import Loader, make_source
from vidmotion.data.records import DatasetError, DatasetWriter, RecordSource
from vidmotion.data.videos import LatentSource, VideoSource
from vidmotion.encode import encode
from vidmotion.errors import ConfigError
from vidmotion.models import vae
from vidmotion.open_run import load_config, open_run
from vidmotion.run import Run
from vidmotion.system import Vars
from vidmotion.systems import codecs
from vidmotion.train import train

LENGTH, SIDE = 11, 64  # frames of a stored clip; the side of lrs3:debug
COUNTS = {"train": 9, "test": 4}


def write_clips(folder, counts=COUNTS, side=SIDE):
    """Writes clips of moving waves as pixels, no two alike."""
    y, x, t = np.meshgrid(np.arange(side), np.arange(side), np.arange(LENGTH), indexing="ij")
    rng = np.random.default_rng(0)
    with DatasetWriter(folder, "videos", provenance={"licence": "CC0"}, shards=2) as writer:
        for split, count in counts.items():
            for k in range(count):
                a, b, c = rng.uniform(3, 9, 3)
                waves = [np.sin(x / a + t / 3), np.cos(y / b - t / 4), np.sin((x + y) / c + t)]
                video = np.rint(127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)
                record = {
                    "video": video.transpose(2, 0, 1, 3),
                    "length": np.int32(LENGTH),
                    "fps": np.float32(25),
                    "start": np.float64(7 * k),
                    "source": f"{split}/ü {k}.mp4",
                    "box": np.arange(4, dtype=np.float32),
                }
                writer.write(split, record)
    return folder


def cache(src, out, *arguments, network="patch"):
    """Runs the command that caches latents and returns its exit code."""
    words = ["latents", f"--src={src}", f"--out={out}", f"--network={network}", "--batch=1"]
    return prepare.main([*words, *arguments], plan_latents=latents.plan)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns (folder of clips, folder of their latents by the patch codec)."""
    root = tmp_path_factory.mktemp("latents")
    clips = write_clips(root / "clips")
    assert cache(clips, root / "cache") == 0
    return clips, root / "cache"


def config_of(folders, cached, **changes):
    """Returns the config lrs3:debug on these clips, as latents if `cached`, else as pixels."""
    config = load_config("lrs3:debug")
    config.data.kind = "latents" if cached else "videos"
    common = {"directory": str(folders[cached]), "frames": 4, "decimate": 2}
    config.data.common = common
    config.data.train = {"split": "train", "random": True}
    config.data.eval = {"split": "test"}
    config.system.codec.update({"cached": bool(cached), **changes})
    return config


# -- what is stored -------------------------------------------------------------------------------


def test_every_frame_of_every_clip_as_scipy_projects_it(folders):
    for split, count in COUNTS.items():
        clips, stored = RecordSource(folders[0], split), RecordSource(folders[1], split)
        assert len(stored) == count
        for i in (0, count - 1):
            clip, record = clips[i], stored[i]
            assert record.keys() == clip.keys() - {"video"} | {"latents"}
            for name in record.keys() - {"latents"}:
                np.testing.assert_array_equal(record[name], clip[name], strict=True)
            patches = (clip["video"] / 127.5 - 1).reshape(LENGTH, 8, 8, 8, 8, 3).swapaxes(2, 3)
            waves = scipy.fft.dctn(patches, axes=(3, 4), norm="ortho")
            grey = waves[..., 0, 1, :].sum(-1) / np.sqrt(3)
            expected = np.concatenate([waves[..., 0, 0, :], grey[..., None]], -1)
            assert record["latents"].dtype == np.float16
            np.testing.assert_allclose(record["latents"], expected, rtol=2**-11, atol=1e-5)
        stored.verify()


def test_what_the_index_says_of_its_making(folders):
    provenance = RecordSource(folders[1]).provenance
    assert provenance["network"] == "patch" and provenance["weights"] == ""
    assert provenance["licence"] == "CC0"
    command = provenance["command"]
    assert command.startswith("python -m vidmotion.data.prepare latents ") and "--force" in command
    codec = codecs.make({"network": "patch", "mean": (1.0,) * 4, "std": (2.0,) * 4})
    assert provenance["networks"] == codec.fingerprints({}) == LatentSource(folders[1]).networks


def test_an_interrupted_one_goes_on_and_ends_the_same(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(latents, "BLOCK", 2)
    clips, out = folders[0], tmp_path / "out"
    encoded, encoder = [], latents._encoder

    def stopping(last):
        def make(*arguments):
            encode = encoder(*arguments)

            def one(video):
                if len(encoded) == last:
                    raise KeyboardInterrupt
                encoded.append(video)
                return encode(video)

            return one

        return make

    monkeypatch.setattr(latents, "_encoder", stopping(5))
    assert cache(clips, out) == 130
    assert [path.name for path in out.iterdir()] == ["parts"]
    encoded.clear()
    monkeypatch.setattr(latents, "_encoder", stopping(None))
    assert cache(clips, out) == 0
    # Two blocks of two clips were finished before the interruption.
    assert len(encoded) == 9 + 4 - 4
    for split in COUNTS:
        whole = RecordSource(folders[1], split)
        assert RecordSource(out, split).fingerprint == whole.fingerprint
    assert not (out / "parts").exists()
    printed = capsys.readouterr().out
    assert f"{9 * LENGTH} frames in " in printed and "frames/s" in printed
    assert cache(clips, out) == 0 and "is complete" in capsys.readouterr().out


def test_what_cannot_be_cached_is_said(folders, tmp_path, capsys):
    text = tmp_path / "text.safetensors"
    text.write_text("not weights")
    odd = write_clips(tmp_path / "odd", {"train": 1}, side=20)
    for src, network, weights, message in (
        (tmp_path / "gone", "patch", (), "no such dataset folder"),
        (folders[1], "patch", (), "expected clips of videos"),
        (folders[0], "vqgan", (), "choose sd, tiny, svd, svd_tiny or patch"),
        (folders[0], "sd", (), "weights is empty"),
        (folders[0], "tiny", (f"--weights={text}",), "cannot be read"),
        (odd, "patch", (), "needs a multiple of 8"),
    ):
        assert cache(src, tmp_path / "out", *weights, network=network) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):  # without a planner of latents the command has no such kind
        prepare.main(["latents", f"--src={folders[0]}", f"--out={tmp_path / 'out'}"])


# -- windows --------------------------------------------------------------------------------------


def test_windows_are_those_of_the_clips(folders):
    options = {"frames": 3, "decimate": 2}
    pixels = VideoSource(folders[0], "test", **options)[1]
    source = make_source("latents", directory=folders[1], split="test", **options)
    element = source[1]
    whole = RecordSource(folders[1], "test")[1]["latents"]
    # The window spans the 5 frames in the middle.
    np.testing.assert_array_equal(element["latents"], whole[3:8:2])
    assert (element["fps"], element["start"]) == (pixels["fps"], pixels["start"])
    assert len(source) == 4 and source.origin(1) == "test/ü 1.mp4"

    sources = [VideoSource(folders[0], random=True, **options)]
    sources.append(LatentSource(folders[1], random=True, **options))
    drawn = [
        Loader(source, batch_size=3, seed=2, transforms=source.transforms).batch(4)
        for source in sources
    ]
    np.testing.assert_array_equal(drawn[0]["start"], drawn[1]["start"])
    assert drawn[1]["latents"].shape == (3, 3, 8, 8, 4)
    assert sources[0].fingerprint != sources[1].fingerprint


def test_another_dataset_is_refused(folders):
    with pytest.raises(DatasetError, match=r"holds video, .*; expected cached latents"):
        LatentSource(folders[0])
    with pytest.raises(DatasetError, match=r"holds .*latents.*; expected clips"):
        VideoSource(folders[1])


# -- training -------------------------------------------------------------------------------------


def test_the_loss_from_the_cache_is_the_loss_from_pixels(folders):
    losses, metrics = [], []
    for cached, name in ((0, "video"), (1, "latents")):
        config = config_of(folders, cached)
        system = systems.build(config.system)
        batch = system.input_spec(3)
        assert batch.keys() == {name}
        source = make_source(config.data.kind, split="train", **config.data.common)
        clips = np.stack([source[i][name] for i in range(3)])
        assert (clips.shape, clips.dtype) == (batch[name].shape, batch[name].dtype)
        params = random_like(jax.eval_shape(system.init, jax.random.key(0), batch), scale=0.25)

        @quick_jit
        def loss(params, clips, system=system, name=name):
            arguments = Vars(params, {}, {}), {name: clips}, jax.random.key(3), jnp.int32(0), ()
            return system.loss("model", *arguments)

        value, out = loss(params, clips)
        losses.append(float(value))
        metrics.append(float(out.metrics["denoising"]))
    assert losses[0] != losses[1]  # the cache holds rounded latents
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)
    np.testing.assert_allclose(metrics[1], metrics[0], rtol=2e-3)


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """Returns the workdir of a run of two steps from the cache, with pictures at the end."""
    workdir = tmp_path_factory.mktemp("cached") / "run"
    with unoptimised():
        assert train(config_of(folders, 1), str(workdir)) == 0
    return workdir


@pytest.mark.slow
def test_a_run_from_the_cache_trains_and_draws(trained):
    assert len(list((trained / "samples").glob("transfer*.png"))) == 1
    with Checkpointer(str(trained), read_only=True) as checkpointer:
        _, position = open_run(str(trained)).restore(checkpointer)
    codec = codecs.make({"network": "patch", "mean": (0.0,) * 4, "std": (1.0,) * 4})
    assert position["networks"] == codec.fingerprints({})


@pytest.mark.slow
def test_codes_from_the_cache_are_those_of_the_pixels(trained, folders, tmp_path):
    run = open_run(str(trained))
    assert encode(run, str(tmp_path / "codes"), frames=4) == {"train": 9, "eval": 4}
    common = config_of(folders, 0).data.common
    video = VideoSource(folders[0], "test", frames=4, decimate=common.decimate)[2]["video"]
    batch = {"content": video[None, :2], "motion": video[None]}
    alone = quick_jit(run.system.read)(run.trained_vars(), batch)
    record = RecordSource(tmp_path / "codes", "eval")[2]
    np.testing.assert_allclose(record["content"], alone["content"][0], atol=0.02)
    assert np.mean(record["ids"] == np.asarray(alone["ids"][0])) > 0.8


@pytest.mark.slow
def test_a_run_is_not_used_with_another_network(trained, monkeypatch):
    basis = vae.patch_basis()
    monkeypatch.setattr(vae, "patch_basis", lambda: 2 * basis)
    with pytest.raises(ConfigError, match=r"the run .* other weights of the network 'vae'"):
        open_run(str(trained)).trained_vars()


# -- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def refused(monkeypatch, caplog, tmp_path):
    """Returns a function that trains as the command line does and returns the one message of the refusal."""
    monkeypatch.setattr(startup.logging.getLogger("vidmotion"), "propagate", True)

    def run(config):
        caplog.clear()
        code = startup.exit_code_of(lambda: train(config, str(tmp_path / "run")), "stopped")
        said = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
        assert code == 2 and len(said) == 1 and not (tmp_path / "run").exists()
        return said[0]

    return run


def tiny_weights(path, seed):
    codec = codecs.make({"network": "tiny", "mean": (0.0,) * 4, "std": (1.0,) * 4})
    weights = random_like(codec._shapes(), seed=seed, scale=0.15)
    read.write_safetensors(path, engine.export(weights, vae_maps.DIFFUSERS))
    return str(path), codec, weights


def test_a_cache_of_other_weights_is_refused(refused, tmp_path):
    clips = write_clips(tmp_path / "clips", {"train": 1, "test": 1}, side=16)
    file, codec, weights = tiny_weights(tmp_path / "a.safetensors", seed=1)
    other, _, _ = tiny_weights(tmp_path / "b.safetensors", seed=2)
    assert cache(clips, tmp_path / "cache", f"--weights={file}", network="tiny") == 0

    frames = RecordSource(clips, "test")[0]["video"] / np.float32(127.5) - 1
    net = vae.AutoencoderKL(**vae.SIZES["tiny"])
    direct = quick_jit(lambda x: net.apply({"params": weights}, x, method="encode")[0])(frames)
    stored = RecordSource(tmp_path / "cache", "test")
    np.testing.assert_allclose(stored[0]["latents"], direct, rtol=2**-10, atol=1e-3)

    there, here = (
        codec.fingerprints({"vae": random_like(codec._shapes(), seed, 0.15)})["vae"][:12]
        for seed in (1, 2)
    )
    assert stored.provenance["networks"]["vae"].startswith(there) and there != here
    folders = clips, tmp_path / "cache"
    config = config_of(folders, 1, network="tiny", weights=other)
    said = refused(config)
    assert f"fingerprint is {there}, that of these weights is {here}" in said and "\n" not in said
    config.system.codec.weights = file
    assert len(Run(config, "").source("train")) == 1
    # Latents made by another network are refused, too.
    assert f"fingerprint is {there}" in refused(config_of(folders, 1))


def test_a_truncated_cache_is_refused(refused, folders, tmp_path):
    broken = shutil.copytree(folders[1], tmp_path / "broken")
    shard = next(broken.glob("train-00001-*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    said = refused(config_of((None, broken), 1))
    assert "truncated" in said and "vidmotion.data.prepare latents" in said


def test_pixels_and_latents_are_not_mixed_up(refused, folders):
    config = config_of(folders, 0)
    config.system.codec.cached = True
    assert "latents: missing (the data yield ['fps', 'start', 'video'])" in refused(config)
    config = config_of(folders, 1)
    config.system.codec.cached = False
    assert "video: missing (the data yield ['fps', 'latents', 'start'])" in refused(config)


def test_the_recipe_reads_the_cache_unless_it_is_asked_not_to():
    config = load_config("lrs3")
    assert config.data.kind == "latents" and config.data.common.directory == "data/lrs3_latents"
    spec = systems.build(config.system).input_spec(32)
    assert (spec["latents"].shape, spec["latents"].dtype) == ((32, 50, 32, 32, 4), jnp.float16)
    assert load_config("lrs3:demo,latents=cached").data.common.directory == "data/videos_latents"
    for name in ("lrs3:latents=fresh", "lrs3:demo", "lrs3:debug"):
        assert json.loads(load_config(name).to_json())["system"]["codec"]["cached"] is False
