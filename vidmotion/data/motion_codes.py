"""Motion codes of clips, as a trained X-NeMo read them once, and their tokens: what its generators learn from.

Both are written by ``python -m vidmotion.encode``. Of an X-NeMo a record holds ``motion`` float32 (T, D), f_mot of
each frame before the face's place is known, and ``condition`` int32 (), an index into the provenance's
``conditions``, or -1 where the clips are of no emotion; ``statistics.safetensors`` beside the shards has the mean and
the standard deviation of each channel over the train split. Of a motion tokenizer a record holds ``ids`` int32
(T / 4,) in the place of ``motion``; ``tokenizer.safetensors`` is the tokenizer. The provenance's ``encoder`` is the
fingerprint of the motion encoder whose codes these are: of another one the same numbers mean other motion.

Emotions: those of MEAD with their level (neutral has one). Heads have none, and what stands for them is the mean
smile of a clip (`EMOTIONS`).
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import grain
import numpy as np
import safetensors.numpy

from vidmotion.data import heads
from vidmotion.data.clip_source import Classes, ClipSource
from vidmotion.data.records import INDEX, DatasetError, RecordSource, read_index
from vidmotion.data.vidtwin_latents import STATISTICS
from vidmotion.errors import ConfigError

TOKENIZER = "tokenizer.safetensors"
EMOTIONS = ("sad", "neutral", "happy")  # of Heads
SMILE = 0.15  # a mean smile beyond it is no longer neutral: about a third of the clips on each side
LEVELS = (1, 2, 3)  # of MEAD's emotions


def conditions(source) -> tuple[str, ...]:
    """Names of the emotions that a source's clips may have; none where it does not say.

    Args:
      source: of clips: `heads.HeadsSource`, or `videos.VideoSource` of MEAD.
    """
    if isinstance(source, heads.HeadsSource):
        return EMOTIONS
    if not isinstance(source, Classes) or "neutral" not in source.classes:
        return ()
    return tuple(
        f"{name}/{level}"
        for name in source.classes
        for level in LEVELS
        if name != "neutral" or level == 1
    )


def condition_of(source, element: Mapping) -> int:
    """Index into `conditions` of an element of a source; -1 where there are none."""
    names = conditions(source)
    if names == EMOTIONS:
        smile = float(np.mean(element["motion"][:, heads.MOTION_COLUMN["smile"]]))
        return 1 + (smile > SMILE) - (smile < -SMILE)
    if not names or "level" not in element:
        return -1
    return names.index(f"{source.classes[source.class_of(element)]}/{int(element['level'])}")


@dataclasses.dataclass(frozen=True)
class Cut(grain.transforms.RandomMap):
    """A stored record -> `length` successive codes or tokens of it, from anywhere.

    Attributes:
      name: of the array.
      length: of what is cut out.
    """

    name: str
    length: int

    def random_map(self, element, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw the start."""
        start = int(rng.integers(len(element[self.name]) - self.length + 1))
        return {**element, self.name: element[self.name][start : start + self.length]}


class _Sequences(ClipSource):
    """Random access to the records of one split.

    In the ``train`` split the loader draws where a sequence begins (`transforms`); in others an element is the
    beginning of its record.

    Attributes:
      name: of the array that is cut.
      written: file that belongs to the records.
      of: whose workdir they are made from.
      transforms: for the loader.
      fingerprint: hex text naming the records, what belongs to them, and how they are cut.
    """

    name: str
    written: str
    of: str

    def __init__(self, directory, split: str = "train", length: int = 0):
        """Open a split of a folder that ``vidmotion.encode`` wrote.

        Args:
          directory: the folder.
          split: ``train`` or ``eval``.
          length: of the sequences; 0: all there is of each clip.

        Raises:
          DatasetError: as `RecordSource`, or the folder holds something else.
          ConfigError: clips shorter than `length`.
        """
        provenance = read_provenance(directory, self.of)
        self._records = RecordSource(directory, split)
        held = self._records.features
        if not {self.name, "condition"} <= held.keys():
            raise DatasetError(
                f"{directory}: holds {', '.join(held)}: not what python -m vidmotion.encode writes of "
                f"a trained {self.of}"
            )
        have = len(self._records[0][self.name])
        if not 0 <= length <= have:
            raise ConfigError(
                f"config.data: sequences of {length}, but clips in {directory} have {have}; encode longer "
                "clips (--frames) or ask for fewer"
            )
        self._length = length
        self.transforms = (Cut(self.name, length),) if split == "train" and length else ()
        self.conditions = tuple(provenance["conditions"])
        beside = hashlib.sha256(_file(directory, self.written)).hexdigest()
        self.fingerprint = hashlib.sha256(
            f"{self._records.fingerprint}/{beside}/{length}/{split}".encode()
        ).hexdigest()
        self._arguments = (directory, split, length)

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        record = self._records[index]
        if self.transforms or not self._length:
            return record
        return {**record, self.name: record[self.name][: self._length]}

    def __reduce__(self):
        return type(self), self._arguments

    def __repr__(self):
        return f"{type(self).__name__}{self._arguments}"


class MotionCodesSource(_Sequences):
    """Codes of an X-NeMo, elements ``motion`` float32 (length, D) and ``condition``; otherwise as `_Sequences`."""

    name, written, of = "motion", STATISTICS, "X-NeMo"


class MotionTokensSource(_Sequences):
    """Tokens, elements ``ids`` int32 (length,) and ``condition``; otherwise as `_Sequences`."""

    name, written, of = "ids", TOKENIZER, "motion tokenizer"


def read_provenance(directory, of: str) -> dict:
    """What ``vidmotion.encode`` noted of a trained X-NeMo or motion tokenizer (`of`): ``encoder``, ``conditions``,
    ``fps``, and of a tokenizer its ``network``.

    Raises:
      DatasetError: nothing there, or it is no such dataset.
    """
    if not (Path(directory) / INDEX).is_file():
        raise DatasetError(
            f"{directory}: nothing of a trained {of} here; write it with python -m vidmotion.encode "
            f"--workdir=RUN --out={directory}, RUN being one"
        )
    provenance = read_index(directory)["provenance"]
    if not {"encoder", "conditions", "fps"} <= provenance.keys():
        raise DatasetError(
            f"{directory}: not what python -m vidmotion.encode writes of a trained {of}"
        )
    return provenance


def read_statistics(directory) -> dict[str, np.ndarray]:
    """``mean`` and ``std`` of the codes, float32 (D,).

    Raises:
      DatasetError: no such file, or it cannot be read.
    """
    return _arrays(directory, STATISTICS)


def read_tokenizer(directory) -> dict[str, np.ndarray]:
    """Parameters, codebook and statistics of the tokenizer whose tokens these are, by path.

    Raises:
      DatasetError: no such file, or it cannot be read.
    """
    return _arrays(directory, TOKENIZER)


def _arrays(directory, name: str) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load(_file(directory, name))
    except safetensors.SafetensorError as error:
        raise DatasetError(
            f"{Path(directory) / name}: {error}. Write the folder again with python -m vidmotion.encode"
        ) from error


def _file(directory, name: str) -> bytes:
    path = Path(directory) / name
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{path}: {error.strerror}. Write the folder again with python -m vidmotion.encode"
        ) from error
