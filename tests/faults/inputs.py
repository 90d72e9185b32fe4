"""Broken and odd inputs, made from a seed, each with the outcome that is expected of it.

A generator takes a `Place` and yields `Case`s. The expected outcome is one of

    refused   one error that says where the fault lies and can be shown to a person
    skipped   passed over and reported by its name; everything else is read
    right     read, with the values that were written
    either    refused, skipped or read right, since the fault may lie where it does no harm; never other values
"""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import wave
import zipfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import tiny
from PIL import Image
from server import Server

from vidmotion import media, run_record
from vidmotion.convert import folder, read
from vidmotion.data import faces, prepare
from vidmotion.data.records import DatasetWriter, RecordSource
from vidmotion.data.videos import VideoSource
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED, ConfigError
from vidmotion.metric_writer import read_metrics
from vidmotion.open_run import check_workdir, open_run
from vidmotion.run import Run
from vidmotion.train import train

REFUSED, SKIPPED, RIGHT, EITHER = "refused", "skipped", "right", "either"


@dataclasses.dataclass(frozen=True)
class Case:
    """An input, whole or damaged, and its expected outcome.

    Attributes:
      name: the name of the fault.
      path: the file or folder to be read.
      reader: the function of the project that reads `path`.
      expected: one of the four outcomes of this module.
      same: tells whether what was read is what was written; unused where reading is refused.
      named: what an error or a report has to name; the last part of `path` by default.
    """

    name: str
    path: Path
    reader: Callable
    expected: str
    same: Callable = lambda _: True
    named: str = ""


