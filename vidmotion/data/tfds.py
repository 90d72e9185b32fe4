"""The clips of this package as TensorFlow Datasets: Sprites, Heads and any folder that `vidmotion.data.prepare` wrote.

    pip install 'vidmotion[tfds]'
    tfds build vidmotion_folder --imports=vidmotion.data.tfds --data_dir=DIR --file_format=array_record \
        --config='{"name": "faces", "directory": "data/faces"}'

`vidmotion_sprites` has the config field ``sheets`` (else the variable VIDMOTION_SHEETS), `vidmotion_heads` those of
`HeadsSource`. Elements, splits and their order are those of the sources here, and no TensorFlow is needed to write or
to read them: ``config.data.kind=tfds`` with ``name``, ``split`` and ``data_dir``, or `tfds.data_source` elsewhere.
"""

import abc
import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vidmotion.data import heads, sprites
from vidmotion.data.records import RecordSource, read_index
from vidmotion.errors import ConfigError

COMPRESSED = 1 << 12  # bytes: larger arrays of whole numbers are stored zipped


@dataclasses.dataclass(eq=False)
class SpritesConfig(tfds.core.BuilderConfig):
    """Which Sprites. Attributes: `sheets`: folder of the sheets."""

    sheets: str = os.environ.get("VIDMOTION_SHEETS", "")


@dataclasses.dataclass(eq=False)
class HeadsConfig(tfds.core.BuilderConfig):
    """Which Heads: arguments of `heads.HeadsSource`.

    Attributes:
      train, eval: clips of each split.
      size, frames, fps, seed: the same for both splits.
    """

    train: int = 20_000
    eval: int = 256
    size: int = 64
    frames: int = 16
    fps: float = 12.5
    seed: int = 0


@dataclasses.dataclass(eq=False)
class FolderConfig(tfds.core.BuilderConfig):
    """Which prepared folder. Attributes: `directory`: of it."""

    directory: str = ""


class _Clips(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What the three have in common; a subclass has `sources`."""

    VERSION = tfds.core.Version("1.0.0")

    @abc.abstractmethod
    def sources(self) -> Mapping[str, Any]:
        """Split -> source of this package."""

    def _info(self) -> tfds.core.DatasetInfo:
        source = next(iter(self.sources().values()))
        given = getattr(source, "features", None) or _features(source[0])
        made = {name: _feature(given[name]) for name in sorted(given)}
        # In the order of the source, as all who read it here expect.
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(made), disable_shuffling=True
        )

    def _split_generators(self, manager) -> dict[str, Iterator]:
        return {split: _elements(source) for split, source in self.sources().items()}

    def _generate_examples(self):
        """Not called, though a builder must have it: `_split_generators` gives the examples themselves."""


class VidmotionSprites(_Clips):
    """The Sprites benchmark, rendered from its sheets."""

    BUILDER_CONFIGS = (SpritesConfig(name="default"),)

    def sources(self) -> Mapping[str, Any]:
        """Splits train and test. Raises: DatasetError as `sprites.SpritesSource`."""
        return {
            split: sprites.SpritesSource(self.builder_config.sheets, split)
            for split in sprites.SPLITS
        }


class VidmotionHeads(_Clips):
    """Procedural heads."""

    BUILDER_CONFIGS = (HeadsConfig(name="default"),)

    def sources(self) -> Mapping[str, Any]:
        """Splits train and eval."""
        of = self.builder_config
        return {
            split: heads.HeadsSource(of.size, of.frames, clips, of.seed, split, fps=of.fps)
            for split, clips in (("train", of.train), ("eval", of.eval))
        }


class VidmotionFolder(_Clips):
    """A folder that `vidmotion.data.prepare` wrote, its records as they are stored."""

    BUILDER_CONFIGS = (FolderConfig(name="default"),)

    def sources(self) -> Mapping[str, Any]:
        """The folder's splits. Raises: ConfigError: no folder is named; DatasetError as `RecordSource`."""
        where = self.builder_config.directory
        if not where:
            raise ConfigError(
                'vidmotion_folder: name a prepared folder, --config=\'{"name": "mine", "directory": "DIR"}\''
            )
        return {split: RecordSource(where, split) for split in read_index(where)["splits"]}


def _elements(source) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    for k in range(len(source)):
        yield k, {name: np.asarray(value) for name, value in source[k].items()}


def _features(element: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Shapes and dtypes of one element, in the form of `RecordSource.features`; all elements are alike."""
    arrays = {name: np.asarray(value) for name, value in element.items()}
    return {n: {"dtype": str(a.dtype), "shape": list(a.shape)} for n, a in arrays.items()}


def _feature(of: Mapping[str, Any]) -> tfds.features.Tensor:
    dtype, shape = np.dtype(of["dtype"]), tuple(of["shape"])
    large = dtype.kind in "iu" and None not in shape
    large = large and dtype.itemsize * int(np.prod(shape)) > COMPRESSED
    # Their own numbers are float32 and int64.
    bytewise = large or dtype == np.float64
    encoding = tfds.features.Encoding.ZLIB if bytewise else tfds.features.Encoding.NONE
    return tfds.features.Tensor(shape=shape, dtype=dtype.type, encoding=encoding)
