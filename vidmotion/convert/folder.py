"""Reads and writes folders of converted weights, each of which says which network it holds and of what size.

``network.json`` has the name of the network, the arguments of its class and the sha256 of
``params.safetensors``. The latter has the parameters, keyed by their paths in the tree
(``encoder/patch_embed/kernel``).
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidmotion import files, paths
from vidmotion.convert.read import read, shapes_of, write_safetensors
from vidmotion.errors import ConfigError

NETWORK, PARAMS = "network.json", "params.safetensors"
DIGEST = "sha256"  # key in network.json of the digest of params.safetensors; folders of earlier versions have none


def write(
    folder: str | os.PathLike, network: str, arguments: Mapping[str, Any], params: Mapping[str, Any]
) -> None:
    """Writes a folder that `load` reads, and creates it if it does not exist.

    Args:
      folder: the folder to write; what an earlier call wrote in it is replaced.
      network: a network's name in `python -m vidmotion.convert`.
      arguments: the arguments of the network's class, in a form that JSON can hold.
      params: nested dict of arrays.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    params_file, written = folder / PARAMS, folder / f"{os.getpid()}.tmp.{PARAMS}"
    try:
        write_safetensors(written, paths.flatten(params))
        content = {"network": network, "arguments": dict(arguments), DIGEST: files.sha256(written)}
        # Removed first, so that the weights of one network never stand under the name of another.
        params_file.unlink(missing_ok=True)
        files.atomic_write(folder / NETWORK, json.dumps(content, indent=2) + "\n")
        written.replace(params_file)
    finally:
        written.unlink(missing_ok=True)


def join(folder: str | os.PathLike, network: str, parts: Sequence[str]) -> None:
    """Joins the folders `parts` inside `folder`, each written by `write`, into one network.

    `load` then returns arguments and parameters by part.
    """
    content = {"network": network, "parts": list(parts)}
    files.atomic_write(Path(folder) / NETWORK, json.dumps(content, indent=2) + "\n")


def load(
    folder: str | os.PathLike, only: Sequence[str] | None = None
) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """Loads the name, the arguments and the parameters of the network in a folder that `write` or `join` wrote.

    Args:
      folder: the folder to read.
      only: the parts to load, if `join` wrote the folder; None loads all.

    Raises:
      FileNotFoundError: one of the two files is absent.
      ValueError: ``network.json`` is not what `write` writes, or the parameters are not those that were written.
    """
    return _load(Path(folder), _checked, only)


def load_wanted(
    field: str, folder: str, network: str, hint: str = ""
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Loads the arguments and the parameters of `network` from the folder that a config names.

    Args:
      field: the field of the config, with its value, for messages.
      folder: the folder to read.
      network: the name, in `vidmotion.convert`, of the network that the folder has to hold.
      hint: what the user can do about an error, for the end of every message.

    Raises:
      ConfigError: the folder does not exist, is damaged, or holds another network.
    """
    end = f"; {hint}" if hint else ""
    try:
        found, arguments, params = load(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{field}: {error}{end}") from error
    if found != network:
        raise ConfigError(f"{field}: holds {found}, expected {network}{end}")
    return arguments, params


def describe(folder: str | os.PathLike) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """Returns what `load` returns, but with arrays that have only the shapes of the parameters and take no memory.

    Of the weights, only the headers of the files are read.
    """
    return _load(Path(folder), _empty, None)


def _checked(path: Path, stated: str | None) -> dict[str, np.ndarray]:
    if stated is not None and files.sha256(path) != stated:
        raise ValueError(
            f"{path}: its sha256 differs from the one in {NETWORK}: the file was damaged or replaced; convert it again"
        )
    return read(path)


def _empty(path: Path, stated: str | None) -> dict[str, np.ndarray]:
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes_of(path).items()}


def _load(folder: Path, read_file: Callable[[Path, str | None], Any], only: Sequence[str] | None):
    if parts := _parts(folder):
        network, names = parts
        wanted = [name for name in names if only is None or name in only]
        loaded = {name: _load(folder / name, read_file, None) for name in wanted}
        arguments = {name: found[1] for name, found in loaded.items()}
        return network, arguments, {name: found[2] for name, found in loaded.items()}
    for name in (NETWORK, PARAMS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name}: no such file; {folder} is not a folder that "
                "`python -m vidmotion.convert` has completed"
            )
    file = folder / NETWORK
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        network, arguments = content["network"], dict(content["arguments"])
        stated = content.get(DIGEST)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: does not name a network and its arguments: {error!r}") from error
    return network, arguments, paths.unflatten(read_file(folder / PARAMS, stated))


def _parts(folder: Path) -> tuple[str, list[str]] | None:
    """Returns the network and the parts of a folder that `join` wrote; None for any other folder."""
    try:
        content = json.loads((folder / NETWORK).read_text(encoding="utf-8"))
        return content["network"], list(content["parts"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
