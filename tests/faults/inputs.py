"""Broken and odd inputs, made from a seed, each with what is to become of it.

A generator yields `Case`s. What is expected is one of

    refused   one error that names the file and can be shown to a person
    right     read, with the values that were written
    either    refused or read right: the fault may lie where it does no harm, but never other values
"""

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vidmotion import media
from vidmotion.convert import folder, read
from vidmotion.data import faces
from vidmotion.data.records import DatasetWriter, RecordSource

REFUSED, RIGHT, EITHER = "refused", "right", "either"


@dataclasses.dataclass(frozen=True)
class Case:
    """An input.

    Attributes:
      name: of the fault.
      path: of the file or folder to be read.
      reader: of the project.
      expected: of the three at the top.
      same: whether what was read is what was written; unused where reading is refused.
    """

    name: str
    path: Path
    reader: Callable
    expected: str
    same: Callable = lambda _: True


def damaged(rng: np.random.Generator, data: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` each of cut files and of files with one flipped bit, and an empty, a zeroed and a text one."""
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
    """PNG files; what a flipped bit of a lossy format shows cannot be known."""
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
    """H.264 files that are cut, empty or something else, and names that FFmpeg takes for protocols."""
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
    """Converted folders, which carry a digest, and the files that are converted from."""
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
        if "flipped" not in name:  # published files carry no digest
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
    """Names are under no checksum of their own: another name is another array, which no network takes."""

    def same(found):
        try:
            return equal(found)
        except KeyError:
            return True

    return same


def boxes(place: Path, seed: int = 0) -> Iterator[Case]:
    """Box files."""
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
    """Edits of an index, and damaged shards, read to their end after their digests were compared."""
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


KINDS = (pictures, videos, weights, boxes, datasets)
