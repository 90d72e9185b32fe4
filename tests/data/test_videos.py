"""Stored clips: their encoding, and windows of them through the loader."""

import io
import itertools
import pickle

import av
import numpy as np
import pytest

from vidmotion.data.clips import GOP, decode_clip, encode_clip
from vidmotion.data.pipeline import Loader, make_source
from vidmotion.data.records import DatasetError, DatasetWriter
from vidmotion.data.videos import VideoSource, Window
from vidmotion.errors import ConfigError

LENGTH, SIDE, FPS = 25, 64, 25.0


def levels(first=0):
    """Returns a clip whose frame k has grey level first + 8 k, so that the frames of a window can be read off."""
    grey = (first + 8 * np.arange(LENGTH)).astype(np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (LENGTH, SIDE, SIDE, 3)).copy()


def shown(video):
    """Returns the frame numbers that `levels` put there, from the middle of each picture."""
    return np.rint(video[..., 20:40, 20:40, :].mean((-1, -2, -3)) / 8).astype(int).tolist()


def decibel(a, b):
    return -10 * np.log10(np.mean((a / 255.0 - b / 255.0) ** 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with three clips as H.264 in "train", and the same clips as pixels in "raw/train"."""
    root = tmp_path_factory.mktemp("clips")
    for path, kind in ((root, "clip"), (root / "raw", "video")):
        with DatasetWriter(path, "clips", shards=2) as writer:
            for k in range(3):
                data = encode_clip(levels(), FPS) if kind == "clip" else levels()
                writer.write("train", record(data, kind, f"ü {k}.mp4", 10.0 * k))
    return root


def record(data, kind="clip", source="a.mp4", start=0.0):
    return {
        kind: data,
        "length": np.int32(LENGTH),
        "fps": np.float32(FPS),
        "source": source,
        "start": np.float64(start),
        "box": np.zeros(4, np.float32),
    }


def test_encoding_is_close_repeatable_and_a_file_without_sound():
    y, x, t = np.mgrid[0:SIDE, 0:SIDE, 0:LENGTH]
    light = 127.5 + 80 * np.sin(x / 9 + t / 5)
    tint = 25 * np.stack([np.cos(y / 9 - t / 6), np.zeros_like(light), np.sin((x + y) / 11)], -1)
    video = np.rint(light[..., None] + tint).astype(np.uint8).transpose(2, 0, 1, 3)
    clip = encode_clip(video, 30000 / 1001)
    assert clip == encode_clip(video, 30000 / 1001)
    assert decibel(decode_clip(clip, range(LENGTH)), video) > 38
    with av.open(io.BytesIO(clip)) as container:
        (stream,) = container.streams
        assert (stream.type, stream.codec_context.name) == ("video", "h264")
        assert stream.average_rate * 1001 == 30000
        keys = [frame.key_frame for frame in container.decode(stream)]
    assert len(keys) == LENGTH and all(keys[::GOP])


@pytest.mark.parametrize("start, stop, step", [(0, 25, 1), (9, 12, 1), (10, 11, 1), (3, 25, 7)])
def test_any_frames_of_a_clip_are_those_of_the_whole(start, stop, step):
    clip = encode_clip(levels(), FPS)
    whole = decode_clip(clip, range(LENGTH))
    part = decode_clip(np.frombuffer(clip, np.uint8), range(start, stop, step))
    np.testing.assert_array_equal(part, whole[start:stop:step])
    assert shown(part) == list(range(start, stop, step))


def test_damaged_clips_are_named():
    clip = encode_clip(levels(), FPS)
    for bad in (b"", b"text", clip[: len(clip) // 2]):
        with pytest.raises(DatasetError, match="stored clip"):
            decode_clip(bad, range(5))
    with pytest.raises(DatasetError, match="has only 1 of the 2 frames"):
        decode_clip(clip, range(LENGTH - 1, LENGTH + 1))


@pytest.mark.parametrize("part", ["", "raw"])
def test_centred_windows(folder, part):
    source = make_source("videos", directory=folder / part, frames=5, decimate=3)
    assert len(source) == 3 and source.transforms == ()
    element = source[1]
    # 5 frames, every third, span 13 of 25, which leaves 6 on either side.
    assert shown(element["video"]) == [6, 9, 12, 15, 18]
    assert element["video"].shape == (5, SIDE, SIDE, 3) and element["video"].dtype == np.uint8
    assert element["fps"] == np.float32(25 / 3) and element["start"] == 10 + 6 / 25
    assert source.origin(1) == "ü 1.mp4"
    assert shown(VideoSource(folder / part)[0]["video"]) == list(range(LENGTH))
    assert shown(VideoSource(folder / part, decimate=2)[0]["video"]) == list(range(0, LENGTH, 2))


@pytest.mark.parametrize("part", ["", "raw"])
def test_random_windows_are_all_the_possible_ones_and_repeat(folder, part):
    source = VideoSource(folder / part, frames=11, decimate=2, random=True)
    options = {"batch_size": 3, "seed": 4, "transforms": source.transforms}
    with Loader(source, **options) as loader:
        batches = list(itertools.islice(loader.iterate(), 20))
    assert batches[0]["video"].shape == (3, 11, SIDE, SIDE, 3)
    windows = [shown(video) for batch in batches for video in batch["video"]]
    # The windows span 21 of 25 frames.
    assert {tuple(window) for window in windows} == {tuple(range(k, k + 21, 2)) for k in range(5)}
    again = Loader(source, **options).batch(17)
    np.testing.assert_array_equal(again["video"], batches[17]["video"])


def test_what_the_fingerprint_tells_apart(folder):
    base = {"frames": 5, "decimate": 2, "random": False}
    sources = [VideoSource(folder, **base)]
    for change in ({"frames": 6}, {"decimate": 1}, {"random": True}):
        sources.append(VideoSource(folder, **{**base, **change}))
    assert len({source.fingerprint for source in sources}) == 4
    copy = pickle.loads(pickle.dumps(sources[0]))
    assert copy.fingerprint == sources[0].fingerprint and repr(copy) == repr(sources[0])
    np.testing.assert_array_equal(copy[2]["video"], sources[0][2]["video"])


def test_windows_that_do_not_fit_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"13 frames, one in every 3, span 37 .* have 25"):
        VideoSource(folder, frames=13, decimate=3)
    for wrong in ({"frames": 0}, {"decimate": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            VideoSource(folder, **wrong)
    with DatasetWriter(tmp_path, "other") as writer:
        writer.write("train", {"x": np.zeros(3)})
    with pytest.raises(DatasetError, match="expected clips of videos"):
        VideoSource(tmp_path)


def test_a_window_of_one_frame():
    element = record(encode_clip(levels(), FPS))
    rng = np.random.default_rng(0)
    assert shown(Window(1, 5, random=False).random_map(element, rng)["video"]) == [12]
    assert {shown(Window(1).random_map(element, rng)["video"])[0] for _ in range(99)} >= {0, 24}
