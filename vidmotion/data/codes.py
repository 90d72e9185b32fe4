"""Motion codes and content of clips, as a trained BCD read them once: what its generator learns from.

Written by ``python -m vidmotion.encode``. A record holds ``content`` float32 (K, C_c), ``ids`` int32 (T, N), and
``ids_fast`` int32 (ceil(T / 2), N), read from the clip with every second frame left out. Beside the shards lies
``quantizer.safetensors``, the frozen codebooks that turn ids into motion.

Supplement A.2: videos are decimated 2x in time with probability 0.5, so that both subtle and large motion occur.
"""

import dataclasses
import hashlib
from pathlib import Path

import grain
import numpy as np
import safetensors.numpy

from vidmotion.data.clip_source import ClipSource
from vidmotion.data.records import INDEX, DatasetError, RecordSource
from vidmotion.errors import ConfigError

QUANTIZER = "quantizer.safetensors"


@dataclasses.dataclass(frozen=True)
class PickRate(grain.transforms.RandomMap):
    """A stored record -> ``content`` and `frames` consecutive codes, at full or half rate.

    Attributes:
      frames: codes per element.
      fast: probability of the half rate.
    """

    frames: int
    fast: float

    def random_map(self, element, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw the rate and the start."""
        ids = element["ids_fast" if rng.random() < self.fast else "ids"]
        start = int(rng.integers(len(ids) - self.frames + 1))
        return {"content": element["content"], "ids": ids[start : start + self.frames]}


class CodesSource(ClipSource):
    """Random access to the codes of one split; elements as `PickRate` makes them.

    In the ``train`` split rate and start are drawn by the loader (`transforms`); in others an element is the
    first `frames` codes at full rate.

    Attributes:
      transforms: for the loader.
      fingerprint: hex text naming the codes and how they are picked.
    """

    def __init__(self, directory, split: str = "train", frames: int = 25, fast: float = 0.5):
        """Open a split of a folder that ``vidmotion.encode`` wrote.

        Raises:
          DatasetError: as `RecordSource`, or the folder does not hold codes.
          ConfigError: clips with fewer codes than `frames` at half rate.
        """
        if not (Path(directory) / INDEX).is_file():
            raise DatasetError(
                f"{directory}: no motion codes here; write them with python -m vidmotion.encode "
                f"--workdir=RUN --out={directory}, RUN being a trained BCD"
            )
        self._records = RecordSource(directory, split)
        shapes = self._records.features
        if not {"content", "ids", "ids_fast"} <= shapes.keys():
            raise DatasetError(
                f"{directory}: holds {', '.join(shapes)}: not codes, as written by "
                "python -m vidmotion.encode"
            )
        shortest = len(self._records[0]["ids_fast"])
        if not 1 <= frames <= shortest:
            raise ConfigError(
                f"config.data: frames={frames}, but clips in {directory} have {shortest} codes at half "
                "rate; encode longer clips or ask for fewer frames"
            )
        pick = PickRate(frames, fast)
        self._frames = frames
        self.transforms = (pick,) if split == "train" else ()
        # The codebooks count too: the same ids mean another motion with others.
        books = hashlib.sha256(_quantizer_file(directory)).hexdigest()
        self.fingerprint = hashlib.sha256(
            f"{self._records.fingerprint}/{books}/{pick}/{split}".encode()
        ).hexdigest()
        self._arguments = (directory, split, frames, fast)

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        record = self._records[index]
        if self.transforms:
            return record
        return {"content": record["content"], "ids": record["ids"][: self._frames]}

    def __reduce__(self):
        return type(self), self._arguments

    def __repr__(self):
        return f"CodesSource{self._arguments}"


def read_quantizer(directory) -> dict[str, np.ndarray]:
    """Frozen codebooks beside a dataset of codes: ``codebooks`` (N, J, D) and, if used, ``out/kernel``.

    Raises:
      DatasetError: no such file, or it cannot be read.
    """
    try:
        return safetensors.numpy.load(_quantizer_file(directory))
    except safetensors.SafetensorError as error:
        raise DatasetError(
            f"{Path(directory) / QUANTIZER}: {error}. Write the codes again with python -m "
            "vidmotion.encode"
        ) from error


def _quantizer_file(directory) -> bytes:
    path = Path(directory) / QUANTIZER
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{path}: {error.strerror}. Write the codes again with python -m vidmotion.encode"
        ) from error
