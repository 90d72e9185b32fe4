"""Swaps of systems whose answers are known, read by a reader that knows every render; and the real reader."""

import itertools
import types

import numpy as np
import pytest
from test_drivers import stub
from test_transfer import evaluated, rows_of

from vidmotion.data import heads
from vidmotion.data.clip_source import Renders
from vidmotion.data.heads import HeadsSource
from vidmotion.errors import ConfigError
from vidmotion.evaluation import heads_reader, reading
from vidmotion.evaluation.reading import Reading
from vidmotion.evaluation.trained import Trained
from vidmotion.evaluation.transfer import derangement
from vidmotion.open_run import load_config, open_run
from vidmotion.systems.heads_reader import CLASSES, MOTION, NUMBERS
from vidmotion.train import train

CLIPS = 6


@pytest.fixture(scope="module")
def source():
    return HeadsSource(size=16, frames=4, clips=CLIPS, split="eval", fps=2.0)


def exact(source):
    """Returns a stand-in for a reader's run that reads every render of the clips' identities and motions without
    error."""
    known = {}
    for i, j in itertools.product(range(CLIPS), repeat=2):
        known[source.swap(i, j).tobytes()] = source.identity(i), source.motion(j)

    def sample(vars, batch, key):
        read = [known[video.tobytes()] for video in batch["video"]]
        outputs = {}
        for k, name in enumerate(MOTION):
            outputs[name] = np.stack([motion[:, k] for _, motion in read])
        for name in NUMBERS:
            outputs[name] = np.stack([np.full(len(motion), who[name]) for who, motion in read])
        for name, classes in CLASSES.items():
            picked = np.array([who[name] for who, _ in read])
            outputs[name] = np.repeat(np.eye(classes)[picked][:, None], source.frames, axis=1)
        return outputs

    return types.SimpleNamespace(
        rows=lambda count: count,
        put_rows=lambda batch: batch,
        jit_sample=lambda: sample,
        system=types.SimpleNamespace(size=16),
    )


def read_of(source, answer, monkeypatch):
    found = Trained(exact(source), None, "0123")
    monkeypatch.setattr(reading, "trained_reader", lambda where, side: found)
    rows = rows_of(evaluated(Reading, stub(source, answer)))
    assert all(row.note == "true renders 1.0000" or row.value is None for row in rows.values())
    assert {row.weights for row in rows.values()} == {"0123"}
    return {name.removeprefix("read/"): row.value for name, row in rows.items()}


def test_a_perfect_swap_is_read_without_error(source, monkeypatch):
    values = read_of(source, source.swap, monkeypatch)
    factors = [f"motion/{name}" for name in MOTION]
    factors += [f"identity/{f.name}" for f in heads.IDENTITY_FACTORS]
    assert set(values) == {*factors, *heads_reader.GROUPS}
    assert set(values.values()) == {1.0}


def test_a_copy_of_the_source_has_its_looks_and_not_the_motion(source, monkeypatch):
    values = read_of(source, lambda content, motion: source[content]["video"], monkeypatch)
    assert {v for name, v in values.items() if name.startswith("identity/")} == {1.0}
    paired, yaw = derangement(CLIPS), np.stack([source.motion(i)[:, 0] for i in range(CLIPS)])
    wanted = yaw[paired]
    expected = 1 - np.sum((yaw - wanted) ** 2) / np.sum((wanted - wanted.mean()) ** 2)
    assert values["motion/yaw"] == pytest.approx(expected, abs=1e-5)
    of_place = np.mean([values[f"motion/{name}"] for name in ("yaw", "x", "y", "scale")])
    assert values["motion/place"] == pytest.approx(of_place) and of_place < 0.5


def test_a_copy_of_the_driver_has_its_motion_and_not_the_looks(source, monkeypatch):
    values = read_of(source, lambda content, motion: source[motion]["video"], monkeypatch)
    assert {v for name, v in values.items() if name.startswith("motion/")} == {1.0}
    hair = np.array([source.identity(i)["hair_style"] for i in range(CLIPS)])
    expected = np.mean(hair == hair[derangement(CLIPS)])
    assert values["identity/hair_style"] == pytest.approx(expected)
    assert values["identity/classes"] < 0.6 and values["identity/numbers"] < 0.5


