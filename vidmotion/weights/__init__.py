"""Weights that this package trained itself: those that it ships, and those in a run's workdir.

A shipped network is two files of this folder: ``NAME.safetensors``, its parameters as float16 by their paths in the
tree (``model/encoder/conv_in/kernel``), with its running statistics under ``mutable/``, and ``NAME.json``, the card:
which config trained it, at which commit, for how long, what it reached, and the sha256 of the parameters' file.
Wherever a field of a config takes a run's workdir as weights, it takes such a name as well. ``python -m
vidmotion.weights`` lists them, and makes them of runs.

What did not learn in a run that began from nothing is not in its file: the seed of the card's config gives it again
(`open_run`).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from vidmotion import checkpoint, files, paths
from vidmotion.convert.read import read as read_file
from vidmotion.convert.read import write_safetensors
from vidmotion.errors import ConfigError

FOLDER = Path(__file__).parent
MUTABLE = "mutable"
PyTree = Any


def names() -> tuple[str, ...]:
    """Names of the shipped networks."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def card(name: str) -> dict[str, Any]:
    """What is known of a shipped network: the record of its run, and ``sha256`` of its file.

    Raises:
      ConfigError: no network of that name is shipped.
    """
    if name not in names():
        raise ConfigError(f"no weights named {name!r} are shipped; there are {', '.join(names())}")
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def of_system(system: str) -> str:
    """The shipped network of a system, "" where there is none."""
    named = (name for name in names() if card(name)["config"]["system"]["name"] == system)
    return next(named, "")


def read(where: str, field: str) -> dict[str, PyTree]:
    """Parameters of a run, averaged where it averages, or of a shipped network.

    Args:
      where: a run's workdir, or a name of `names`.
      field: the field of the config that names it, for messages.

    Returns:
      ``{player: nested dict of float32 arrays}``.

    Raises:
      ConfigError: neither is there, the file is damaged, or a number in it is not finite.
    """
    if where in names():
        return read_shipped(where, field)[0]
    try:
        params = checkpoint.read_params(where)
    except checkpoint.CheckpointError as error:
        raise ConfigError(
            f"{field}={where!r}: neither a run's workdir ({error}) nor one of the shipped networks "
            f"({', '.join(names()) or 'none'})"
        ) from error
    return _finite(params, where, field)


def read_shipped(name: str, field: str) -> tuple[dict[str, PyTree], PyTree]:
    """Parameters and running statistics of a shipped network; the latter are {} if it has none.

    Args:
      name: one of `names`.
      field: as for `read`.

    Raises:
      ConfigError: the file is damaged, or a number in it is not finite.
    """
    file = FOLDER / f"{name}.safetensors"
    if files.sha256(file) != card(name)["sha256"]:
        raise ConfigError(
            f"{file} is damaged: its sha256 is not that of its card; install vidmotion again"
        )
    params = _finite(paths.unflatten(read_file(file, float32=True)), name, field)
    mutable = params.pop(MUTABLE, {})
    return params, mutable


def _finite(tree: dict[str, PyTree], where: str, field: str) -> dict[str, PyTree]:
    for path, leaf in paths.flatten(tree).items():
        if not np.isfinite(leaf).all():
            raise ConfigError(f"{field}={where!r}: {path} holds numbers that are not finite")
    return tree


def ship(workdir: str, name: str, folder: Path = FOLDER) -> Path:
    """Writes the player ``model`` of a finished run as a shipped network; a discriminator is of no further use.

    Args:
      workdir: the folder of the run, which has a ``record.json``.
      name: the name of the network.
      folder: where to write.

    Returns:
      The parameters' file.

    Raises:
      ConfigError: the run has no record, or has numbers that float16 cannot hold.
    """
    record = Path(workdir) / "record.json"
    if not record.exists():
        raise ConfigError(f"{workdir} holds no finished run: there is no {record}")
    content = json.loads(record.read_text())
    config, model = content["config"], read(workdir, "workdir")["model"]
    if not config["init_from"] and (rules := config["optimizer"]["model"].get("trainable")):
        learnt = paths.flatten(paths.assign(rules, model, "optimizer.trainable"))
        leaves = {path: leaf for path, leaf in paths.flatten(model).items() if learnt[path]}
        model = paths.unflatten(leaves)
    leaves = paths.flatten({"model": model, MUTABLE: checkpoint.read_mutable(workdir)})
    small = {path: np.asarray(leaf, np.float16) for path, leaf in leaves.items()}
    if too_large := [path for path, leaf in small.items() if not np.isfinite(leaf).all()]:
        raise ConfigError(f"{workdir}: float16 cannot hold {', '.join(too_large)}")
    file = folder / f"{name}.safetensors"
    write_safetensors(file, small)
    content |= {"sha256": files.sha256(file), "licence": "Apache-2.0"}
    files.atomic_write(
        folder / f"{name}.json", json.dumps(content, indent=1, sort_keys=True) + "\n"
    )
    return file
