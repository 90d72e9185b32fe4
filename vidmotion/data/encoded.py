"""Sources of clips that a trained network has encoded; the generators are trained on them.

``python -m vidmotion.encode`` writes these datasets. The entries of their records depend on the network:

    BCD              ``content`` float32 (K, C_c), ``ids`` int32 (T, N), and ``ids_fast`` int32 (ceil(T / 2), N), read
                     from the clip without every second frame
    VidTwin          ``structure`` float32 (n_q, h_S, w_S, d_S) and ``dynamics`` float32 (f, w_D + h_D, d_D), the means
                     of their Gaussians, and ``label`` int32 (), the index of the clip's class
    X-NeMo           ``motion`` float32 (T, D), f_mot of each frame before it is fused with the face's place f_rts, and
                     ``condition`` int32 (), an index into the provenance's ``conditions``, or -1 if the clips have no
                     emotions
    motion tokenizer ``ids`` int32 (T / 4,) instead of ``motion``, and ``condition``

Beside the shards lies a file of arrays that is needed to interpret the records: the frozen codebooks of the BCD, the
mean and standard deviation of each channel over the train split (VidTwin, X-NeMo), or the tokenizer. The provenance's
``encoder`` is the fingerprint of the X-NeMo's motion encoder: to another encoder, the same numbers mean other motion.
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
from vidmotion.errors import ConfigError

QUANTIZER = "quantizer.safetensors"
STATISTICS = "statistics.safetensors"
TOKENIZER = "tokenizer.safetensors"
LATENTS = ("structure", "dynamics")
LEAST_STD = 1e-6  # lower bound of a channel's standard deviation, for channels that never vary
EMOTIONS = (
    "sad",
    "neutral",
    "happy",
)  # Heads have no emotion labels: the mean smile of a clip decides its emotion
SMILE = 0.15  # clips with a mean smile beyond +-SMILE are not neutral: about a third on each side
LEVELS = (1, 2, 3)  # the levels of MEAD's emotions; neutral has level 1 only


class EncodedSource(ClipSource):
    """Random access to the encoded clips of one split; the base class of the sources in this module.

    Attributes:
      arrays: the names of the arrays in a record.
      attached: the name of the file of arrays that belongs to the records.
      network: the kind of network that made the records.
      noted: entries that the provenance must have.
    """

    arrays: tuple[str, ...]
    attached: str
    network: str
    noted: tuple[str, ...] = ()

    def __init__(self, directory, split: str, *arguments):
        """Open a split of a folder that ``vidmotion.encode`` wrote; `arguments` are further ones of the subclass.

        Raises:
          DatasetError: as in `RecordSource`, or the folder does not hold such records.
        """
        self.provenance = self.read_provenance(directory)
        self._records = RecordSource(directory, split)
        held = self._records.features
        if not set(self.arrays) <= held.keys():
            raise DatasetError(
                f"{directory}: holds {', '.join(held)}; expected clips that python -m vidmotion.encode has encoded "
                f"with a trained {self.network}"
            )
        self._arguments = (directory, split, *arguments)

    @classmethod
    def read_provenance(cls, directory) -> dict:
        """Read the provenance that ``vidmotion.encode`` stored in the folder.

        Raises:
          DatasetError: there is no dataset in the folder, or one of another kind.
        """
        if not (Path(directory) / INDEX).is_file():
            raise DatasetError(
                f"{directory}: holds no clips encoded by a trained {cls.network}; write them with python -m "
                f"vidmotion.encode --workdir=RUN --out={directory}, where RUN is the workdir in which it was trained"
            )
        provenance = read_index(directory)["provenance"]
        if not set(cls.noted) <= provenance.keys():
            raise DatasetError(
                f"{directory}: expected clips that python -m vidmotion.encode has encoded with a trained {cls.network}"
            )
        return provenance

    @classmethod
    def read_attached(cls, directory) -> dict[str, np.ndarray]:
        """Read the file of arrays that belongs to the records: arrays by path.

        Raises:
          DatasetError: the file is missing or cannot be read.
        """
        try:
            return safetensors.numpy.load(cls._attachment(directory))
        except safetensors.SafetensorError as error:
            raise DatasetError(
                f"{Path(directory) / cls.attached}: {error}. Write the folder again with python -m vidmotion.encode"
            ) from error

    @classmethod
    def _attachment(cls, directory) -> bytes:
        path = Path(directory) / cls.attached
        try:
            return path.read_bytes()
        except OSError as error:
            raise DatasetError(
                f"{path}: {error.strerror}. Write the folder again with python -m vidmotion.encode"
            ) from error

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        return self._records[index]

    def __reduce__(self):
        return type(self), self._arguments

    def __repr__(self):
        return f"{type(self).__name__}{self._arguments}"


# -- clips encoded by a BCD ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PickRate(grain.transforms.RandomMap):
    """Turns a stored record into ``content`` and `frames` consecutive codes, at full or half rate.

    Supplement A.2: videos are decimated 2x in time with probability 0.5, so that both subtle and large motion occur.

    Attributes:
      frames: the number of codes per element.
      fast: the probability of the half rate.
    """

    frames: int
    fast: float

    def random_map(self, element, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw the rate and the first code."""
        ids = element["ids_fast" if rng.random() < self.fast else "ids"]
        start = int(rng.integers(len(ids) - self.frames + 1))
        return {"content": element["content"], "ids": ids[start : start + self.frames]}


