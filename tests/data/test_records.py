"""The record format: what is written is read back in order; damage is named."""

import json
import pickle
import shutil

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from vidmotion import files
from vidmotion.data.records import DatasetError, DatasetWriter, RecordSource

COMMAND = "python -m vidmotion.data.prepare things --force"


def record(k):
    return {
        "video": np.random.default_rng(k).integers(0, 256, (2, 4, 4, 3), np.uint8),
        "track": np.full((k + 1, 2), k, np.float32),
        "label": np.int32(k),
        "name": f"clip-é{k}",
        "raw": bytes([k, 255]),
    }


def build(folder, count=10, shards=3, **options):
    provenance = {"command": COMMAND}
    with DatasetWriter(folder, "things", provenance=provenance, shards=shards, **options) as writer:
        for k in range(count):
            writer.write("train", record(k))
        writer.write("test", record(2 * count))
    return folder


@pytest.fixture
def folder(tmp_path):
    return build(tmp_path / "things")


@pytest.mark.parametrize("shards", [1, 3, 16])
def test_records_come_back_in_order_whatever_the_shards(tmp_path, shards):
    source = RecordSource(build(tmp_path / "d", shards=shards), "train")
    assert len(source) == 10
    for k in reversed(range(10)):
        found, written = source[k], record(k)
        assert found.keys() == written.keys()
        assert bytes(found["name"]).decode() == written["name"]
        assert bytes(found["raw"]) == written["raw"]
        for name in ("video", "track", "label"):
            np.testing.assert_array_equal(found[name], written[name], strict=True)
        found["video"][:] = 0  # the arrays are writable
    with pytest.raises(IndexError, match="no record 10 in a split of 10"):
        source[10]
    source.verify()


def test_non_contiguous_arrays(tmp_path):
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(2, 0, 1)[::2]
    with DatasetWriter(tmp_path, "d") as writer:
        writer.write("train", {"x": array})
    np.testing.assert_array_equal(RecordSource(tmp_path)[0]["x"], array, strict=True)


def test_index_describes_the_dataset(folder):
    index = json.loads((folder / "dataset.json").read_text())
    assert index["features"]["video"] == {"dtype": "uint8", "shape": [2, 4, 4, 3]}
    assert index["features"]["track"] == {"dtype": "float32", "shape": [None, 2]}
    assert index["features"]["label"] == {"dtype": "int32", "shape": []}
    shards = index["splits"]["train"]["shards"]
    assert [shard["records"] for shard in shards] == [4, 3, 3]
    assert {path.name for path in folder.iterdir()} == {"dataset.json"} | {
        f"{split}-0000{k}-of-00003.array_record" for split in ("train", "test") for k in range(3)
    }


def test_fingerprint_is_of_the_content(tmp_path):
    def fingerprint(name, **options):
        return RecordSource(build(tmp_path / name, **options), "train").fingerprint

    assert fingerprint("a") == fingerprint("b", shards=5)
    assert fingerprint("a2") != fingerprint("c", count=9)


def test_pickled_source_reads(folder):
    source = RecordSource(folder, "train")
    np.testing.assert_array_equal(source[4]["label"], 4)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[4]["label"], 4)


def test_interrupted_writing_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), DatasetWriter(tmp_path / "d", "things") as writer:
        writer.write("train", record(0))
        raise KeyboardInterrupt
    assert not any((tmp_path / "d").iterdir())


def test_killed_writing_leaves_no_final_name_and_is_cleared(tmp_path):
    writer = DatasetWriter(tmp_path, "things", shards=2)
    writer.write("train", record(0))
    index = files.aside(tmp_path / "dataset.json")  # never left, as in a killed process
    index.__enter__().write_text("{")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".partial"] * 2 + [".tmp"]
    with pytest.raises(DatasetError, match="interrupted"):
        RecordSource(tmp_path)
    build(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".array_record", ".json"}


