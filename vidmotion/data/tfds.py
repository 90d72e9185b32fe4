"""Offers the clips of this package as TensorFlow Datasets: Sprites, Heads and folders of `vidmotion.data.prepare`.

    pip install 'vidmotion[tfds]'
    tfds build vidmotion_folder --imports=vidmotion.data.tfds --data_dir=DIR --file_format=array_record \
        --config='{"name": "faces", "directory": "data/faces"}'

`vidmotion_sprites` has the config field ``sheets`` (default: the environment variable VIDMOTION_SHEETS);
`vidmotion_heads` has the fields of `HeadsConfig`. Elements, splits and their order are the same as in this package's
sources. TensorFlow is not needed to write or read the datasets. Read them with ``config.data.kind=tfds`` and ``name``,
``split`` and ``data_dir``, or in other programs with `tfds.data_source`.
"""

import abc
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vidmotion.data import heads, sprites
from vidmotion.data.records import RecordSource, read_index
from vidmotion.errors import ConfigError

COMPRESSED = 1 << 12  # bytes: larger arrays of integers are stored compressed
# Bytes of clips in a file, before compression; the clips of one file are in memory together.
SHARD = 1 << 27
Element = tuple[int, dict[str, np.ndarray]]


@dataclasses.dataclass(eq=False)
class SpritesConfig(tfds.core.BuilderConfig):
    """The settings of a Sprites dataset. Attributes: `sheets`: the folder of the sheets."""

    sheets: str = os.environ.get("VIDMOTION_SHEETS", "")


@dataclasses.dataclass(eq=False)
class HeadsConfig(tfds.core.BuilderConfig):
    """The settings of a Heads dataset.

    Attributes:
      train, eval: the number of clips in each split.
      size, frames, fps, seed: arguments of `heads.HeadsSource`, the same for both splits.
    """

    train: int = 20_000
    eval: int = 256
    size: int = 64
    frames: int = 16
    fps: float = 12.5
    seed: int = 0


@dataclasses.dataclass(eq=False)
class FolderConfig(tfds.core.BuilderConfig):
    """The settings of a dataset from a prepared folder. Attributes: `directory`: the path of the folder."""

    directory: str = ""


class _Clips(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Common base of the three dataset builders; a subclass defines `sources`.

    Examples keep the order of the source, on which this package's readers rely. `tfds.core.GeneratorBasedBuilder` could
    keep it, too, but it needs TensorFlow as soon as a split is larger than a gigabyte.
    """

    VERSION = tfds.core.Version("1.0.0")

    @abc.abstractmethod
    def sources(self) -> Mapping[str, Any]:
        """Returns a source of this package for each split."""

    def _info(self) -> tfds.core.DatasetInfo:
        source = next(iter(self.sources().values()))
        given = getattr(source, "features", None) or _features(source[0])
        made = {name: _feature(given[name]) for name in sorted(given)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(made), disable_shuffling=True
        )

    def _shard_iterators_per_split(
        self, manager
    ) -> dict[str, list[Callable[[], Iterator[Element]]]]:
        return {split: _shards(source, split) for split, source in self.sources().items()}


class VidmotionSprites(_Clips):
    """The Sprites benchmark, rendered from its sheets."""

    BUILDER_CONFIGS = (SpritesConfig(name="default"),)

    def sources(self) -> Mapping[str, Any]:
        """Returns the splits train and test. Raises: DatasetError as in `sprites.SpritesSource`."""
        return {
            split: sprites.SpritesSource(self.builder_config.sheets, split)
            for split in sprites.SPLITS
        }


class VidmotionHeads(_Clips):
    """Heads, the procedural cartoon heads of `vidmotion.data.heads`."""

    BUILDER_CONFIGS = (HeadsConfig(name="default"),)

    def sources(self) -> Mapping[str, Any]:
        """Returns the splits train and eval."""
        of = self.builder_config
        return {
            split: heads.HeadsSource(of.size, of.frames, clips, of.seed, split, fps=of.fps)
            for split, clips in (("train", of.train), ("eval", of.eval))
        }


class VidmotionFolder(_Clips):
    """A folder that `vidmotion.data.prepare` wrote, with its records as they are stored."""

    BUILDER_CONFIGS = (FolderConfig(name="default"),)

    def sources(self) -> Mapping[str, Any]:
        """Returns the folder's splits. Raises: ConfigError if no folder is named; DatasetError as in `RecordSource`."""
        where = self.builder_config.directory
        if not where:
            raise ConfigError(
                'vidmotion_folder: name a prepared folder with --config=\'{"name": "mine", "directory": "DIR"}\''
            )
        return {split: RecordSource(where, split) for split in read_index(where)["splits"]}


def _shards(source, split: str) -> list[Callable[[], Iterator[Element]]]:
    """Returns a function for each file of a split, which reads the clips of that file."""
    clip = sum(np.asarray(value).nbytes for value in source[0].values())
    rows = max(1, SHARD // clip)
    firsts = range(0, len(source), rows)
    return [
        functools.partial(
            _elements,
            source,
            range(first, min(first + rows, len(source))),
            f"Generating {split}, file {k} of {len(firsts)}",
        )
        for k, first in enumerate(firsts, 1)
    ]


def _elements(source, rows: range, what: str) -> Iterator[Element]:
    for k in tfds.core.utils.tqdm(rows, desc=what, unit=" clips", leave=False):
        yield k, {name: np.asarray(value) for name, value in source[k].items()}


def _features(element: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Returns shapes and dtypes in the form of `RecordSource.features`, from one element, since all are alike."""
    arrays = {name: np.asarray(value) for name, value in element.items()}
    return {n: {"dtype": str(a.dtype), "shape": list(a.shape)} for n, a in arrays.items()}


def _feature(of: Mapping[str, Any]) -> tfds.features.Tensor:
    dtype, shape = np.dtype(of["dtype"]), tuple(of["shape"])
    large = dtype.kind in "iu" and None not in shape
    large = large and dtype.itemsize * int(np.prod(shape)) > COMPRESSED
    # Without an encoding, TensorFlow Datasets stores numbers as float32 or int64, which would round float64.
    bytewise = large or dtype == np.float64
    encoding = tfds.features.Encoding.ZLIB if bytewise else tfds.features.Encoding.NONE
    return tfds.features.Tensor(shape=shape, dtype=dtype.type, encoding=encoding)