class CodesSource(EncodedSource):
    """Content and motion codes of a BCD; `PickRate` describes the elements.

    In the ``train`` split the loader draws the rate and the first code (`transforms`). In other splits an element holds
    the first `frames` codes at full rate. The attached file has ``codebooks`` (N, J, D) and, if used, ``out/kernel``.
    """

    arrays, attached, network = ("content", "ids", "ids_fast"), QUANTIZER, "BCD"

    def __init__(self, directory, split: str = "train", frames: int = 25, fast: float = 0.5):
        """Open a split; see `EncodedSource`.

        Raises:
          ConfigError: the clips have fewer than `frames` codes at half rate.
        """
        super().__init__(directory, split, frames, fast)
        shortest = len(self._records[0]["ids_fast"])
        if not 1 <= frames <= shortest:
            raise ConfigError(
                f"config.data: frames={frames}, but the clips in {directory} have {shortest} codes at half "
                "rate; encode longer clips or ask for fewer frames"
            )
        pick = PickRate(frames, fast)
        self._frames = frames
        self.transforms = (pick,) if split == "train" else ()
        # The codebooks are part of the fingerprint: with other codebooks, the same ids mean other motion.
        books = _hex(self._attachment(directory))
        self.fingerprint = _hex(f"{self._records.fingerprint}/{books}/{pick}/{split}".encode())

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        record = self._records[index]
        if self.transforms:
            return record
        return {"content": record["content"], "ids": record["ids"][: self._frames]}


# -- clips encoded by a VidTwin --------------------------------------------------------------------


class VidTwinLatentsSource(EncodedSource):
    """Structure, dynamics and class of clips that a VidTwin has encoded.

    The attached file has ``structure/mean``, ``structure/std``, ``dynamics/mean`` and ``dynamics/std``, each float32
    (C,).

    Attributes:
      classes: the names of the classes; the label of a record is an index into them.
    """

    arrays, attached, network = (*LATENTS, "label"), STATISTICS, "VidTwin"
    noted = ("classes",)

    def __init__(self, directory, split: str = "train"):
        """Open a split; see `EncodedSource`."""
        super().__init__(directory, split)
        self.classes = tuple(self.provenance["classes"])
        self.fingerprint = _hex(self._records.fingerprint.encode() + self._attachment(directory))


