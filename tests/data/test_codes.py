"""Stored motion codes: how rate and start are drawn, and what is refused."""

import pickle

import numpy as np
import pytest
import safetensors.numpy

from vidmotion.data import encoded, pipeline
from vidmotion.data.records import DatasetError, DatasetWriter
from vidmotion.errors import ConfigError

FULL, HALF, CLIPS = 9, 5, 6


def write(folder, clips=CLIPS, books=2, quantizer=True, value=1.0):
    """Writes codes in which clip c has 1000 c + frame at full rate, and 1000 c + 500 + frame at half rate."""
    with DatasetWriter(folder, "codes") as writer:
        for c in range(clips):
            for split in ("train", "eval"):
                record = {"content": np.full((2, 3), c, np.float32)}
                for name, length, base in (("ids", FULL, 0), ("ids_fast", HALF, 500)):
                    ids = 1000 * c + base + np.arange(length, dtype=np.int32)
                    record[name] = np.repeat(ids[:, None], books, axis=1)
                writer.write(split, record)
        if quantizer:
            books = {"codebooks": np.full((2, 4, 3), value, np.float32)}
            writer.attach(encoded.QUANTIZER, safetensors.numpy.save(books))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("codes"))


def drawn(pick, count=2000):
    """Returns the first code of each of many draws from clip 3; checks their length and that codes are consecutive."""
    rng = np.random.default_rng(0)
    element = {
        "content": np.zeros((2, 3), np.float32),
        "ids": np.arange(FULL, dtype=np.int32)[:, None],
        "ids_fast": 500 + np.arange(HALF, dtype=np.int32)[:, None],
    }
    picked = [pick.random_map(element, rng)["ids"][:, 0] for _ in range(count)]
    assert all(np.array_equal(np.diff(ids), np.ones(len(ids) - 1)) for ids in picked)
    assert {len(ids) for ids in picked} == {pick.frames}
    return np.array([ids[0] for ids in picked])


def test_rate_and_start_are_drawn_evenly():
    starts = drawn(encoded.PickRate(frames=4, fast=0.5))
    fast = starts >= 500
    assert fast.mean() == pytest.approx(0.5, abs=0.05)
    # Six starts at full rate and two at half rate, all equally likely.
    for found, places in ((starts[~fast], FULL - 4 + 1), (starts[fast] - 500, HALF - 4 + 1)):
        share = np.bincount(found, minlength=places) / len(found)
        assert len(share) == places
        np.testing.assert_allclose(share, 1 / places, atol=0.05)


def test_one_rate_only():
    assert (drawn(encoded.PickRate(frames=HALF, fast=1.0), 50) == 500).all()
    assert (drawn(encoded.PickRate(frames=4, fast=0.0), 50) < 500).all()


def test_the_loader_draws_and_evaluation_does_not(folder):
    train = pipeline.make_source("codes", directory=str(folder), split="train", frames=4)
    with pipeline.Loader(
        train, transforms=train.transforms, batch_size=CLIPS, seed=0, num_threads=0
    ) as loader:
        batches = [loader.batch(step) for step in range(8)]
    for batch in batches:
        assert batch["ids"].shape == (CLIPS, 4, 2) and set(batch) == {"content", "ids"}
        # The content comes from the same clip as the codes.
        np.testing.assert_array_equal(batch["ids"][:, 0, 0] // 1000, batch["content"][:, 0, 0])
    rates = np.concatenate([batch["ids"][:, 0, 0] % 1000 >= 500 for batch in batches])
    assert 0.2 < rates.mean() < 0.8
    test = encoded.CodesSource(folder, "eval", frames=4)
    assert not test.transforms and len(test) == CLIPS
    np.testing.assert_array_equal(test[2]["ids"][:, 0], 2000 + np.arange(4))
    assert set(test[2]) == {"content", "ids"}


def test_a_worker_gets_the_same_source(folder):
    source = encoded.CodesSource(str(folder), "eval", 4)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint
    np.testing.assert_array_equal(copy[1]["ids"], source[1]["ids"])


def test_the_fingerprint_names_codes_codebooks_and_choice(folder, tmp_path):
    def name(folder=folder, split="train", frames=4, fast=0.5):
        return encoded.CodesSource(folder, split, frames, fast).fingerprint

    assert name() == name(write(tmp_path / "same"))
    others = [
        name(write(tmp_path / "fewer", clips=5)),
        name(write(tmp_path / "books", value=2.0)),
        name(split="eval"),
        name(frames=3),
        name(fast=0.25),
    ]
    assert len({name(), *others}) == 6


def test_what_is_not_codes_is_refused(folder, tmp_path):
    with pytest.raises(
        DatasetError,
        match=r"gone: holds no clips encoded by a trained BCD; write them with python -m",
    ):
        encoded.CodesSource(tmp_path / "gone")
    with DatasetWriter(tmp_path / "clips", "clips") as writer:
        writer.write("train", {"video": np.zeros((2, 4, 4, 3), np.uint8)})
    with pytest.raises(
        DatasetError, match=r"clips: holds video; expected clips that .* encoded with a trained BCD"
    ):
        encoded.CodesSource(tmp_path / "clips")
    with pytest.raises(DatasetError, match=r"no split 'test'"):
        encoded.CodesSource(folder, "test")
    for frames in (0, HALF + 1):
        with pytest.raises(ConfigError, match=f"frames={frames}, but the clips in .* have 5 codes"):
            encoded.CodesSource(folder, frames=frames)


def test_codebooks_that_are_missing_or_broken_are_named(tmp_path):
    folder = write(tmp_path / "none", quantizer=False)
    for use in (encoded.CodesSource, encoded.CodesSource.read_attached):
        with pytest.raises(
            DatasetError, match=r"quantizer\.safetensors: No such file.*vidmotion\.encode"
        ):
            use(folder) if use == encoded.CodesSource.read_attached else use(folder, frames=4)
    (folder / encoded.QUANTIZER).write_bytes(b"not weights")
    with pytest.raises(DatasetError, match=r"quantizer\.safetensors: .*Write the folder again"):
        encoded.CodesSource.read_attached(folder)