def damaged(rng: np.random.Generator, data: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """Yields `count` cut files, `count` files with one flipped bit, and an empty, a zeroed and a text file."""
    for k in range(count):
        at = int(rng.integers(1, len(data)))
        yield f"cut at {at} ({k})", data[:at]
        flipped = bytearray(data)
        at = int(rng.integers(len(data)))
        flipped[at] ^= 1 << int(rng.integers(8))
        yield f"flipped at {at} ({k})", bytes(flipped)
    yield "empty", b""
    yield "zeros", bytes(len(data))
    yield "text", b"This is something else.\n" * 40


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def pictures(place: Path, seed: int = 0) -> Iterator[Case]:
    """Yields PNG files; for a lossy format nobody could know what a flipped bit shows."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (24, 20, 3), np.uint8)
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "PNG")

    def same(found):
        return np.array_equal(found, pixels)

    for k, (name, data) in enumerate(damaged(rng, stored.getvalue(), 20)):
        expected = EITHER if "at" in name else REFUSED
        yield Case(
            f"png {name}", _write(place / f"{k}.png", data), media.read_picture, expected, same
        )
    for suffix in ("PNG", "TIFF", "BMP", "WEBP"):
        path = place / f"named_wrongly_{suffix}.jpg"
        options = {"lossless": True} if suffix == "WEBP" else {}
        Image.fromarray(pixels).save(path, suffix, **options)
        yield Case(f"{suffix} named jpg", path, media.read_picture, RIGHT, same)


def videos(place: Path, seed: int = 0) -> Iterator[Case]:
    """Yields H.264 files that are cut, empty or something else, and file names that FFmpeg takes for protocols."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (6, 32, 32, 3), np.uint8)
    media.write_mp4(place / "whole.mp4", frames)
    whole = (place / "whole.mp4").read_bytes()
    length = len(media.read_video(place / "whole.mp4").frames)

    def same(found):
        return len(found.frames) == length

    for k, (name, data) in enumerate(damaged(rng, whole, 20)):
        if "flipped" in name:  # H.264 has no checksum
            continue
        yield Case(f"mp4 {name}", _write(place / f"{k}.mp4", data), media.read_video, REFUSED)
    for name in (
        "12:30.mp4",
        "concat:x.mp4",
        "a%03d.mp4",
        "[1e-4].mp4",
        "a b\\c.mp4",
        "ü 日本.mp4",
    ):
        yield Case(f"name {name}", _write(place / name, whole), media.read_video, RIGHT, same)
    yield Case(
        "a playlist",
        _write(place / "list.mp4", b"#EXTM3U\nhttp://x/a.ts\n"),
        media.read_video,
        REFUSED,
    )
    (place / "folder.mp4").mkdir()
    yield Case("an empty folder", place / "folder.mp4", media.read_video, REFUSED)
    yield Case("nothing", place / "none.mp4", media.read_video, REFUSED)


def weights(place: Path, seed: int = 0) -> Iterator[Case]:
    """Yields converted folders, which carry a digest, and files to be converted."""
    rng = np.random.default_rng(seed)
    arrays = {"a": rng.normal(size=(8, 5)).astype(np.float32), "b": np.arange(4)}

    def equal(found):
        return all(np.array_equal(found[key], value) for key, value in arrays.items())

    folder.write(place / "whole", "net", {"width": 3}, arrays)
    stored = (place / "whole" / folder.PARAMS).read_bytes()
    said = (place / "whole" / folder.NETWORK).read_bytes()
    for k, (name, data) in enumerate(damaged(rng, stored, 20)):
        _write(place / f"params{k}" / folder.NETWORK, said)
        path = _write(place / f"params{k}" / folder.PARAMS, data).parent
        yield Case(f"folder {name}", path, folder.load, REFUSED)
    for name, text in (
        ("list", "[1]"),
        ("deep", "[" * 100_000),
        ("nothing", "{}"),
        ("half", said[:9]),
    ):
        path = _write(
            place / name / folder.NETWORK, text.encode() if isinstance(text, str) else text
        )
        _write(path.with_name(folder.PARAMS), stored)
        yield Case(f"network.json {name}", path.parent, folder.load, REFUSED)

    npz = io.BytesIO()
    np.savez(npz, **arrays)
    for k, (name, data) in enumerate(damaged(rng, npz.getvalue(), 20)):
        expected = EITHER if "flipped" in name else REFUSED
        path = _write(place / f"{k}.npz", data)
        yield Case(f"npz {name}", path, read.read, expected, _or_key_error(equal))
    for k, (name, data) in enumerate(damaged(rng, stored, 10)):
        if "flipped" not in name:  # a flipped bit is not noticed: published files carry no digest
            path = _write(place / f"{k}.safetensors", data)
            yield Case(f"safetensors {name}", path, read.read, REFUSED)
    for suffix in (".pt", ".bin", ".ckpt"):
        zipped = io.BytesIO()
        with zipfile.ZipFile(zipped, "w") as archive:
            archive.writestr("other", "no tensors")
        for name, data in (("zip", zipped.getvalue()), ("pickle", b"\x80\x02c"), ("none", b"")):
            yield Case(
                f"{suffix} {name}", _write(place / f"{name}{suffix}", data), read.read, REFUSED
            )
    single = io.BytesIO()
    np.save(single, arrays["a"])
    yield Case("npy named npz", _write(place / "one.npz", single.getvalue()), read.read, REFUSED)
    for name, text in (("list", "[1]"), ("deep", "[" * 100_000), ("map", '{"weight_map": [1]}')):
        path = _write(place / f"{name}.index.json", text.encode())
        yield Case(f"index {name}", path, read.read, REFUSED)


def _or_key_error(equal):
    """Accepts a missing name as right: no checksum covers names, and no network takes an array of another name."""

    def same(found):
        try:
            return equal(found)
        except KeyError:
            return True

    return same


def boxes(place: Path, seed: int = 0) -> Iterator[Case]:
    """Yields box files."""
    texts = {
        "deep.json": "[" * 100_000,
        "deep_box.json": '{"a.mp4": ' + "[" * 500 + "]" * 500 + "}",
        "large.json": '{"a.mp4": [0, 0, 1' + "0" * 400 + ", 5]}",
        "nan.json": '{"a.mp4": [NaN, 0, 5, 5]}',
        "none.json": '{"a.mp4": [null, 0, 5, 5]}',
        "text.json": '{"a.mp4": "0,0,5,5"}',
        "table.json": '{"a.mp4": {"x0": 1}}',
        "ragged.json": '{"a.mp4": [[0, 0, 5, 5], [1]]}',
        "three.json": '{"a.mp4": [0, 0, 5]}',
        "turned.json": '{"a.mp4": [5, 0, 0, 5]}',
        "list.json": "[1, 2]",
        "number.json": "3",
        "huge.csv": "file,x0,y0,x1,y1\na.mp4,0,0,5," + "5" * 200_000,
        "header.csv": "name,x0,y0,x1,y1\na.mp4,0,0,5,5",
        "short.csv": "file,x0,y0,x1,y1\na.mp4,0,0",
        "words.csv": "file,x0,y0,x1,y1\na.mp4,left,0,5,5",
        "infinite.csv": "file,x0,y0,x1,y1\na.mp4,0,0,inf,5",
    }
    for name, text in texts.items():
        yield Case(f"boxes {name}", _write(place / name, text.encode()), faces.read_boxes, REFUSED)
    yield Case(
        "boxes utf-16", _write(place / "u.json", "{}".encode("utf-16")), faces.read_boxes, REFUSED
    )
    right = {
        "bom.json": '\ufeff{"a.mp4": [0, 0, 5, 5]}',
        "a.csv": "file,x0,y0,x1,y1\r\na.mp4,0,0,5,5\r\n",
    }
    for name, text in right.items():
        path = _write(place / name, text.encode())
        yield Case(
            f"boxes {name}",
            path,
            faces.read_boxes,
            RIGHT,
            lambda f: f["a.mp4"].tolist() == [0, 0, 5, 5],
        )


def datasets(place: Path, seed: int = 0) -> Iterator[Case]:
    """Yields edited indices and damaged shards; datasets are read to their end after their digests were compared."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (5, 3, 4), np.uint8)
    with DatasetWriter(place / "whole", "things", shards=2) as writer:
        for row in rows:
            writer.write("train", {"x": row})
    index = json.loads((place / "whole/dataset.json").read_text())
    files = {path.name: path.read_bytes() for path in (place / "whole").iterdir()}

    def whole(path):
        source = RecordSource(path)
        source.verify()
        return [source[k]["x"] for k in range(len(source))]

    def case(name, changed, expected=REFUSED):
        path = place / f"{len(list(place.iterdir()))}"
        for file, data in {**files, **changed}.items():
            _write(path / file, data)
        return Case(
            f"dataset {name}", path, whole, expected, lambda found: np.array_equal(found, rows)
        )

    def places(value, path=()):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*path, key)
            if isinstance(value[key], dict | list):
                yield from places(value[key], (*path, key))

    for at in places({name: index[name] for name in ("features", "splits")}):
        for wrong in (None, -1, "x", [], {}):
            edited = json.loads(json.dumps(index))
            inner = edited
            for key in at[:-1]:
                inner = inner[key]
            inner[at[-1]] = wrong
            text = json.dumps(edited).encode()
            expected = EITHER if at[:2] == ("features", "x") or at[-1] == "digest" else REFUSED
            yield case(f"{'/'.join(map(str, at))} = {wrong!r}", {"dataset.json": text}, expected)
    for text in ("[" * 100_000, "[]", "3", "{", '{"format": 1}', '{"format": 2}'):
        yield case(f"index {text[:20]}", {"dataset.json": text.encode()})
    shard = index["splits"]["train"]["shards"][0]["file"]
    for name, data in damaged(rng, files[shard], 10):
        yield case(f"shard {name}", {shard: data})


def sounds(place: Path, seed: int = 0) -> Iterator[Case]:
    """Yields files whose sound is carried into an mp4: a click half a second after the first of 25 pictures."""
    rng = np.random.default_rng(seed)
    pictures = np.full((25, 32, 32, 3), 90, np.uint8)

    def carried(path):
        """Returns the time of the click in seconds, None without sound."""
        out = path.with_name(f"{path.name}.out.mp4")
        media.write_mp4(out, pictures, 25, audio_from=path)
        with av.open(str(out)) as file:
            if not file.streams.audio:
                return None
            heard = [(frame.time, frame) for frame in file.decode(audio=0)]
        rate, begin = heard[0][1].sample_rate, heard[0][0]
        loud = np.concatenate([np.abs(f.to_ndarray().astype(np.float32)).mean(0) for _, f in heard])
        return begin + np.argmax(loud > 0.3 * loud.max()) / rate if loud.max() else None

    def in_time(found):
        return found is not None and abs(found - 0.5) < 0.05

    def film(path, codec, rate=44100, layout="mono", at=0.0, seconds=1.0, with_video=False):
        with av.open(str(path), "w") as file:
            voice = file.add_stream(codec, rate=rate, layout=layout)
            if with_video:
                shown = file.add_stream("libx264", rate=25)
                shown.width = shown.height = 32
                for k, picture in enumerate(pictures):
                    frame = av.VideoFrame.from_ndarray(picture)
                    frame.pts, frame.time_base = k, Fraction(1, 25)
                    file.mux(shown.encode(frame))
                file.mux(shown.encode())
            channels = voice.codec_context.channels
            signal = np.zeros((channels, round(rate * seconds)), np.float32)
            signal[:, rate // 2 : rate // 2 + rate // 100] = 0.9
            sound = av.AudioFrame.from_ndarray(signal, "fltp", layout)
            sound.sample_rate, sound.pts = rate, round(at * rate)
            sound.time_base = Fraction(1, rate)
            context = voice.codec_context
            resampler = av.AudioResampler(
                context.format.name, layout, rate, frame_size=context.frame_size or 1024
            )
            for piece in [*resampler.resample(sound), *resampler.resample(None)]:
                file.mux(voice.encode(piece))
            file.mux(voice.encode())
        return path

    kinds = [
        ("a.mp4", "aac", 44100, "mono"),
        ("low.mp4", "aac", 8000, "mono"),
        ("a.mkv", "libopus", 48000, "stereo"),
        ("odd.mkv", "pcm_s16le", 11111, "mono"),
        ("many.mkv", "pcm_s16le", 48000, "5.1"),
        ("wide.mkv", "pcm_s24le", 96000, "stereo"),
        ("fine.mkv", "pcm_f32le", 48000, "mono"),
        ("a.mov", "pcm_s16be", 48000, "stereo"),
        ("a.avi", "mp2", 44100, "stereo"),
        ("a.flac", "flac", 44100, "mono"),
        ("surround.mkv", "ac3", 48000, "5.1"),
        ("law.mov", "pcm_mulaw", 8000, "mono"),
    ]
    for name, codec, rate, layout in kinds:
        path = film(place / name, codec, rate, layout, with_video=name not in ("a.flac",))
        yield Case(f"sound {codec} {rate} {layout}", path, carried, RIGHT, in_time)
    for name, at in (("late.ts", 5.0), ("late.mkv", 0.0)):
        path = film(place / name, "mp2", at=at)
        yield Case(f"sound alone in {name}", path, carried, RIGHT, in_time)
    short = film(place / "short.mkv", "pcm_s16le", seconds=0.6, with_video=True)
    yield Case("sound that ends early", short, carried, RIGHT, in_time)
    media.write_mp4(place / "silent.mp4", pictures)
    yield Case("no sound", place / "silent.mp4", carried, RIGHT, lambda found: found is None)
    with wave.open(str(place / "empty.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8000)
    yield Case("a WAV of nothing", place / "empty.wav", carried, RIGHT, lambda found: found is None)
    whole = (place / "a.flac").read_bytes()
    for k, (name, data) in enumerate(damaged(rng, whole, 6)):
        # A cut stream counts as one that ends early; the frames of FLAC have checksums.
        expected = EITHER if "at" in name else REFUSED
        path = _write(place / f"{k}.flac", data)
        yield Case(f"flac {name}", path, carried, expected, lambda f: f is None or in_time(f))
    for name, data in (("nothing", None), ("text", b"no sound " * 50)):
        path = place / f"{name}.m4a"
        yield Case(f"sound of {name}", _write(path, data) if data else path, carried, REFUSED)
    os.mkfifo(place / "pipe.wav")
    yield Case("a pipe for sound", place / "pipe.wav", carried, REFUSED)


def folders(place: Path, seed: int = 0) -> Iterator[Case]:
    """Yields folders with one good video and one other thing, which `prepare` is to read or to report by name."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(90, 100, (10, 32, 32, 3), np.uint8)
    media.write_mp4(place / "good.mp4", pictures)
    good = (place / "good.mp4").read_bytes()

    def prepared(path):
        """Returns the names of the videos that gave clips when the folder was prepared."""
        out = path.with_name(f"{path.name}.out")
        words = [
            "--size=16",
            "--seconds=0.4",
            "--test_share=0",
            "--codec=raw",
            "--jobs=1",
            "--shards=1",
        ]
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = prepare.main(["videos", f"--src={path}", f"--out={out}", *words])
        if code != EXIT_DONE:
            assert code == EXIT_REFUSED and "Traceback" not in said.getvalue()
            raise ConfigError(said.getvalue())
        source = VideoSource(out, "train")
        return sorted({source.origin(k) for k in range(len(source))})

    def case(name, what, expected, *files, named=None):
        """Returns the case of a folder with the good video and what `what` makes at the path it is given."""
        there = place / f"folder{len(list(place.iterdir()))}"
        _write(there / "good.mp4", good)
        path = there / (named or name)
        what(path)
        wanted = sorted(["good.mp4", *files])
        return Case(name, there, prepared, expected, lambda found: found == wanted, path.name)

    def holding(data):
        return lambda path: _write(path, data)

    for k, (name, data) in enumerate(damaged(rng, good, 8)):
        if "flipped" not in name:
            yield case(name, holding(data), SKIPPED, named=f"{k}.mp4")
    for k in range(4):  # for H.264 nobody can know what a flipped bit shows
        flipped = bytearray(good)
        flipped[int(rng.integers(len(good)))] ^= 1 << int(rng.integers(8))
        made = case(f"flipped bit {k}", holding(bytes(flipped)), EITHER, named=f"{k}.mp4")
        one = {"good.mp4", f"{k}.mp4"}
        yield dataclasses.replace(made, same=lambda f, one=one: "good.mp4" in f and set(f) <= one)

    def one_picture(path):
        media.write_mp4(path, pictures[:1])

    def gap(path):
        for number in (*range(12), *range(13, 20)):
            media.write_png(path / f"{number:04d}.png", pictures[0])

    def numbered(path):
        for number in range(20):
            media.write_png(path / f"{number:04d}.png", pictures[number % 10])

    def gif(path):
        media.write_gif(path, pictures)

    def sound(path):
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(bytes(8000))

    yield case("a video of one picture", one_picture, SKIPPED, named="one.mp4")
    yield case("numbered pictures with a gap", gap, SKIPPED, named="gap")
    yield case("numbered pictures", numbered, RIGHT, "numbers", named="numbers")
    yield case("a GIF", gif, RIGHT, "moving.gif", named="moving.gif")
    yield case("sound without pictures", sound, SKIPPED, named="sound.avi")
    made = case("a text", holding(b"text"), SKIPPED, named="notes.txt")
    yield dataclasses.replace(made, named="1 .txt")
    yield case("a playlist", holding(b"#EXTM3U\nhttp://x/a.ts\n"), SKIPPED, named="list.ts")
    yield case("a hidden file", holding(good), RIGHT, named=".hidden.mp4")
    yield case("other letters", holding(good), RIGHT, "ü 日本.MP4", named="ü 日本.MP4")
    yield case("brackets", holding(good), RIGHT, "lr=[1e-4]*.mp4", named="lr=[1e-4]*.mp4")
    yield case("a colon", holding(good), RIGHT, "12:30.mp4", named="12:30.mp4")
    yield case("a name that FFmpeg counts by", holding(good), RIGHT, "a%03d.mp4", named="a%03d.mp4")
    deep = "/".join("abcdefgh") + "/x.mp4"
    yield case("deep below", holding(good), RIGHT, deep, named=deep)
    made = case("a pipe", os.mkfifo, SKIPPED, named="pipe.mp4")
    yield dataclasses.replace(made, named=".mp4")
    made = case(
        "a link to nothing", lambda path: path.symlink_to("nowhere"), SKIPPED, named="a.mp4"
    )
    yield dataclasses.replace(made, named="1 .mp4")
    made = case("a link to the folder itself", lambda p: p.symlink_to("."), SKIPPED, named="loop")
    yield dataclasses.replace(made, named="links to folders")
    made = case("a folder named as a video", lambda path: path.mkdir(), RIGHT, named="empty.mp4")
    yield made
    for name, what in (("nothing", None), ("no videos", b"text")):
        there = place / f"without {name}"
        there.mkdir()
        if what:
            _write(there / "a.txt", what)
        yield Case(f"a folder of {name}", there, prepared, REFUSED)
    yield Case("no folder", place / "nowhere", prepared, REFUSED)
    yield Case("a file for a folder", place / "good.mp4", prepared, REFUSED)


def workdirs(place: Path, seed: int = 0) -> Iterator[Case]:
    """Yields copies of a finished run's workdir, each with one file changed, which are opened, trained on, or read."""
    rng = np.random.default_rng(seed)
    whole = place / "whole"
    config = tiny.get_config()
    config.update_from_flattened_dict({"steps": 2, "checkpoint.every": 1, "log_every": 1})
    assert train(config, str(whole)) == EXIT_DONE

    def bits(vars):
        flat = [np.asarray(leaf).tobytes() for leaf in tiny.jax.tree.leaves(vars)]
        return b"".join(flat)

    expected = bits(open_run(str(whole)).trained_vars())

    def used(path):
        return bits(open_run(str(path)).trained_vars())

    def trained(path):
        """Returns the parameters from which a training with the same command would go on."""
        run = Run(config, str(path))
        check_workdir(run)
        return bits(run.trained_vars())

    def case(name, file, data, reader, expect, same=lambda found: found == expected):
        path = place / f"run{len(list(place.iterdir()))}"
        shutil.copytree(whole, path)
        if data is None:
            (path / file).unlink()
        else:
            (path / file).write_bytes(data)
        return Case(f"{file} {name}", path, reader, expect, same)

    said = (whole / "config.json").read_bytes()
    for name, data in damaged(rng, said, 8):
        yield case(
            f"{name}, used", "config.json", data, used, EITHER if "flipped" in name else REFUSED
        )
    for name, data in damaged(rng, said, 4):
        expect = EITHER if "flipped" in name else REFUSED
        yield case(f"{name}, trained on", "config.json", data, trained, expect)
    fields = json.loads(said)
    for change in (
        {"optimizer": {**fields["optimizer"], "critic": {"rate": 1e-3}}},
        {"ema": {"decay": 0.5, "warmup": True}},
        {"seed": 7},
        {"system": {**fields["system"], "width": 9}},
        {"system": {**fields["system"], "nan_at": 9}},
        {"system": "tiny"},
        {"data": None},
    ):
        data = json.dumps({**fields, **change}).encode()
        (changed,) = change
        yield case(f"{changed} changed, used", "config.json", data, used, REFUSED)
        yield case(f"{changed} changed, trained on", "config.json", data, trained, REFUSED)
    for text in ("[]", "3", "null", "[" * 100_000, '"text"'):
        yield case(f"{text[:9]}, used", "config.json", text.encode(), used, REFUSED)
        yield case(f"{text[:9]}, trained on", "config.json", text.encode(), trained, REFUSED)
    yield case("gone, used", "config.json", None, used, REFUSED)
    yield case("gone, trained on", "config.json", None, trained, SKIPPED)

    def recorded(path):
        return run_record.read(path / run_record.RECORD)

    kept = (whole / run_record.RECORD).read_bytes()
    for name, data in damaged(rng, kept, 4):
        if "flipped" not in name:
            yield case(
                name, run_record.RECORD, data, recorded, SKIPPED, lambda found: found is None
            )
    for text in ("[]", "3", "null", "[" * 100_000):
        data = text.encode()
        yield case(
            text[:9], run_record.RECORD, data, recorded, SKIPPED, lambda found: found is None
        )

    def measured(path):
        return list(read_metrics(path / "metrics.jsonl"))

    lines = (whole / "metrics.jsonl").read_bytes()
    rows = list(read_metrics(whole / "metrics.jsonl"))
    for name, data in (
        ("torn", lines[:-9]),
        ("torn in a letter", lines + "ü".encode()[:1]),
        ("with a line of something else", lines + b"[1]\n{}\n"),
        ("with a deep line", lines + b"[" * 100_000 + b"\n"),
        ("with zeros", lines + bytes(500)),
    ):
        at_least = rows[:-1] if name == "torn" else rows
        yield case(name, "metrics.jsonl", data, measured, RIGHT, lambda f, w=at_least: f == w)

    checkpoints = sorted(
        path.relative_to(whole)
        for path in (whole / "checkpoints/2").rglob("*")
        if path.is_file() and path.stat().st_size
    )
    for k in range(12):
        file = checkpoints[k % len(checkpoints)]
        data = bytearray((whole / file).read_bytes())
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        # Either the checkpoint of the step before is used, or the flipped bit is never read.
        yield case(
            "flipped", str(file), bytes(data), used, EITHER, lambda f: len(f) == len(expected)
        )
    yield case("gone", "checkpoints/2/checksums.json", None, used, SKIPPED, lambda f: f != expected)


def commands(place: Path, seed: int = 0) -> Iterator[Case]:
    """Yields command lines: overrides, and names of configs and of folders."""
    file = tiny.__file__
    for name, text in {
        "syntax.py": "def get_config(:",
        "nothing.py": "",
        "none.py": "def get_config(argument=''): return None",
        "raises.py": "def get_config(argument=''): return 1 / 0",
        "imports.py": "import nowhere_to_be_found",
    }.items():
        (place / name).write_text(text)

    with Server(place) as server:
        tried = 0

        def done(words):
            nonlocal tried
            tried += 1
            code = server.run("train", [*words, f"--workdir={place / f'run{tried}'}"])
            said = server.log.read_text()
            assert code in (EXIT_DONE, EXIT_REFUSED) and "Traceback" not in said, said[-500:]
            if code:
                raise ConfigError(said)

        for named, *words in (
            ("steps", "steps=many"),
            ("steps", "steps=-1"),
            ("batch_size", "batch_size=0"),
            ("batch_size", "batch_size="),
            ("accumulate", "accumulate=0"),
            ("batch_size", "accumulate=3"),
            ("log_every", "log_every=-1"),
            ("keep", "checkpoint.keep=0"),
            ("checkpoint.every", "checkpoint.every=-1"),
            ("keep_period", "checkpoint.keep_period=-1"),
            ("seed", "seed=-1"),
            ("decay", "ema.decay=2.0"),
            ("rate", "optimizer.model.rate=-1.0"),
            ("clip", "optimizer.model.clip=-1.0"),
            ("warmup", "optimizer.model.schedule.warmup=-5"),
            ("kind", "optimizer.model.schedule.kind=sine"),
            ("kind", "optimizer.model.kind=sgd9"),
            ("nothing", "data.kind=nothing"),
            ("threads", "data.threads=-1"),
            ("prefetch", "data.prefetch=0"),
            ("clips", "data.train.clips=-3"),
            ("mesh", "mesh.data=7"),
            ("sharding", "sharding=(('[', 'fsdp'),)"),
            ("nowhere", "init_from=/nowhere"),
            ("rows", "sample.rows=-1"),
            ("nothing", "system.name=nothing"),
            ("width", "system.width=wide"),
            ("no such field", "system.depth=3"),
            ("system", "system=3"),
            ("mesh", "mesh=data"),
        ):
            flags = [f"--config.{word}" for word in words]
            arguments = [f"--config={file}", *flags]
            yield Case(" ".join(words), arguments, done, REFUSED, named=named)
        for named, words in {
            "none.py": ["--config=nowhere/none.py"],
            str(place): [f"--config={place}"],
            "syntax": [f"--config={place}/syntax.py"],
            "get_config": [f"--config={place}/nothing.py"],
            "None": [f"--config={place}/none.py"],
            "'huge'": [f"--config={file}:huge"],
            "kind": [f"--config={file}:kind=cats"],
            "--config": [],
            "mode": [f"--config={file}", "--mode=dance"],
            "stray": [f"--config={file}", "stray"],
            "'nothing'": [f"--config={file}", "--evals=nothing"],
            "workdri": [f"--config={file}", "--workdri=x"],
        }.items():
            yield Case(f"command {' '.join(words)}", words, done, REFUSED, named=named)
        (place / "a file").touch()
        short = ["--config.steps=1", "--config.sample.rows=0"]
        for name, expected in {
            "lr=[1e-4] a\\b": RIGHT,
            "{ü,日本}*?": RIGHT,
            "%03d:$HOME'": RIGHT,
            "a file": REFUSED,
            "a file/below": REFUSED,
            "x" * 300: REFUSED,
        }.items():
            words = [f"--config={file}", *short]

            def placed(words, name=name):
                where = place / name
                code = server.run("train", [*words, f"--workdir={where}"])
                said = server.log.read_text()
                assert code in (EXIT_DONE, EXIT_REFUSED) and "Traceback" not in said, said[-500:]
                if code:
                    raise ConfigError(said)
                return bool(Run(tiny.get_config(), str(where)).trained_vars())

            yield Case(f"workdir {name[:20]}", words, placed, expected, bool, named=name)


KINDS = (pictures, videos, sounds, weights, boxes, datasets, folders, workdirs, commands)
