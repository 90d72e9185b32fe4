"""Sources of windows of video clips, decoded when they are read.

`VideoSource` reads the clips that `vidmotion.data.prepare` cuts from videos. `LatentSource` reads the same windows from
a cache of latents, whose records have `latents` float16 (T, H/8, W/8, C) instead of the clip: the latents that a frozen
image autoencoder gives for every stored frame, not normalised.
"""

import dataclasses
import hashlib
import io
import logging

import grain
import numpy as np
from PIL import Image

from vidmotion.data.clip_source import Classes, ClipSource, Prepared
from vidmotion.data.clips import decode_clip
from vidmotion.data.records import DatasetError, RecordSource, read_index
from vidmotion.errors import ConfigError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Window(grain.transforms.RandomMap):
    """Decodes a window of a stored clip: `frames` frames, every `decimate`-th frame of the clip.

    The resulting element holds `video` uint8 (frames, H, W, 3), or `latents` if these are stored; `fps` float32 (), the
    rate of the window; and `start` float64 (), the seconds from the first frame of the source video to the first of the
    window. If the clips have them, it keeps `label` and `level` int32 (), and the window's `boxes` float32 (frames, 4).

    Attributes:
      frames: the length of the window; None takes the whole clip.
      decimate: the step between its frames in the stored clip.
      random: whether the window begins at a random frame (uniform); otherwise it is in the middle of the clip.
    """

    frames: int | None = None
    decimate: int = 1
    random: bool = True

    def random_map(self, element, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Cuts the window. Raises: ConfigError if the clip is too short; DatasetError as in `decode_clip`."""
        length, fps = int(element["length"]), float(element["fps"])
        frames = self.frames or -(-length // self.decimate)
        span = (frames - 1) * self.decimate + 1
        if span > length:
            raise ConfigError(
                f"{frames} frames, one in every {self.decimate}, span {span} frames, but the stored "
                f"clips have {length}: ask for fewer frames, or prepare longer clips (--seconds)"
            )
        first = int(rng.integers(length - span + 1)) if self.random else (length - span) // 2
        if "clip" in element:
            picked = range(first, first + span, self.decimate)
            window = {"video": decode_clip(element["clip"], picked)}
        else:
            name = "latents" if "latents" in element else "video"
            window = {name: element[name][first : first + span : self.decimate]}
        for name in ("label", "level"):
            if name in element:
                window[name] = element[name]
        if "boxes" in element:
            window["boxes"] = element["boxes"][first : first + span : self.decimate]
        return {
            **window,
            "fps": np.float32(fps / self.decimate),
            "start": np.float64(element["start"] + first / fps),
        }


class VideoSource(ClipSource, Classes, Prepared):
    """Random access to windows of the clips of one split; `Window` describes the elements.

    With `random`, the position of a window is drawn anew each time, using the loader's random numbers. Elements are
    then the stored clips, and the loader must apply `transforms`: `Loader(source, transforms=source.transforms, ...)`.
    Otherwise windows are in the middle of their clips, and `transforms` is empty.

    Attributes:
      transforms: the transforms for the loader to apply; see above.
      classes: the names that the clips' labels index; empty if the clips have no labels.
      fingerprint: hex digest of the clips and of how windows are taken from them.
    """

    _stored = frozenset({"clip", "video"})  # a record holds one of these
    _expected = "clips of videos, as written by python -m vidmotion.data.prepare videos"

    def __init__(
        self,
        directory,
        split: str = "train",
        frames: int | None = None,
        decimate: int = 1,
        random: bool = False,
    ):
        """Opens a split of a folder that `vidmotion.data.prepare` wrote.

        Args:
          directory: the dataset folder.
          split: the split to read, or several by preference: ``test,train`` reads ``train`` if the folder has no
            ``test``, as when it was made from a single video.
          frames, decimate, random: see `Window`.

        Raises:
          DatasetError: as in `RecordSource`, or the folder does not hold clips.
          ConfigError: `frames` or `decimate` is below 1, or the clips are too short for them.
        """
        if decimate < 1 or (frames is not None and frames < 1):
            raise ConfigError(f"frames and decimate must be at least 1, got {frames=}, {decimate=}")
        splits = split.split(",")
        there = read_index(directory)["splits"]
        split = next((name for name in splits if name in there), splits[0])
        if split != splits[0]:
            log.warning(
                "%s has no split %r: its split %r is read instead", directory, splits[0], split
            )
        self._records = RecordSource(directory, split)
        self.made_by = self._records.provenance.get("command", "")
        if not self._stored & self._records.features.keys() or not (
            {"length", "fps", "start", "source"} <= self._records.features.keys()
        ):
            raise DatasetError(
                f"{directory}: holds {', '.join(self._records.features)}; expected {self._expected}"
            )
        self._window = Window(frames, decimate, random)
        self.classes = tuple(self._records.provenance.get("classes", ()))
        self.transforms = (self._window,) if random else ()
        self.fingerprint = hashlib.sha256(
            f"{self._records.fingerprint}/{self._window}".encode()
        ).hexdigest()
        self._arguments = (self._records.directory, split, frames, decimate, random)
        Window(frames, decimate, random=False).random_map(self._records[0], None)

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        """Returns an element. Raises: IndexError out of range; DatasetError if the data are damaged."""
        record = self._records[index]
        return record if self._window.random else self._window.random_map(record, None)

    def class_of(self, element) -> int:
        """Returns the index into `classes` of an element."""
        return int(element["label"])

    def origin(self, index) -> str:
        """Returns the name of the video file that a clip is from."""
        return self._records[index]["source"].tobytes().decode()

    def __reduce__(self):
        return type(self), self._arguments

    def __repr__(self):
        return f"{type(self).__name__}{self._arguments!r}"


class TfdsVideoSource(ClipSource, Classes):
    """Windows of the videos of a labelled TensorFlow dataset, such as `ucf101`.

    Elements and attributes are those of `VideoSource`. This class decodes the pictures itself, and only those of the
    window. TensorFlow Datasets needs TensorFlow to write such a dataset and to read its features.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        data_dir: str | None = None,
        fps: float = 25.0,
        size: int = 0,
        frames: int | None = None,
        decimate: int = 1,
        random: bool = False,
    ):
        """Opens a dataset that `download_and_prepare` has written with ``file_format="array_record"``.

        Args:
          name: the name of the dataset; ``ucf101/ucf101_1_256`` is the first of UCF101's three official splits.
          split: the split to read.
          data_dir: the folder in which the dataset lies.
          fps: the frame rate of its videos, which the dataset does not state.
          size: the side in pixels of the square that pictures are scaled to; 0 keeps their size.
          frames, decimate, random: see `Window`.

        Raises:
          ImportError: tensorflow-datasets or TensorFlow is not installed.
          ConfigError: `frames` or `decimate` is below 1, or the first video is too short.
        """
        try:
            import tensorflow_datasets as tfds

            class Undecoded(tfds.decode.SkipDecoding):
                """Skips decoding also when data are read without TensorFlow; the base class has no methods for that."""

                def decode_example_np(self, pictures):
                    return pictures

                decode_batch_example_np = decode_example_np

            decoders = {"video": Undecoded()}
            self._data = tfds.data_source(name, split=split, data_dir=data_dir, decoders=decoders)
        except ImportError as error:
            raise ImportError(
                f"the data source 'tfds_videos' needs tensorflow-datasets and TensorFlow ({error}): "
                "pip install 'vidmotion[tfds]' tensorflow"
            ) from error
        if decimate < 1 or (frames is not None and frames < 1):
            raise ConfigError(f"frames and decimate must be at least 1, got {frames=}, {decimate=}")
        info = self._data.dataset_info
        self._window, self._size, self._fps = Window(frames, decimate, random), size, fps
        self.transforms = (_Decoded(self._window, size, fps),) if random else ()
        self.classes = tuple(info.features["label"].names)
        content = [(part.name, part.num_examples, part.num_bytes) for part in info.splits.values()]
        self.fingerprint = hashlib.sha256(
            f"{info.full_name}/{split}/{content}/{fps}/{size}/{self._window}".encode()
        ).hexdigest()
        _Decoded(dataclasses.replace(self._window, random=False), size, fps).random_map(
            self._data[0], None
        )

    def __len__(self):
        return len(self._data)

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        element = self._data[index]
        decoded = _Decoded(self._window, self._size, self._fps)
        return element if self._window.random else decoded.random_map(element, None)

    def class_of(self, element) -> int:
        """Returns the index into `classes` of an element."""
        return int(element["label"])


