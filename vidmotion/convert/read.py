"""Checkpoint files as plain dicts of numpy arrays.

``.safetensors`` and ``.npz`` need numpy only; torch is imported for ``.bin .pt .pth .ckpt`` alone,
and unpickles nothing but tensors and plain containers.
"""

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

INDEX = ".index.json"
ALIGNED = 64  # bytes: arrays in memory that begins at a multiple are taken over by XLA on a CPU, not copied
DTYPES = {
    "BOOL": np.dtype(bool),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"{kind}{8 * n}": np.dtype(f"<{kind.lower()}{n}") for kind in "FIU" for n in (1, 2, 4, 8)
       if (kind, n) != ("F", 1)},
}  # fmt: skip


def read(
    path: str | os.PathLike, *, float32: bool = False, at: str = "state_dict"
) -> dict[str, np.ndarray]:
    """All arrays of one checkpoint.

    Args:
      path: ``.safetensors``, ``.npz``, ``.bin``, ``.pt``, ``.pth`` or ``.ckpt`` file, or the
        ``.index.json`` of a checkpoint that is split into such files.
      float32: cast floating-point arrays (half, bfloat16, double) to float32; integers stay.
      at: entry of a torch file that holds the weights, where they lie among other things.

    Returns:
      Checkpoint keys to arrays; bfloat16 is `ml_dtypes.bfloat16`.

    Raises:
      FileNotFoundError: the file, or any part of a split checkpoint, is absent; all are named.
      ImportError: a torch file without torch.
      ValueError: unknown suffix, or content other than named arrays.
    """
    path = Path(path)
    arrays = _read_parts(path, at) if path.name.endswith(INDEX) else _read_one(path, at)
    if float32:
        arrays = {key: _as_float32(value) for key, value in arrays.items()}
    return arrays


def shapes_of(path: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a ``.safetensors`` file by its header alone.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not such a file, or damaged.
    """
    header, _ = _header(_existing(Path(path)))
    return {key: tuple(entry["shape"]) for key, entry in header.items()}


def write_safetensors(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a ``.safetensors`` file that torch libraries load, whole or not at all.

    Raises:
      ValueError: `path` does not end in ``.safetensors``.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the name must end in .safetensors")
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    # The library writes memory as it lies, so views must be made contiguous first.
    plain = {key: np.asarray(value, order="C") for key, value in arrays.items()}
    safetensors.numpy.save_file(plain, aside, metadata={"format": "pt"})
    aside.replace(path)


def read_manifest(path: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a checkpoint from a text file, for `engine.check`.

    Each line is ``key 512x256x3x3``, or ``key scalar``; blank lines and lines that start with ``#``
    are skipped.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line is malformed or repeats a key; file and line number are named.
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
                f"{path}:{number}: want 'key 1x2x3' or 'key scalar', got {line!r}"
            ) from None
        if key in shapes:
            raise ValueError(f"{path}:{number}: {key} a second time")
        shapes[key] = dims
    return shapes


def _read_one(path: Path, at: str) -> dict[str, np.ndarray]:
    _existing(path)
    match path.suffix:
        case ".safetensors":
            return _read_safetensors(path)
        case ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        case ".bin" | ".pt" | ".pth" | ".ckpt":
            return _read_torch(path, at)
    raise ValueError(f"{path}: want .safetensors, .npz, .bin, .pt, .pth, .ckpt or {INDEX}")


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of each array, and where its data begin."""
    try:
        with safetensors.safe_open(path, "numpy"):  # which looks whether all fits together
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
        raise ValueError(f"{path}: arrays of {', '.join(sorted(strange))}")
    arrays = {}
    with open(path, "rb") as file:
        for key, entry in header.items():
            begin, end = entry["data_offsets"]
            room = np.empty(end - begin + ALIGNED, np.uint8)
            first = -room.ctypes.data % ALIGNED
            content = room[first : first + end - begin]
            file.seek(data + begin)
            file.readinto(content)
            arrays[key] = content.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays


def _read_parts(index: Path, at: str) -> dict[str, np.ndarray]:
    """A split checkpoint: the index's ``weight_map`` says which file beside it holds which key."""
    files = json.loads(_existing(index).read_text(encoding="utf-8")).get("weight_map")
    if files is None:
        raise ValueError(f"{index}: no weight_map; this is not the index of a split checkpoint")
    parts = [index.with_name(name) for name in dict.fromkeys(files.values())]
    absent = [str(part) for part in parts if not part.is_file()]
    if absent:
        raise FileNotFoundError(f"{index}: parts of the checkpoint are absent: {', '.join(absent)}")
    arrays = {key: value for part in parts for key, value in _read_one(part, at).items()}
    if arrays.keys() != files.keys():
        raise ValueError(
            f"{index}: index and parts differ in {sorted(arrays.keys() ^ files.keys())}"
        )
    return arrays


def _read_torch(path: Path, at: str) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path}: this format needs torch: install it, or convert to .safetensors"
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: holds more than weights, not unpickled; re-save its weights as .safetensors"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get(at), Mapping):
        content = content[at]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: want a dict of tensors, got {type(content).__name__}")
    others = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(
            f"{path}: entries that are not tensors: {', '.join(others)}; "
            "name the one that holds the weights with at=..."
        )
    return {key: _from_torch(value) for key, value in content.items()}


def _from_torch(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # unknown to numpy: hand the bits over
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _as_float32(x: np.ndarray) -> np.ndarray:
    floating = np.issubdtype(x.dtype, np.floating) or x.dtype == ml_dtypes.bfloat16
    return x.astype(np.float32, copy=False) if floating else x


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path
