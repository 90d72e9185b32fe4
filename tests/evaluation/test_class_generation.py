"""Class-conditional generation by stand-ins whose answers are known."""

import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from test_transfer import evaluated

from vidmotion.data.records import DatasetWriter
from vidmotion.errors import ConfigError
from vidmotion.evaluation import class_generation
from vidmotion.system import fingerprint

CLASSES, PER_CLASS = 9, 4
WEIGHTS = {"kernel": np.arange(3.0)}
ATTRIBUTES = (("skin", 6), ("pants", 6), ("top", 6), ("hair", 6))


def latents_of(label):
    """Returns latents that tell their class: every number is the label."""
    value = np.asarray(label, np.float32)
    return {
        "structure": np.broadcast_to(value[:, None, None, None, None], (len(value), 2, 1, 1, 3)),
        "dynamics": np.broadcast_to(value[:, None, None, None], (len(value), 2, 2, 1)),
    }


class Stub:
    """A run that stands in for the generator, the autoencoder or the judge."""

    def __init__(self, workdir, system, name, **config):
        self.workdir, self.system, self.mesh = workdir, system, None
        self.config = ConfigDict({"seed": 0, "system": {"name": name}, **config})
        self.sizes = []

    def source(self, split):
        assert split == "eval"
        return self.records

    def rows(self, count):
        return -(-count // 8) * 8

    def put_rows(self, batch):
        return batch

    def jit(self, function):
        return function

    def jit_sample(self):
        def sample(vars, batch, key):
            self.sizes.append(len(next(iter(batch.values()))))
            return self.system.sample(vars, batch, key)

        return sample

    def trained_vars(self):
        return types.SimpleNamespace(params={"model": WEIGHTS})


def paint(vars, batch):
    """Returns a clip of two frames of 16 px, whose grey level is 20 times the class."""
    grey = np.asarray(batch["structure"])[:, 0, 0, 0, 0] * 20 / 255
    return np.broadcast_to(grey[:, None, None, None, None], (len(grey), 2, 16, 16, 3))


def read(vars, batch, key):
    """Stands in for the judge: reads the class from the grey level; all hair is alike, the other looks go through six
    values."""
    label = np.rint(batch["video"][:, 0, 0, 0, 0] / 20).astype(int)
    looks = np.arange(len(label)) % 6
    eye = np.eye(9, dtype=np.float32)[label]
    return {
        "action": eye,
        **{name: np.eye(6, dtype=np.float32)[looks * (name != "hair")] for name, _ in ATTRIBUTES},
    }


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """Returns (a function that evaluates with changed settings, the generator's run, the autoencoder's run)."""
    provenance = {
        "classes": [f"class {k}" for k in range(CLASSES)],
        "weights": fingerprint(WEIGHTS),
        "command": "none",
    }
    with DatasetWriter(tmp_path / "latents", "vidtwin_latents", provenance=provenance) as writer:
        writer.write("eval", {"label": np.int32(0)})
    system = types.SimpleNamespace(
        latents=str(tmp_path / "latents"),
        guidance=types.SimpleNamespace(scale=5.0),
        sampler=types.SimpleNamespace(steps=50),
        sample=lambda vars, batch, key: latents_of(batch["label"]),
    )
    data = {"kind": "sprites", "common": {"sheets_dir": "the sheets"}}
    twin = Stub(tmp_path, types.SimpleNamespace(render=paint), "vidtwin", data=data)
    judge_run = Stub(tmp_path, types.SimpleNamespace(sample=read), "sprites_judge")
    monkeypatch.setattr(
        class_generation, "trained_judge", lambda workdir, field: (judge_run, None, "0123")
    )
    monkeypatch.setattr(class_generation, "open_run", lambda workdir: twin)
    settings = dict(batch=6, per_class=PER_CLASS, autoencoder="twin", judge="a judge")
    run = Stub(
        tmp_path, system, "vidtwin_dit", evals={"stub": settings},
        sample={"fps": 8.0},
    )  # fmt: skip
    # Held-out clips: two of class 1, which the autoencoder decodes as class 2, and eight that it decodes right.
    shown = np.array([2, 2, *range(8)])
    latents, truth = latents_of(shown), np.array([1, 1, *range(8)], np.int32)
    run.records = [
        {name: value[i] for name, value in latents.items()} | {"label": truth[i]}
        for i in range(len(shown))
    ]

    def evaluate(**changes):
        run.config.evals.stub.update(changes)
        return {row.metric: row for row in evaluated(class_generation.ClassGeneration, run)}

    return evaluate, run, twin


def test_the_right_class_every_time(scene, tmp_path):
    evaluate, run, _ = scene
    rows = evaluate()
    assert rows["class_accuracy/generated"].value == 1 and rows["class_accuracy/generated"].n == 36
    assert rows["class_accuracy/rebuilt"].value == pytest.approx(0.8)
    assert "chance 0.111; 4 clips of each of 9 classes; guidance 5, 50 steps" in (
        rows["class_accuracy/generated"].convention
    )
    # 36 clips, 6 at a time, rounded up to a multiple that the mesh divides.
    assert run.sizes == [8] * 5
    # The hair never changes; the other three looks take six values equally often.
    assert rows["H(looks)/generated"].value == pytest.approx(0.75 * np.log(6))
    assert all(row.resolution == "16x16" for row in rows.values())
    for suffix in ("png", "mp4", "gif"):
        assert (tmp_path / "samples" / f"generated.{suffix}").stat().st_size > 0


def test_wrong_classes_are_counted(scene):
    evaluate, run, _ = scene
    run.system.sample = lambda vars, batch, key: latents_of(np.where(batch["label"] < 3, 0, 8))
    assert evaluate()["class_accuracy/generated"].value == pytest.approx(2 / 9)


def test_without_a_judge_or_an_autoencoder_it_says_so(scene):
    evaluate, _, twin = scene
    twin.config.data.kind = "heads"
    with pytest.raises(ConfigError, match=r"reads Sprites, but .* learnt from heads"):
        evaluate()
    for changes, message in (
        ({"judge": ""}, "not computed: needs config.evals.class_generation.judge"),
        ({"autoencoder": ""}, "not computed: needs config.evals.class_generation.autoencoder"),
    ):
        rows = evaluate(**changes)
        row = rows["class_accuracy/generated"]
        assert row.value is None and message in row.note and len(rows) == 1


def test_another_run_does_not_decode(scene):
    evaluate, _, twin = scene
    twin.trained_vars = lambda: types.SimpleNamespace(params={"model": {"kernel": np.arange(4.0)}})
    with pytest.raises(ConfigError, match=r"is not the run.*its weights differ"):
        evaluate()
    twin.config.system.name = "bcd"
    with pytest.raises(
        ConfigError, match="holds a bcd, which cannot decode latents of structure and dynamics"
    ):
        evaluate()