def test_overwriting_is_asked_for_and_complete(folder):
    with pytest.raises(DatasetError, match="holds a dataset already"):
        build(folder)
    before = RecordSource(folder).fingerprint
    with (
        pytest.raises(RuntimeError),
        DatasetWriter(folder, "things", overwrite=True) as writer,
    ):
        writer.write("train", record(5))
        raise RuntimeError
    assert RecordSource(folder).fingerprint == before
    build(folder, count=3, shards=1, overwrite=True)
    assert len(RecordSource(folder)) == 3
    assert len(list(folder.iterdir())) == 3


def test_records_must_agree(tmp_path):
    with DatasetWriter(tmp_path, "d") as writer:
        writer.write("train", {"x": np.zeros(3, np.uint8)})
        for other in ({}, {"x": np.zeros(3)}, {"x": np.zeros((3, 1), np.uint8)}):
            with pytest.raises(ValueError, match="record entry 'x'"):
                writer.write("train", other)
        with pytest.raises(ValueError, match="record entry 'y'"):
            writer.write("train", {"x": np.zeros(3, np.uint8), "y": np.zeros(1)})
    assert len(RecordSource(tmp_path)) == 1


def expect(folder, match, split="train"):
    with pytest.raises(DatasetError, match=match) as caught:
        RecordSource(folder, split)[0]
    assert "python -m vidmotion.data.prepare" in str(caught.value)


def test_folder_errors(folder, tmp_path):
    expect(tmp_path / "none", "none: no such dataset folder")
    (tmp_path / "empty").mkdir()
    expect(tmp_path / "empty", "empty: this folder is empty")
    expect(tmp_path, r"holds no dataset\.json")
    expect(folder, "no split 'valid'; the splits are train, test.*things --force", split="valid")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "not an index"),
        ("[]", "not an index"),
        ('{"name": "cifar"}', "not an index"),
        ('{"format": 99}', "has format 99, but this version reads 1"),
        ('{"format": 1, "splits": {}}', "lacks.*features"),
    ],
)
def test_foreign_index(folder, content, match):
    (folder / "dataset.json").write_text(content)
    expect(folder, rf"dataset\.json: .*{match}")
    build(folder, count=4, shards=1, overwrite=True)
    assert len(RecordSource(folder)) == 4 and len(list(folder.iterdir())) == 3


def test_damaged_shards(folder):
    shard = folder / "train-00000-of-00003.array_record"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1000])
    expect(
        folder, rf"{shard.name}: has {len(whole) - 1000} bytes.*says {len(whole)}: it was truncated"
    )
    flipped = bytearray(whole)
    flipped[65600] ^= 255  # inside the first record
    for content in (flipped, b"x" * len(whole), bytes(len(whole))):
        shard.write_bytes(content)
        expect(
            folder,
            rf"{shard.name}: (record 0 cannot be read.*damaged or has another|has 0 records, but)",
        )
        with pytest.raises(DatasetError, match=rf"{shard.name}: its sha256"):
            RecordSource(folder).verify()
    shard.unlink()
    expect(folder, rf"{shard.name}: this shard is missing.*things --force")


def test_foreign_records(folder, tmp_path):
    shard = folder / "train-00000-of-00003.array_record"
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    writer.write(b"a record of something else")
    writer.close()
    index = json.loads((folder / "dataset.json").read_text())
    index["splits"]["train"]["shards"][0]["bytes"] = shard.stat().st_size
    (folder / "dataset.json").write_text(json.dumps(index))
    expect(folder, rf"{shard.name}: has 1 records, but the index says 4")
    with DatasetWriter(tmp_path / "other", "other", shards=1) as other:
        for _ in range(4):
            other.write("train", {"x": np.zeros(3)})
    shutil.copy(tmp_path / "other" / "train-00000-of-00001.array_record", shard)
    index["splits"]["train"]["shards"][0]["bytes"] = shard.stat().st_size
    (folder / "dataset.json").write_text(json.dumps(index))
    expect(folder, r"record 0 holds \['x'\], but the index says")
