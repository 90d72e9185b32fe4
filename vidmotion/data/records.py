"""Reads and writes datasets on disk: ArrayRecord shards of named arrays, with an index.

A dataset is a folder:

    dataset.json                         the index, written last
    train-00000-of-00004.array_record    records 0, 4, 8, ... of the split "train"
    train-00001-of-00004.array_record    records 1, 5, 9, ...

A record is a safetensors blob of named arrays. Each ArrayRecord chunk holds one record (`group_size:1`), so that every
record can be read alone. Text and bytes are stored as uint8 arrays of their (UTF-8) bytes. The index holds

- for each split, the number of records, their digest, and for each shard the number of its records, its size in bytes
  and its sha256;
- the features (name -> dtype and shape, null where records differ in size);
- the files attached beside the shards;
- the provenance, whose `command` is the command that rebuilds the dataset.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from vidmotion import files, lock
from vidmotion.data.clip_source import ClipSource

INDEX = "dataset.json"
FORMAT = 1
_PARTIAL = ".partial"


class DatasetError(ValueError):
    """Data on disk are missing, damaged or of another format; the message names the file, the reason and the remedy."""


class DatasetWriter:
    """Writes a dataset folder; use it as a context manager, which completes the dataset at the end.

        with DatasetWriter(folder, "sprites", provenance={"command": command}) as writer:
            writer.write("train", {"video": clip, "action": label})

    While the block runs, no other process can write to the folder, and all files have temporary names. Leaving the
    block renames the shards, then the index. If an exception leaves the block, the new files are removed and nothing
    else is touched. With `overwrite`, an existing dataset is replaced only at the very end.

    Args:
      directory: the dataset folder; created if need be.
      name, version: stored in the index, for people to read.
      provenance: JSON-able mapping that says where the data came from, with `command`.
      shards: the number of files per split. Record i of a split is in shard i % shards, so records keep the order of
        writing for any number of shards.
      overwrite: whether a dataset in `directory`, damaged or not, may be replaced.

    Raises:
      DatasetError: there is a dataset in `directory` already.
      ConfigError: on entering the block, another process is writing to the folder; the message names it.
    """

    def __init__(
        self,
        directory,
        name: str,
        *,
        version: str = "1",
        provenance: Mapping | None = None,
        shards: int = 4,
        overwrite: bool = False,
    ):
        self._directory, self._overwrite = Path(directory), overwrite
        self._check_free()
        self._header = {"format": FORMAT, "name": name, "version": version}
        self._provenance = dict(provenance or {})
        self._shards = shards
        self._splits: dict[str, _Split] = {}
        self._features: dict[str, dict] = {}
        self._files: dict[str, dict] = {}
        self._held = contextlib.ExitStack()

    def write(self, split: str, record: Mapping[str, np.ndarray | str | bytes]):
        """Appends a record to a split. Not thread-safe: use a writer from one thread only.

        Raises:
          ValueError: the record's names, dtypes or ranks differ from those of earlier records.
        """
        arrays = {name: _as_array(value) for name, value in record.items()}
        self._admit(arrays)
        if split not in self._splits:
            self._splits[split] = _Split(self._directory, split, self._shards)
        self._splits[split].write(safetensors.numpy.save(arrays))

    def attach(self, name: str, content: bytes):
        """Stores a file called `name` beside the shards; the index has its sha256 under `files`."""
        _aside(self._directory / name).write_bytes(content)
        self._files[name] = {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock.hold(self._directory))
            self._check_free()  # the process that held the lock before may have written a dataset
            for pattern in (f"*{_PARTIAL}", files.LEFTOVERS):  # what a killed process left behind
                for leftover in self._directory.glob(pattern):
                    leftover.unlink()
            self._held = stack.pop_all()
        return self

    def __exit__(self, kind, *_):
        with self._held:
            try:
                for split in self._splits.values():
                    split.close()
                if kind is None:
                    self._publish()
            finally:  # published files have their final names already
                for path in self._paths():
                    _aside(path).unlink(missing_ok=True)

    def _check_free(self):
        if (self._directory / INDEX).exists() and not self._overwrite:
            raise DatasetError(f"{self._directory}: holds a dataset already")

    def _paths(self) -> list[Path]:
        """The final paths of all files but the index."""
        shards = [path for split in self._splits.values() for path in split.paths]
        return shards + [self._directory / name for name in self._files]

    def _admit(self, arrays):
        found = {n: {"dtype": str(a.dtype), "shape": list(a.shape)} for n, a in arrays.items()}
        if not self._features:
            self._features = found
        for name in self._features.keys() | found.keys():
            old, new = self._features.get(name), found.get(name)
            same_kind = old and new and old["dtype"] == new["dtype"]
            if not same_kind or len(old["shape"]) != len(new["shape"]):
                raise ValueError(
                    f"record entry {name!r}: {new} in this record, but {old} in earlier ones"
                )
            old["shape"] = [a if a == b else None for a, b in zip(old["shape"], new["shape"])]

    def _publish(self):
        splits = {name: split.summary() for name, split in self._splits.items()}
        index = {
            **self._header,
            "features": self._features,
            "splits": splits,
            "files": self._files,
            "provenance": self._provenance,
        }
        target = self._directory / INDEX
        if self._overwrite:
            target.unlink(missing_ok=True)  # the index goes before the shards that it lists
            for old in self._directory.glob("*-of-?????.array_record"):
                old.unlink()
        for path in self._paths():
            _aside(path).replace(path)
        files.atomic_write(target, json.dumps(index, indent=1) + "\n")


class RecordSource(ClipSource):
    """Random access to one split of a dataset folder: `source[i]` is the i-th record written.

    Opening reads the index and compares the file sizes with it; `verify` compares checksums. Each process opens a shard
    when it first reads from it. Several threads may read at once. Elements are dicts of writable numpy arrays as
    described by `features`.

    Attributes:
      features: name -> {"dtype": str, "shape": [int or None, ...]}; None where records differ in size.
      provenance: where the data came from.
      fingerprint: hex sha256 of the records of this split; it does not depend on the number of shards.
    """

    def __init__(self, directory, split: str = "train"):
        """Opens a split.

        Raises:
          DatasetError: the folder is missing or empty, has no readable index or lacks the split; or a shard is missing
            or differs in size from the index.
        """
        self.directory, self.split = str(directory), split
        self._folder = Path(directory)
        index = read_index(self._folder)
        self._rebuild = _rebuild(self._folder, index)
        if split not in index["splits"]:
            raise DatasetError(
                f"{self._folder / INDEX}: no split {split!r}; the splits are "
                f"{', '.join(index['splits'])}. {self._rebuild}"
            )
        self.features, self.provenance = index["features"], index["provenance"]
        summary = index["splits"][split]
        self._length, self._shards = summary["records"], summary["shards"]
        self.fingerprint = summary["digest"]
        for shard in self._shards:
            path = self._folder / shard["file"]
            if not path.is_file():
                raise DatasetError(f"{path}: this shard is missing. {self._rebuild}")
            if (size := path.stat().st_size) != shard["bytes"]:
                raise DatasetError(
                    f"{path}: has {size} bytes, but the index says {shard['bytes']}: it was truncated or "
                    f"replaced. {self._rebuild}"
                )
        self._readers = [None] * len(self._shards)
        self._lock = threading.Lock()

    def __len__(self):
        return self._length

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        """Returns a record. Raises: IndexError out of range; DatasetError if the shard is damaged or foreign."""
        if not 0 <= index < self._length:
            raise IndexError(f"no record {index} in a split of {self._length} records")
        row, shard = divmod(int(index), len(self._shards))
        try:
            (blob,) = self._reader(shard).read([row])
            arrays = safetensors.numpy.load(blob)
        except DatasetError:
            raise
        except (RuntimeError, ValueError, IndexError, SafetensorError) as error:
            raise DatasetError(
                f"{self._folder / self._shards[shard]['file']}: record {row} cannot be read "
                f"({error}): the file is damaged or has another format. {self._rebuild}"
            ) from error
        if arrays.keys() != self.features.keys():
            raise DatasetError(
                f"{self._folder / self._shards[shard]['file']}: record {row} holds "
                f"{sorted(arrays)}, but the index says {sorted(self.features)}. {self._rebuild}"
            )
        return arrays

    def __reduce__(self):
        return type(self), (self.directory, self.split)

    def __repr__(self):
        return f"RecordSource({self.directory!r}, {self.split!r})"

    def verify(self):
        """Reads every shard of the split and compares its sha256 with the index.

        Raises:
          DatasetError: the content of a shard has changed; the message names the first one.
        """
        for shard in self._shards:
            path = self._folder / shard["file"]
            if files.sha256(path) != shard["sha256"]:
                raise DatasetError(
                    f"{path}: its sha256 differs from the one in the index: the file is damaged. {self._rebuild}"
                )

    def _reader(self, shard):
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:
            if self._readers[shard] is None:
                path, stated = (
                    self._folder / self._shards[shard]["file"],
                    self._shards[shard]["records"],
                )
                reader = ArrayRecordReader(
                    str(path), options="readahead_buffer_size:0,max_parallelism:0"
                )
                if (found := reader.num_records()) != stated:
                    raise DatasetError(
                        f"{path}: has {found} records, but the index says {stated}. {self._rebuild}"
                    )
                self._readers[shard] = reader
            return self._readers[shard]


def read_index(directory) -> dict:
    """Reads the index of a dataset folder, as `DatasetWriter` wrote it.

    Raises:
      DatasetError: the folder is missing, is empty, or has no index that this version can read.
    """
    directory = Path(directory)
    rebuild, path = _rebuild(directory, {}), directory / INDEX
    if not directory.is_dir():
        raise DatasetError(f"{directory}: no such dataset folder. {rebuild}")
    if not path.is_file():
        if not any(directory.iterdir()):
            what = "this folder is empty"
        elif (directory / "parts").is_dir() or any(directory.glob("*.array_record*")):
            what = f"holds no {INDEX}: its preparation was interrupted"
        else:
            raise DatasetError(
                f"{directory}: not a dataset, because it holds no {INDEX}. If it holds videos, make a dataset from "
                f"them: python -m vidmotion.data.prepare videos --src={directory} --out=DIR"
            )
        raise DatasetError(f"{directory}: {what}. {rebuild}")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise DatasetError(
                f"{path}: has format {index['format']!r}, but this version reads {FORMAT}. {rebuild}"
            )
        missing = {"features", "splits", "provenance"} - index.keys()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: not an index of this format ({error!r}). {rebuild}") from error
    if missing:
        raise DatasetError(f"{path}: the index lacks {sorted(missing)}. {rebuild}")
    if wrong := _wrong(index):
        raise DatasetError(f"{path}: {wrong}. {rebuild}")
    return index


def _wrong(index: Mapping) -> str:
    """Describes the first error in an index, compared with what `DatasetWriter` writes; "" if there is none."""
    for name in ("features", "splits", "provenance"):
        if not isinstance(index[name], dict):
            return f"{name} is not a table"
    for name, feature in index["features"].items():
        shape = feature.get("shape") if isinstance(feature, dict) else None
        sides = isinstance(shape, list) and all(n is None or _count(n) for n in shape)
        if not sides or not isinstance(feature.get("dtype"), str):
            return f"the feature {name!r} has no dtype and shape"
    for split, summary in index["splits"].items():
        shards = summary.get("shards") if isinstance(summary, dict) else None
        if not isinstance(shards, list) or not shards or not isinstance(summary.get("digest"), str):
            return f"the split {split!r} has no list of shards, or no digest"
        for shard in shards:
            texts = ("file", "sha256")
            if not (
                isinstance(shard, dict)
                and all(isinstance(shard.get(name), str) for name in texts)
                and all(_count(shard.get(name)) for name in ("records", "bytes"))
            ):
                return f"a shard of {split!r} lacks one of file, records, bytes and sha256"
            if Path(shard["file"]).name != shard["file"]:
                return f"the shard {shard['file']!r} of {split!r} is not in this folder"
        total, count = summary.get("records"), len(shards)
        if not _count(total) or [shard["records"] for shard in shards] != [
            len(range(k, total, count)) for k in range(count)
        ]:
            return f"the record counts of the shards of {split!r} do not fit its total of {total!r}"
    return ""


def _count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class _Split:
    """The shards of one split while they are being written under temporary names."""

    def __init__(self, directory, split, shards):
        from array_record.python.array_record_module import ArrayRecordWriter

        self.paths = [
            directory / f"{split}-{k:05d}-of-{shards:05d}.array_record" for k in range(shards)
        ]
        self._writers = [ArrayRecordWriter(str(_aside(p)), "group_size:1") for p in self.paths]
        self._records, self._digest = 0, hashlib.sha256()

    def write(self, blob):
        shard = self._records % len(self._writers)
        with writing(_aside(self.paths[shard])):
            self._writers[shard].write(blob)
        self._digest.update(blob)
        self._records += 1

    def close(self):
        for writer, path in zip(self._writers, self.paths, strict=True):
            with writing(_aside(path)):
                writer.close()

    def summary(self):
        count = len(self.paths)
        return {
            "records": self._records,
            "digest": self._digest.hexdigest(),
            "shards": [
                {
                    "file": path.name,
                    "records": len(range(k, self._records, count)),
                    "bytes": _aside(path).stat().st_size,
                    "sha256": files.sha256(_aside(path)),
                }
                for k, path in enumerate(self.paths)
            ],
        }


@contextlib.contextmanager
def writing(path: Path):
    """Turns errors of an ArrayRecord writer, such as on a full disk, into a DatasetError that names the file."""
    try:
        yield
    except RuntimeError as error:
        raise DatasetError(
            f"{path}: cannot be written, perhaps because the disk is full: {error}"
        ) from error


def _aside(path: Path) -> Path:
    return path.with_name(path.name + _PARTIAL)


def _as_array(value) -> np.ndarray:
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return np.frombuffer(value, np.uint8)
    return np.asarray(value, order="C")


def _rebuild(directory: Path, index: Mapping) -> str:
    general = f"python -m vidmotion.data.prepare NAME --out={directory} --force (see --help)"
    provenance = index.get("provenance")
    known = provenance.get("command") if isinstance(provenance, dict) else None
    return f"Rebuild it with: {known or general}"