class Moments:
    """Accumulates the mean and standard deviation of each channel (last axis) over arrays that come one by one."""

    def __init__(self):
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Include the values of an array (..., C)."""
        flat = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
        self._count += len(flat)
        self._sum = self._sum + flat.sum(axis=0)
        self._squares = self._squares + np.square(flat).sum(axis=0)

    def result(self) -> dict[str, np.ndarray]:
        """Return ``mean`` and ``std`` of all values so far, float32 (C,) each."""
        mean = self._sum / self._count
        variance = np.maximum(self._squares / self._count - mean**2, LEAST_STD**2)
        return {"mean": mean.astype(np.float32), "std": np.sqrt(variance).astype(np.float32)}


# -- clips encoded by an X-NeMo or by its tokenizer ------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cut(grain.transforms.RandomMap):
    """Cuts `length` successive codes or tokens out of a stored record, starting anywhere.

    Attributes:
      name: the name of the array to cut.
      length: the number of codes or tokens to keep.
    """

    name: str
    length: int

    def random_map(self, element, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw the first code or token."""
        start = int(rng.integers(len(element[self.name]) - self.length + 1))
        return {**element, self.name: element[self.name][start : start + self.length]}


class _Sequences(EncodedSource):
    """Sequences of codes or tokens, cut out of the first of `arrays`, with their ``condition``.

    In the ``train`` split the loader draws where a sequence begins (`transforms`); in other splits a sequence is the
    beginning of its record.

    Attributes:
      conditions: the names of the emotions.
    """

    noted = ("encoder", "conditions", "fps")

    def __init__(self, directory, split: str = "train", length: int = 0):
        """Open a split; see `EncodedSource`.

        Args:
          directory: the folder that ``vidmotion.encode`` wrote.
          split: ``train`` or ``eval``.
          length: the length of the sequences; 0 takes whole clips.

        Raises:
          ConfigError: the clips are shorter than `length`.
        """
        super().__init__(directory, split, length)
        self._name = self.arrays[0]
        have = len(self._records[0][self._name])
        if not 0 <= length <= have:
            raise ConfigError(
                f"config.data: the sequences have length {length}, but the clips in {directory} have length {have}; "
                "encode longer clips (--frames) or ask for shorter sequences"
            )
        self._length = length
        self.transforms = (Cut(self._name, length),) if split == "train" and length else ()
        self.conditions = tuple(self.provenance["conditions"])
        beside = _hex(self._attachment(directory))
        self.fingerprint = _hex(f"{self._records.fingerprint}/{beside}/{length}/{split}".encode())

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        record = self._records[index]
        if self.transforms or not self._length:
            return record
        return {**record, self._name: record[self._name][: self._length]}


class MotionCodesSource(_Sequences):
    """Motion codes of an X-NeMo: elements hold ``motion`` float32 (length, D) and ``condition``.

    The attached file has ``mean`` and ``std`` of the codes, float32 (D,) each.
    """

    arrays, attached, network = ("motion", "condition"), STATISTICS, "X-NeMo"


class MotionTokensSource(_Sequences):
    """Tokens of a motion tokenizer: elements hold ``ids`` int32 (length,) and ``condition``.

    The attached file has the tokenizer's parameters, codebook and statistics. The provenance also has its ``network``.
    """

    arrays, attached, network = ("ids", "condition"), TOKENIZER, "motion tokenizer"


def conditions(source) -> tuple[str, ...]:
    """Return the names of the emotions that a source's clips may have; empty if they have none.

    Args:
      source: the source of the clips. `heads.HeadsSource` has emotions, and so has `videos.VideoSource` of MEAD.
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
    """Return the index into `conditions` of an element of a source; -1 if it has no emotion."""
    names = conditions(source)
    if names == EMOTIONS:
        smile = float(np.mean(element["motion"][:, heads.MOTION_COLUMN["smile"]]))
        return 1 + (smile > SMILE) - (smile < -SMILE)
    if not names or "level" not in element:
        return -1
    return names.index(f"{source.classes[source.class_of(element)]}/{int(element['level'])}")


def _hex(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