@dataclasses.dataclass(frozen=True)
class _Decoded(grain.transforms.RandomMap):
    """Cuts a window out of an element of TensorFlow Datasets, and decodes the pictures of its `video`."""

    window: Window
    size: int
    fps: float

    def random_map(self, element, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Cuts and decodes the window. Raises: ConfigError as in `Window`."""
        frames = np.arange(len(element["video"]), dtype=np.int32)
        stored = {
            "video": frames,
            "length": np.int32(len(frames)),
            "fps": np.float32(self.fps),
            "start": np.float64(0),
            "label": np.int32(element["label"]),
        }
        picked = self.window.random_map(stored, rng)
        pictures = [Image.open(io.BytesIO(element["video"][k])) for k in picked["video"]]
        if self.size:
            side = (self.size, self.size)
            pictures = [p.resize(side, Image.Resampling.LANCZOS) for p in pictures]
        return {**picked, "video": np.stack([np.asarray(p.convert("RGB")) for p in pictures])}


class LatentSource(VideoSource):
    """Random access to windows of cached latents; arguments and elements are those of `VideoSource`.

    Attributes:
      networks: the fingerprints, by name, of the frozen networks that made the latents.
    """

    _stored = frozenset({"latents"})
    _expected = "cached latents, as written by python -m vidmotion.data.prepare latents"

    @property
    def networks(self) -> dict[str, str]:
        return self._records.provenance["networks"]
