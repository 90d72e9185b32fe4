"""Stored motion codes and tokens: where sequences begin, which names they have, and what is refused."""

import pickle

import numpy as np
import pytest
import safetensors.numpy

from vidmotion.data import encoded, heads, pipeline
from vidmotion.data.records import DatasetError, DatasetWriter
from vidmotion.errors import ConfigError

LENGTH, CLIPS = 9, 6


def write(folder, name="ids", value=1.0, encoder="e"):
    """Writes clips in which clip c has the tokens 100 c + frame and the emotion c % 3; codes are the same numbers,
    twice."""
    provenance = {"encoder": encoder, "conditions": ["sad", "neutral", "happy"], "fps": 25.0}
    with DatasetWriter(folder, "motion", provenance=provenance) as writer:
        for c in range(CLIPS):
            ids = 100 * c + np.arange(LENGTH, dtype=np.int32)
            kept = ids if name == "ids" else np.repeat(ids[:, None], 2, 1).astype(np.float32)
            for split in ("train", "eval"):
                writer.write(split, {name: kept, "condition": np.int32(c % 3)})
        file = encoded.TOKENIZER if name == "ids" else encoded.STATISTICS
        writer.attach(file, safetensors.numpy.save({"mean": np.full(2, value, np.float32)}))
    return folder


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    return write(tmp_path_factory.mktemp("codes"), "motion")


def test_sequences_begin_anywhere_in_training_and_at_the_beginning_otherwise(tokens, codes):
    for kind, directory, name in (
        ("motion_tokens", tokens, "ids"),
        ("motion_codes", codes, "motion"),
    ):
        train = pipeline.make_source(kind, directory=str(directory), split="train", length=4)
        with pipeline.Loader(
            train, transforms=train.transforms, batch_size=CLIPS, seed=0, num_threads=0
        ) as loader:
            batches = [loader.batch(step) for step in range(40)]
        found = np.concatenate([batch[name] for batch in batches]).reshape(40 * CLIPS, 4, -1)
        told = np.concatenate([batch["condition"] for batch in batches])
        np.testing.assert_array_equal(np.diff(found, axis=1), 1)
        starts = found[:, 0, 0].astype(int)
        np.testing.assert_array_equal(starts // 100 % 3, told)  # the emotion is that of the clip
        assert set(starts % 100) == set(range(LENGTH - 4 + 1))
        held_out = pipeline.make_source(kind, directory=str(directory), split="eval", length=4)
        assert not held_out.transforms and len(held_out) == CLIPS
        np.testing.assert_array_equal(held_out[2][name].reshape(4, -1)[:, 0], 200 + np.arange(4))
        assert held_out[2]["condition"] == 2


def test_without_a_length_all_of_it(tokens):
    for split in ("train", "eval"):
        source = encoded.MotionTokensSource(tokens, split)
        assert not source.transforms and source[1]["ids"].shape == (LENGTH,)


def test_a_worker_gets_the_same_source(tokens):
    source = encoded.MotionTokensSource(str(tokens), "eval", 4)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint and copy.conditions == ("sad", "neutral", "happy")
    np.testing.assert_array_equal(copy[1]["ids"], source[1]["ids"])


def test_the_fingerprint_names_records_tokenizer_and_choice(tokens, tmp_path):
    def name(folder=tokens, split="train", length=4):
        return encoded.MotionTokensSource(folder, split, length).fingerprint

    assert name() == name(write(tmp_path / "same"))
    others = [name(write(tmp_path / "value", value=2.0)), name(split="eval"), name(length=3)]
    assert len({name(), *others}) == 4


def test_what_is_missing_or_broken_is_named(codes, tokens, tmp_path):
    with pytest.raises(
        DatasetError, match=r"gone: holds no clips encoded by a trained X-NeMo; write"
    ):
        encoded.MotionCodesSource(tmp_path / "gone")
    with pytest.raises(
        DatasetError, match=r"holds ids, condition; expected clips .* trained X-NeMo"
    ):
        encoded.MotionCodesSource(tokens)
    for length in (-1, LENGTH + 1):
        with pytest.raises(
            ConfigError, match=f"length {length}, but the clips in .* have length 9"
        ):
            encoded.MotionCodesSource(codes, length=length)
    folder = write(tmp_path / "broken")
    (folder / encoded.TOKENIZER).write_bytes(b"not weights")
    with pytest.raises(DatasetError, match=r"tokenizer\.safetensors: .*Write the folder again"):
        encoded.MotionTokensSource.read_attached(folder)
    (folder / encoded.TOKENIZER).unlink()
    for use in (encoded.MotionTokensSource, encoded.MotionTokensSource.read_attached):
        with pytest.raises(DatasetError, match=r"tokenizer\.safetensors: No such file"):
            use(folder)


def test_heads_are_sad_neutral_or_happy_by_their_mean_smile():
    """All three are common, because the smile wanders evenly about zero."""
    source = heads.HeadsSource(16, 32, 300)
    column = heads.MOTION_COLUMN["smile"]
    motions = [source.motion(i) for i in range(300)]
    found = [encoded.condition_of(source, {"motion": m}) for m in motions]
    for motion, index in zip(motions, found):
        smile = motion[:, column].mean()
        assert index == (0 if smile < -0.15 else 2 if smile > 0.15 else 1)
    share = np.bincount(found, minlength=3) / 300
    assert share.min() > 0.15


def test_emotions_of_mead_have_levels():
    class Mead:
        classes = ("angry", "neutral", "sad")

        @staticmethod
        def class_of(element):
            return int(element["label"])

    names = encoded.conditions(Mead())
    assert names == ("angry/1", "angry/2", "angry/3", "neutral/1", "sad/1", "sad/2", "sad/3")
    for label, level, index in ((0, 1, 0), (1, 1, 3), (2, 3, 6)):
        assert encoded.condition_of(Mead(), {"label": label, "level": level}) == index
    assert encoded.conditions(object()) == ()
    assert encoded.condition_of(object(), {}) == -1
