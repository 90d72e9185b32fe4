"""Motion codes of a trained BCD: equal to those of each clip read alone, and written whole or not at all."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion import encode as command
from vidmotion import paths, startup
from vidmotion.data import encoded, records
from vidmotion.data.heads import HeadsSource
from vidmotion.data.records import DatasetError, DatasetWriter, RecordSource
from vidmotion.encode import encode
from vidmotion.errors import ConfigError
from vidmotion.open_run import open_run

FRAMES = 8


@pytest.fixture(scope="module")
def trained(heads_run):
    run = open_run(str(heads_run))
    vars = run.trained_vars()
    read = jax.jit(run.system.read)

    def alone(content, motion):
        batch = {"content": content[None], "motion": motion[None]}
        return {name: np.asarray(value[0]) for name, value in read(vars, batch).items()}

    return run, vars, alone


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_record_is_its_clip_read_alone(trained, heads_codes, split):
    run, _, alone = trained
    written = RecordSource(heads_codes, split)
    settings = run.config.data
    clips = HeadsSource(16, FRAMES, settings[split].clips, split=split, fps=settings.common.fps)
    assert len(written) == len(clips)
    different = set()
    for i in (0, len(clips) - 1):
        video = clips[i]["video"]
        full, fast = alone(video[:2], video), alone(video[:2], video[::2])
        record = written[i]
        assert record["ids"].shape == (FRAMES, 2) and record["ids_fast"].shape == (FRAMES // 2, 2)
        np.testing.assert_array_equal(record["ids"], full["ids"])
        np.testing.assert_array_equal(record["ids_fast"], fast["ids"])
        # The content comes from two frames, half a clip, as in training.
        np.testing.assert_allclose(record["content"], full["content"], atol=1e-5)
        different.add(record["content"].tobytes())
    assert len(different) == 2


def test_codebooks_and_provenance_are_the_runs(trained, heads_run, heads_codes):
    _, vars, _ = trained
    kept = encoded.CodesSource.read_attached(heads_codes)
    trained_ones = paths.flatten(vars.params["model"]["quantizer"])
    assert kept.keys() == trained_ones.keys() >= {"codebooks", "out/kernel"}
    for path, value in kept.items():
        np.testing.assert_array_equal(value, trained_ones[path])
    index = json.loads((heads_codes / records.INDEX).read_text())
    assert index["provenance"]["workdir"] == heads_run.name
    assert index["provenance"]["system"]["quantizer"]["entries"] == 8
    assert index["provenance"]["command"].startswith("python -m vidmotion.encode --workdir=")
    assert (
        index["files"][encoded.QUANTIZER]["bytes"]
        == (heads_codes / encoded.QUANTIZER).stat().st_size
    )


def test_prepared_videos_are_read_at_the_rate_of_training(trained, heads_run, tmp_path):
    _, _, alone = trained
    stored = np.random.default_rng(0).integers(0, 256, (3, 10, 16, 16, 3), np.uint8)
    with DatasetWriter(tmp_path / "videos", "videos") as writer:
        for split in ("train", "test"):
            for video in stored:
                writer.write(
                    split,
                    {
                        "video": video,
                        "length": np.int32(10),
                        "fps": np.float32(25),
                        "start": np.float64(0),
                        "source": "a.mp4",
                    },
                )
    run = open_run(str(heads_run))
    common = {"directory": str(tmp_path / "videos"), "frames": 4, "decimate": 2}
    run.config.data.kind = "videos"
    run.config.data.common = common
    run.config.data.train = {"split": "train", "random": True}
    run.config.data.eval = {"split": "test"}
    assert encode(run, str(tmp_path / "codes"), frames=5) == {"train": 3, "eval": 3}
    middle = stored[1, 0:9:2]  # at the rate of training; nine of ten frames, as the rest is cut off
    for split in ("train", "eval"):
        record = RecordSource(tmp_path / "codes", split)[1]
        content = middle[:2]  # half a clip
        np.testing.assert_array_equal(record["ids"], alone(content, middle)["ids"])
        np.testing.assert_array_equal(record["ids_fast"], alone(content, middle[::2])["ids"])
        np.testing.assert_allclose(record["content"], alone(content, middle)["content"], atol=1e-5)


# -- whole or not at all --------------------------------------------------------------------------


def quick(heads_run):
    """Returns the run with codes that cost nothing, for tests of the files."""
    run = open_run(str(heads_run))

    def read(vars, batch):
        clips, frames = batch["motion"].shape[:2]
        content = jnp.zeros((clips, 64, 8))
        return {"content": content, "ids": jnp.zeros((clips, frames, 2), jnp.int32)}

    object.__setattr__(run.system, "read", read)
    return run


def interrupt_after(monkeypatch, writes):
    write, count = DatasetWriter.write, iter(range(writes))

    def stopping(self, split, record):
        if next(count, None) is None:
            raise KeyboardInterrupt
        write(self, split, record)

    monkeypatch.setattr(DatasetWriter, "write", stopping)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_interrupted_one_leaves_nothing(heads_run, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 18)  # during the second split
    with pytest.raises(KeyboardInterrupt):
        encode(quick(heads_run), str(tmp_path / "out"))
    assert contents(tmp_path / "out") == {}


def test_overwriting_is_asked_for_and_happens_at_the_end(heads_run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run = quick(heads_run)
    encode(run, str(out))
    before = contents(out)
    with pytest.raises(DatasetError, match="holds a dataset already"):
        encode(run, str(out))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 18)
        with pytest.raises(KeyboardInterrupt):
            encode(run, str(out), frames=6, force=True)
    assert contents(out) == before
    order = []
    replace = os.replace

    def watched(source, target):
        order.append(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    encode(run, str(out), frames=6, force=True)
    assert encoded.QUANTIZER in order and order[-1] == records.INDEX
    assert RecordSource(out, "train")[0]["ids"].shape == (6, 2)
    assert contents(out).keys() == before.keys()


# -- the command line -----------------------------------------------------------------------------


@pytest.fixture
def say(monkeypatch, caplog):
    """Returns a function that runs the command in this process and returns (exit code, its errors)."""
    for name in ("set_up_log", "set_up_devices"):
        monkeypatch.setattr(startup, name, lambda: None)
    monkeypatch.setattr(startup.logging.getLogger("vidmotion"), "propagate", True)

    def call(*arguments):
        caplog.clear()
        code = command.main(list(map(str, arguments)))
        return code, [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]

    return call


def test_a_dataset_from_the_command_line(say, heads_run, heads_codes, tmp_path):
    out = tmp_path / "out"
    assert say(f"--workdir={heads_run}", f"--out={out}", "--frames=8", "--batch=5") == (0, [])
    for split in ("train", "eval"):
        here, there = RecordSource(out, split), RecordSource(heads_codes, split)
        assert len(here) == len(there)
        for i in range(len(here)):
            for name in ("ids", "ids_fast"):
                np.testing.assert_array_equal(here[i][name], there[i][name])
            np.testing.assert_allclose(here[i]["content"], there[i]["content"], atol=1e-5)
    assert RecordSource(out, "eval").provenance["command"].endswith("--frames=8 --batch=5")


def test_refusals_are_one_sentence(say, heads_run, judge_workdir, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.json").write_text((heads_run / "config.json").read_text())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    for workdir, message in (
        (tmp_path / "gone", "gone holds no run"),
        (empty, "empty holds no run"),
        (tmp_path / "broken", "broken holds no run"),
        (unfinished, "unfinished holds no checkpoint"),
        (judge_workdir, "judge holds a run of sprites_judge, which has no motion codes"),
    ):
        code, said = say(f"--workdir={workdir}", f"--out={tmp_path / 'out'}")
        assert code == 2 and len(said) == 1 and message in said[0] and "\n" not in said[0]
    assert not (tmp_path / "out").exists()


def test_clips_of_one_length_are_not_cut(heads_run, tmp_path):
    run = open_run(str(heads_run))
    del run.config.data.common.frames
    with pytest.raises(ConfigError, match="--frames=3: clips of heads have one length"):
        encode(run, str(tmp_path / "out"), frames=3)
