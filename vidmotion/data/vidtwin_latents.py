"""Structure and dynamics of clips with their class, as a trained VidTwin read them once: what its
generator learns from.

Written by ``python -m vidmotion.encode``. A record holds ``structure`` float32 (n_q, h_S, w_S, d_S) and
``dynamics`` float32 (f, w_D + h_D, d_D), the means of their Gaussians, and ``label`` int32 (), the index of
the clip's class; the names of the classes are in the provenance. Beside the shards lies
``statistics.safetensors``: mean and standard deviation of each channel of both over the train split.
"""

import hashlib
from pathlib import Path

import numpy as np
import safetensors.numpy

from vidmotion.data.clip_source import ClipSource
from vidmotion.data.records import INDEX, DatasetError, RecordSource, read_index

STATISTICS = "statistics.safetensors"
LATENTS = ("structure", "dynamics")
LEAST_STD = 1e-6  # a channel that never varies is left as it is


class Moments:
    """Mean and standard deviation of each channel (last axis) of arrays that come one by one."""

    def __init__(self):
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Take up an array (..., C)."""
        flat = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
        self._count += len(flat)
        self._sum = self._sum + flat.sum(axis=0)
        self._squares = self._squares + np.square(flat).sum(axis=0)

    def result(self) -> dict[str, np.ndarray]:
        """``mean`` and ``std``, float32 (C,)."""
        mean = self._sum / self._count
        variance = np.maximum(self._squares / self._count - mean**2, LEAST_STD**2)
        return {"mean": mean.astype(np.float32), "std": np.sqrt(variance).astype(np.float32)}


class VidTwinLatentsSource(ClipSource):
    """Random access to the records of one split.

    Attributes:
      classes: their names; the label of a record is an index into them.
      fingerprint: hex text naming the records and the statistics.
    """

    def __init__(self, directory, split: str = "train"):
        """Open a split of a folder that ``vidmotion.encode`` wrote.

        Raises:
          DatasetError: as `RecordSource`, or the folder does not hold such latents.
        """
        if not (Path(directory) / INDEX).is_file():
            raise DatasetError(
                f"{directory}: no latents here; write them with python -m vidmotion.encode "
                f"--workdir=RUN --out={directory}, RUN being a trained VidTwin"
            )
        self._records = RecordSource(directory, split)
        shapes = self._records.features
        if not {*LATENTS, "label"} <= shapes.keys():
            raise DatasetError(
                f"{directory}: holds {', '.join(shapes)}: not latents with a class, as written by "
                "python -m vidmotion.encode for a VidTwin"
            )
        self.classes = tuple(self._records.provenance["classes"])
        self.fingerprint = hashlib.sha256(
            self._records.fingerprint.encode() + _statistics_file(directory)
        ).hexdigest()
        self._arguments = (directory, split)

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        return self._records[index]

    def __reduce__(self):
        return type(self), self._arguments

    def __repr__(self):
        return f"VidTwinLatentsSource{self._arguments}"


def read_statistics(directory) -> dict[str, np.ndarray]:
    """``structure/mean``, ``structure/std``, ``dynamics/mean``, ``dynamics/std``, each float32 (C,).

    Raises:
      DatasetError: no such file, or it cannot be read.
    """
    try:
        return safetensors.numpy.load(_statistics_file(directory))
    except safetensors.SafetensorError as error:
        raise DatasetError(
            f"{Path(directory) / STATISTICS}: {error}. Write the latents again with python -m "
            "vidmotion.encode"
        ) from error


def read_provenance(directory) -> dict:
    """What ``vidmotion.encode`` noted: ``classes``, ``weights`` (the fingerprint of the VidTwin's
    parameters), ``workdir``, ``system``, ``data``.

    Raises:
      DatasetError: as `records.read_index`.
    """
    return read_index(directory)["provenance"]


def _statistics_file(directory) -> bytes:
    path = Path(directory) / STATISTICS
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{path}: {error.strerror}. Write the latents again with python -m vidmotion.encode"
        ) from error