def test_hidden_factors_are_left_out():
    """Uses three clips of two frames: one is bald, and one has both eyes shut in its second frame."""
    rng = np.random.default_rng(0)
    people = [{**heads.sample_identity(rng), "hair_style": style} for style in (0, 2, 4)]
    motions = np.zeros((3, 2, len(MOTION)), np.float32)
    motions[..., heads.MOTION_COLUMN["scale"]] = 1
    motions[..., 0] = np.linspace(-0.3, 0.3, 6).reshape(3, 2)
    motions[1, 1, [heads.MOTION_COLUMN[name] for name in ("lid_left", "lid_right")]] = 1
    read = {name: motions[..., k] + (name == "yaw") * 0.06 for k, name in enumerate(MOTION)}
    for name in NUMBERS:
        read[name] = np.repeat([[who[name]] for who in people], 2, axis=1)
    for name, classes in CLASSES.items():
        read[name] = np.repeat(np.eye(classes)[[[who[name]] for who in people]], 2, axis=1)
    found = heads_reader.scores(read, list(zip(people, motions)))
    assert found["identity/hair_volume"].n == 4 and found["identity/ear_size"].n == 4
    assert found["identity/iris_colour"] == (1.0, 5) and found["identity/skin"].n == 6
    # Yaw has six values, 0.12 apart: its variance is (6^2 - 1) / 12 squared steps, and every error is half a step.
    assert found["motion/yaw"].value == pytest.approx(1 - 0.5**2 / (35 / 12))
    # A factor that never changes has no R^2, and neither has a group that includes one.
    assert found["motion/x"].value is None and found["motion/place"].value is None
    row = heads_reader.row("motion/x", found["motion/x"], "none", "16x16", "true renders 1.0000")
    assert row.note == "not computed: it is the same, or hidden, in all frames"


def test_without_a_reader_the_row_says_what_it_needs(source):
    for settings in ({}, {"reader": ""}):
        (row,) = evaluated(Reading, stub(source, source.swap, **settings))
        assert row.value is None and row.n == CLIPS
        assert row.note.startswith("not computed: needs config.evals.reading.reader")


@pytest.mark.slow
def test_a_trained_reader_is_found_and_checked(tmp_path, judge_workdir, unoptimised, one_device):
    workdir = str(tmp_path / "reader")
    assert train(load_config("heads_reader:debug"), workdir) == 0
    source = HeadsSource(size=16, frames=2, clips=3, split="eval")
    run = stub(source, source.swap, reader=workdir)
    rows = rows_of(evaluated(Reading, run))
    for name, row in rows.items():  # the system's answers are the true renders, byte for byte
        assert row.value is None or row.note == f"true renders {row.value:.4f}", name
    with pytest.raises(ConfigError, match="reads pictures of 16 pixels, but the clips have 32"):
        reading.trained_reader(workdir, 32)
    with pytest.raises(ConfigError, match="holds a run of 'sprites_judge'"):
        reading.trained_reader(str(judge_workdir), 16)
    with pytest.raises(ConfigError, match="holds no run"):
        reading.trained_reader(str(tmp_path / "nowhere"), 16)


@pytest.mark.slow
def test_the_shipped_reader_reads_faces_that_nobody_has_seen():
    source = HeadsSource(size=64, frames=4, clips=24, split="eval", seed=7, fps=1.0)
    run = stub(source, source.swap, reader="heads_reader")
    rows = rows_of(evaluated(Reading, run))
    for name in ("yaw", "pitch", "roll", "x", "y", "scale", "mouth_open"):
        assert rows[f"read/motion/{name}"].value > 0.9, name
    assert rows["read/identity/classes"].value > 0.88
    with pytest.raises(
        ConfigError,
        match=r"holds no run.*shipped networks are heads_bcd, heads_codec, heads_reader",
    ):
        open_run("heads_raeder")
    with pytest.raises(ConfigError, match="since the run was trained with it"):
        open_run("heads_reader", {"system.hidden": "3"})


def test_data_without_factors_are_refused(source):
    run = stub(source, source.swap)
    listed = [source[i] for i in range(3)]

    class Clips(list, Renders):
        swap = staticmethod(source.swap)

    run._source, run.config.data.kind = Clips(listed), "sprites"
    with pytest.raises(ConfigError, match="'sprites' are not drawn from factors"):
        evaluated(Reading, run)
