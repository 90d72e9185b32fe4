"""From clips to pictures of a class: encode with a stand-in for VidTwin, train two steps, generate, decode."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion import system as systems
from vidmotion.data import encoded
from vidmotion.data.encoded import VidTwinLatentsSource
from vidmotion.data.heads import HeadsSource
from vidmotion.data.records import INDEX
from vidmotion.encode import encode
from vidmotion.errors import EXIT_DONE, ConfigError
from vidmotion.evaluation import evaluate
from vidmotion.open_run import load_config, open_run
from vidmotion.train import train

SIZE, FRAMES = 16, 4
REAL = systems.SYSTEMS["vidtwin"]


@dataclasses.dataclass(frozen=True)
class StandIn(systems.System):
    """Has what generation needs of a VidTwin: `parts`, `read` and `render`; its latents are means of the picture."""

    parts = ("structure", "dynamics")

    def input_spec(self, batch):
        """Returns the spec of ``video``, uint8."""
        return {"video": jax.ShapeDtypeStruct((batch, FRAMES, SIZE, SIZE, 3), jnp.uint8)}

    def init(self, key, batch):
        """Returns the only parameter, a gain."""
        return {"model": {"gain": jnp.ones(())}}

    def loss(self, player, vars, batch, key, step, carry):
        """Ignores the clips and draws the gain towards 2."""
        return (vars.params["model"]["gain"] - 2.0) ** 2, systems.Out({}, vars.mutable)

    def read(self, vars, batch):
        """Returns structure (4, 2, 2, 2) from the quarters of each frame, and dynamics (4, 4, 3) from its rows."""
        x = vars.params["model"]["gain"] * batch["video"].astype(jnp.float32) / 255
        quarters = x.reshape(-1, FRAMES, 2, 8, 2, 8, 3).mean(axis=(3, 5))
        rows = x.reshape(-1, FRAMES, 4, 4, SIZE, 3).mean(axis=(3, 4))
        return {"structure": quarters[..., :2], "dynamics": rows}

    def render(self, vars, batch):
        """Paints the quarters in the first two colours; the third repeats the first."""
        x = jnp.clip(batch["structure"], 0, 1).repeat(8, axis=2).repeat(8, axis=3)
        return jnp.concatenate([x, x[..., :1]], axis=-1)


@pytest.fixture(scope="module")
def stand_in():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(systems.SYSTEMS, "vidtwin", f"{__name__}:StandIn")
        yield


@pytest.fixture(scope="module")
def twin(stand_in, tmp_path_factory):
    """Returns the workdir of a finished run of the stand-in, on heads."""
    config = load_config("heads:debug")
    config.system = {"name": "vidtwin"}
    config.optimizer.model.clip = 0.0
    config.evals, config.sample.rows = {}, 0
    config.data.common.frames = FRAMES
    workdir = tmp_path_factory.mktemp("twin")
    assert train(config, str(workdir)) == EXIT_DONE
    return workdir


@pytest.fixture(scope="module")
def latents(twin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents") / "heads"
    assert encode(open_run(str(twin)), str(folder), batch=5) == {"train": 16, "eval": 4}
    return folder


def test_a_record_is_its_clip_and_its_class(twin, latents):
    run = open_run(str(twin))
    gain = float(run.trained_vars().params["model"]["gain"])
    assert gain != 1.0
    clips = HeadsSource(SIZE, FRAMES, 16, fps=run.config.data.common.fps)
    source = VidTwinLatentsSource(latents)
    assert source.classes == clips.classes and len(source.classes) == 8
    every = []
    for i in range(16):
        record, video = source[i], gain * clips.video(i) / 255.0
        assert record["label"] == clips.identity(i)["hair_style"]
        want = video.reshape(4, 4, 4, 16, 3).mean(axis=(2, 3))
        np.testing.assert_allclose(record["dynamics"], want, atol=1e-5)
        every.append(want)
    # The last batch, of 5 clips at a time rounded up to 8, is padded; neither its padding nor the eval split counts.
    found = encoded.VidTwinLatentsSource.read_attached(latents)
    flat = np.stack(every).reshape(-1, 3)
    np.testing.assert_allclose(found["dynamics/mean"], flat.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["dynamics/std"], flat.std(axis=0), rtol=1e-4)
    provenance = json.loads((latents / INDEX).read_text())["provenance"]
    assert provenance["system"]["name"] == "vidtwin" and provenance["workdir"] == twin.name


def test_latents_of_other_classes_or_shapes_are_refused_before_anything_is_written(
    latents, tmp_path
):
    for changes, message in (
        ({"system.classes": 5}, r"classes=5, but the latents .* have 8 classes"),
        ({"system.dynamics": (4, 4, 2)}, r"comes from a VidTwin of another shape"),
        (
            {"system.dynamics": (4, 2, 3)},
            r"dynamics: float32\(8, 4, 4, 3\), expected .*\(8, 4, 2, 3\)",
        ),
    ):
        config = load_config("vidtwin_dit:debug")
        config.system.latents = str(latents)
        config.update_from_flattened_dict(changes)
        with pytest.raises(ConfigError, match=message):
            train(config, str(tmp_path / "dit"))
        assert not (tmp_path / "dit").exists()


def test_what_cannot_be_encoded_is_refused(twin, tmp_path):
    with pytest.raises(ConfigError, match="--frames=4: a VidTwin reads clips of one length"):
        encode(open_run(str(twin)), str(tmp_path / "out"), frames=4)
    run = open_run(str(twin))
    source = HeadsSource(SIZE, FRAMES, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeadsSource, "classes", ())
        patch.setattr(run, "source", lambda split, **changes: source)
        with pytest.raises(
            ConfigError, match=r"clips of config.data \(heads\) belong to no classes"
        ):
            encode(run, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_steps_of_the_real_ones_and_pictures_of_every_class(monkeypatch, tmp_path, unoptimised):
    """Runs the commands of ``configs/vidtwin_dit.py`` in their debug variants."""
    monkeypatch.setitem(systems.SYSTEMS, "vidtwin", REAL)
    twin, latents, out = (tmp_path / name for name in ("twin", "latents", "dit"))
    autoencoder = load_config("vidtwin:debug")
    autoencoder.evals, autoencoder.sample.rows = {}, 0
    assert train(autoencoder, str(twin)) == EXIT_DONE
    assert encode(open_run(str(twin)), str(latents)) == {"train": 16, "eval": 8}

    config = load_config("vidtwin_dit:debug")
    config.system.latents = str(latents)
    config.evals.class_generation.autoencoder = str(twin)
    assert train(config, str(out)) == EXIT_DONE
    for suffix in ("png", "mp4", "gif"):
        assert (out / "samples" / f"generated.{suffix}").stat().st_size > 0
    results = json.loads((out / "eval.json").read_text())["results"]
    assert [row["metric"] for row in results] == ["class_accuracy/generated"]
    assert (
        "needs config.evals.class_generation.judge" in results[0]["note"]
        and results[0]["resolution"] == "16x16"
    )

    run = open_run(str(out))
    rows = {row.metric: row for row in evaluate("generation", run, run.trained_vars())}
    assert "convert i3d" in rows["gfvd"].note and rows["flicker"].n == 8
    assert (out / "eval" / "generation.md").exists()
    label = run.put_rows({"label": np.arange(8, dtype=np.int32)})
    made = run.jit_sample()(run.trained_vars(), label, jax.random.key(0))
    assert made["structure"].shape == (8, 4, 2, 2, 2) and made["dynamics"].shape == (8, 4, 4, 3)
    assert all(np.isfinite(x).all() for x in made.values())
