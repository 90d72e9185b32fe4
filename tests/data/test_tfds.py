"""TensorFlow Datasets: datasets that are built here read back as our own sources give them; windows of other videos."""

import io
import types

import numpy as np
import pytest
from PIL import Image

from vidmotion.data.heads import HeadsSource
from vidmotion.data.pipeline import Loader, make_source
from vidmotion.data.records import DatasetError, DatasetWriter, RecordSource
from vidmotion.data.sprites import SpritesSource
from vidmotion.errors import ConfigError

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("importlib_resources")  # needed by the builders, installed with the extra
builders = pytest.importorskip("vidmotion.data.tfds")


def built(builder, config, folder):
    """Writes the dataset and returns its name."""
    made = builder(config=config, data_dir=folder, file_format="array_record")
    made.download_and_prepare()
    return f"{made.name}/{config.name}:1.0.0"


def assert_same(ours, name, split, folder):
    theirs = make_source("tfds", name=name, split=split, data_dir=str(folder))
    assert len(theirs) == len(ours)
    order = (Loader(source, batch_size=1, shuffle=False) for source in (ours, theirs))
    for k, (a, b) in enumerate(zip(*(loader.one_pass() for loader in order), strict=True)):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype, key
            np.testing.assert_array_equal(a[key], b[key], err_msg=f"{k} {key}")


@pytest.mark.parametrize("files", [1, 2])
def test_heads(tmp_path, monkeypatch, files):
    """Without TensorFlow, TFDS writes even splits that are larger than the memory that it allows itself."""
    if files == 2:
        clip = HeadsSource(16, 2, 3, fps=5.0)[0]
        monkeypatch.setattr(builders, "SHARD", 2 * sum(np.asarray(v).nbytes for v in clip.values()))
        monkeypatch.setattr("tensorflow_datasets.core.shuffle.MAX_MEM_BUFFER_SIZE", 0)
    config = builders.HeadsConfig(name="small", train=3, eval=2, size=16, frames=2, fps=5.0)
    name = built(builders.VidmotionHeads, config, tmp_path)
    for split, clips in (("train", 3), ("eval", 2)):
        ours = HeadsSource(16, 2, clips, split=split, fps=5.0)
        assert_same(ours, name, split, tmp_path)
    assert len(list(tmp_path.rglob("*-train.array_record-*"))) == files


def test_a_prepared_folder(tmp_path):
    """Has clips of several lengths, text, labels, and so many records that shards alone would not keep their order."""
    rng = np.random.default_rng(0)
    with DatasetWriter(tmp_path / "clips", "videos", shards=2) as writer:
        for k in range(25):
            record = {
                "clip": rng.integers(0, 256, 50 + k, np.uint8),
                "label": np.int32(k % 3),
                "start": np.float64(k / 3),
                "source": f"ü {k}.mp4",
                "boxes": rng.random((2 + k % 4, 4)).astype(np.float32),
            }
            writer.write("test" if k > 20 else "train", record)
    config = builders.FolderConfig(name="mine", directory=str(tmp_path / "clips"))
    name = built(builders.VidmotionFolder, config, tmp_path / "tfds")
    for split in ("train", "test"):
        assert_same(RecordSource(tmp_path / "clips", split), name, split, tmp_path / "tfds")


def test_sprites(sheets_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(SpritesSource, "__len__", lambda self: 4)
    name = built(
        builders.VidmotionSprites,
        builders.SpritesConfig(name="few", sheets=str(sheets_dir)),
        tmp_path,
    )
    assert_same(SpritesSource(sheets_dir, "test"), name, "test", tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match="vidmotion_folder: name a prepared folder"):
        builders.VidmotionFolder(data_dir=tmp_path)
    config = builders.FolderConfig(name="gone", directory=str(tmp_path / "gone"))
    with pytest.raises(DatasetError, match="no such dataset folder"):
        builders.VidmotionFolder(config=config, data_dir=tmp_path)


# -- videos of others ------------------------------------------------------------------------------


def encoded(level, size=20):
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def ucf(monkeypatch):
    """Makes TFDS give two videos of 12 and 9 undecoded pictures; frame t of video k has grey level 100 k + t."""
    videos = [
        np.array([encoded(100 * k + t) for t in range(n)], object) for k, n in ((0, 12), (1, 9))
    ]

    class Data(list):
        dataset_info = types.SimpleNamespace(
            full_name="ucf101/ucf101_1_256/2.0.0",
            features={"label": types.SimpleNamespace(names=["a", "b"])},
            splits={"train": types.SimpleNamespace(name="train", num_examples=2, num_bytes=1)},
        )

    def data_source(name, split, data_dir, decoders):
        assert set(decoders) == {"video"}
        return Data({"video": video, "label": 1 - k} for k, video in enumerate(videos))

    monkeypatch.setattr(tfds, "data_source", data_source)


def test_windows_of_videos_that_are_decoded_here(ucf):
    source = make_source("tfds_videos", name="ucf101", frames=3, decimate=3, size=10)
    assert source.classes == ("a", "b") and len(source) == 2
    first = source[1]
    assert first["video"].shape == (3, 10, 10, 3) and first["video"].dtype == np.uint8
    # The window spans the middle seven of nine frames.
    assert first["video"][:, 0, 0, 0].tolist() == [101, 104, 107]
    assert first["label"].dtype == np.int32 and source.class_of(first) == 0
    assert first["fps"] == pytest.approx(25 / 3) and first["start"] == pytest.approx(1 / 25)
    drawn = make_source("tfds_videos", name="ucf101", frames=2, decimate=2, random=True)
    with Loader(drawn, batch_size=2, transforms=drawn.transforms, num_threads=0) as loader:
        batches = [loader.batch(k)["video"][:, :, 0, 0, 0].astype(int) for k in range(6)]
    starts = {int(video[0]) % 100 for batch in batches for video in batch}
    assert len(starts) > 2 and all((batch[:, 1] - batch[:, 0] == 2).all() for batch in batches)
    assert drawn.fingerprint != source.fingerprint
    with pytest.raises(ConfigError, match="span 13 frames, but the stored clips have 12"):
        make_source("tfds_videos", name="ucf101", frames=13)
    with pytest.raises(ConfigError, match="at least 1"):
        make_source("tfds_videos", name="ucf101", frames=0)
