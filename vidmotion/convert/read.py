"""Reads checkpoint files into plain dicts of numpy arrays, and writes ``.safetensors`` files.

``.safetensors`` and ``.npz`` do not need torch; it is imported for ``.bin .pt .pth .ckpt`` alone,
and unpickles nothing but tensors and plain containers.
"""

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from vidmotion import files

INDEX = ".index.json"
ALIGNED = 64  # bytes; on a CPU, XLA does not copy arrays that begin at a multiple of this
DTYPES = {
    "BOOL": np.dtype(bool),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"{kind}{8 * n}": np.dtype(f"<{kind.lower()}{n}") for kind in "FIU" for n in (1, 2, 4, 8)
       if (kind, n) != ("F", 1)},
}  # fmt: skip


def read(
    path: str | os.PathLike, *, float32: bool = False, at: str = "state_dict"
) -> dict[str, np.ndarray]:
    """Reads all arrays of one checkpoint.

    Args:
      path: ``.safetensors``, ``.npz``, ``.bin``, ``.pt``, ``.pth`` or ``.ckpt`` file, or the
        ``.index.json`` of a checkpoint that is split into such files.
      float32: whether to cast floating-point arrays (half, bfloat16, double) to float32; integers stay as they are.
      at: the entry that holds the weights, in a torch file that holds other things as well.

    Returns:
      Checkpoint keys to arrays; bfloat16 is `ml_dtypes.bfloat16`.

    Raises:
      FileNotFoundError: the file, or a part of a split checkpoint, is absent; the message names all that are.
      ImportError: the file is a torch file, and torch is not installed.
      ValueError: the suffix is unknown, the file is damaged, or it holds something other than named arrays; the
        message names the file.
    """
    path = Path(path)
    arrays = _read_parts(path, at) if path.name.endswith(INDEX) else _read_one(path, at)
    if float32:
        arrays = {key: _as_float32(value) for key, value in arrays.items()}
    return arrays


def shapes_of(path: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """Reads the keys and shapes of a ``.safetensors`` file from its header alone.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: this is not a ``.safetensors`` file, or it is damaged.
    """
    header, _ = _whole(_header, _existing(Path(path)))
    return {key: tuple(entry["shape"]) for key, entry in header.items()}


def write_safetensors(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a ``.safetensors`` file that torch libraries can load; it is written whole or not at all.

    Raises:
      ValueError: `path` does not end in ``.safetensors``.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the name must end in .safetensors")
    # The library writes the memory behind an array, so views must be made contiguous first.
    plain = {key: np.asarray(value, order="C") for key, value in arrays.items()}
    with files.aside(path) as written:
        written.touch()
        usual = (
            written.stat().st_mode
        )  # of a new file here; the library lets its owner alone read what it writes
        safetensors.numpy.save_file(plain, written, metadata={"format": "pt"})
        written.chmod(usual)


def read_manifest(path: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """Reads the keys and shapes of a checkpoint from a text file, for `engine.check`.

    Each line is ``key 512x256x3x3``, or ``key scalar``; blank lines and lines that start with ``#``
    are skipped.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is malformed or repeats a key; the message names the file and the line number.
    """
    path = _existing(Path(path))
    shapes: dict[str, tuple[int, ...]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            key, shape = line.split()
            dims = () if shape == "scalar" else tuple(int(d) for d in shape.split("x"))
        except ValueError:
            raise ValueError(
                f"{path}:{number}: expected 'key 1x2x3' or 'key scalar', got {line!r}"
            ) from None
        if key in shapes:
            raise ValueError(f"{path}:{number}: {key} appears a second time")
        shapes[key] = dims
    return shapes


def _read_one(path: Path, at: str) -> dict[str, np.ndarray]:
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz}
    readers |= dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), lambda path: _read_torch(path, at))
    _existing(path)
    if path.suffix not in readers:
        raise ValueError(
            f"{path}: the name must end in .safetensors, .npz, .bin, .pt, .pth, .ckpt or {INDEX}"
        )
    return _whole(readers[path.suffix], path)


def _whole(reader: Callable[[Path], Any], path: Path) -> Any:
    """Reads a file; whatever the reader raises over a damaged file becomes a ValueError that names the file."""
    try:
        return reader(path)
    except (ImportError, MemoryError):
        raise
    except OSError as error:
        if error.filename is not None:
            raise
        raise ValueError(f"{path}: truncated, damaged or of another kind: {error}") from error
    except Exception as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: truncated, damaged or of another kind: {error!r}") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, Mapping):
        raise ValueError(
            f"{path}: holds a single array without a name; expected an archive of named arrays"
        )
    with file:
        return dict(file)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Reads the header of a safetensors file; returns its entry for each array, and the byte where the data begin."""
    try:
        with safetensors.safe_open(path, "numpy"):  # checks that header and data agree
            pass
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or damaged: {error}") from error
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    header, data = _header(path)
    if strange := {entry["dtype"] for entry in header.values()} - DTYPES.keys():
        raise ValueError(f"{path}: holds arrays of unsupported types: {', '.join(sorted(strange))}")
    arrays = {}
    with open(path, "rb") as file:
        for key, entry in header.items():
            begin, end = entry["data_offsets"]
            room = np.empty(end - begin + ALIGNED, np.uint8)
            first = -room.ctypes.data % ALIGNED
            content = room[first : first + end - begin]
            file.seek(data + begin)
            if file.readinto(content) != end - begin:
                raise ValueError(f"{path}: ends before the data of {key}")
            arrays[key] = content.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays


def _read_parts(index: Path, at: str) -> dict[str, np.ndarray]:
    """Reads a split checkpoint, whose index says in ``weight_map`` which file beside it holds which key."""
    content = _whole(lambda path: json.loads(path.read_text(encoding="utf-8")), _existing(index))
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise ValueError(f"{index}: has no weight_map; this is not the index of a split checkpoint")
    parts = [index.with_name(name) for name in dict.fromkeys(files.values())]
    absent = [str(part) for part in parts if not part.is_file()]
    if absent:
        raise FileNotFoundError(f"{index}: parts of the checkpoint are absent: {', '.join(absent)}")
    arrays = {key: value for part in parts for key, value in _read_one(part, at).items()}
    if arrays.keys() != files.keys():
        raise ValueError(
            f"{index}: the keys of the index and of its parts differ: {sorted(arrays.keys() ^ files.keys())}"
        )
    return arrays


def _read_torch(path: Path, at: str) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path}: this format needs torch: install it, or convert the file to .safetensors"
        ) from error
    if zipfile.is_zipfile(path):  # torch itself compares no checksums
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{path}: damaged: the checksum of {damaged} differs")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: holds more than weights, so it was not unpickled; save its weights again as .safetensors"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get(at), Mapping):
        content = content[at]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a dict of tensors, got {type(content).__name__}")
    others = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(
            f"{path}: has entries that are not tensors: {', '.join(others)}; "
            "name the one that holds the weights with at=..."
        )
    return {key: _from_torch(value) for key, value in content.items()}


def _from_torch(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # unknown to numpy, so its bits are passed on as integers
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _as_float32(x: np.ndarray) -> np.ndarray:
    floating = np.issubdtype(x.dtype, np.floating) or x.dtype == ml_dtypes.bfloat16
    return x.astype(np.float32, copy=False) if floating else x


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path
