"""Training pairs of one talking face: a reference frame, target frames to generate, and frames that drive them.

Each element of the sources in this module is cut from one clip. B is the batch, F the number of target frames, S the
side of the frames and s the side of a face crop (224). All pictures are uint8; `f_rts` is float32.

recipe "face" (X-NeMo)
    reference        (B, S, S, 3)     another frame of the clip
    target           (B, F, S, S, 3)  the frames to generate
    driving          (B, F, s, s, 3)  face crops of the target, augmented
    driving_clean    (B, F, s, s, 3)  the same crops without augmentation, which a GAN head has to reconstruct
    reference_face   (B, s, s, 3)     face crop of the reference
    f_rts            (B, F, 3)        position and size of the target's face relative to the reference's,
                                      (dy, dx, scale), from the boxes before any augmentation
recipe "pcavs" (WarpFace)
    reference, target                 as above
    driving          (B, F, S, S, 3)  the target, augmented
    reference_driving (B, S, S, 3)    the reference, with the same augmentation (`shared`)

Both recipes read folders that `python -m vidmotion.data.prepare hdtf|vfhq|nersemble|mead` wrote (`PortraitSource`;
"pcavs" accepts any folder of clips), or clips of Heads and Sprites (`DrawnPortraitSource`).
"""

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Mapping

import grain
import numpy as np
from PIL import Image

from vidmotion.data import faces, heads, sprites
from vidmotion.data.augment import FaceAugment, PcAvsAugment
from vidmotion.data.clip_source import Boxes, ClipSource, Fills, Prepared
from vidmotion.data.clips import decode_clip
from vidmotion.data.records import DatasetError, RecordSource
from vidmotion.errors import ConfigError

log = logging.getLogger(__name__)

RECIPES = {"face": FaceAugment, "pcavs": PcAvsAugment}


@dataclasses.dataclass(frozen=True)
class Pair(grain.transforms.RandomMap):
    """Makes a training pair from a clip, as described at the top of the file.

    The clip has `clip` or `video`, `length`, `fps` and, for "face", `boxes` (T, 4): see `vidmotion.data.clips`. Without
    `boxes`, the whole picture is taken as the face.

    Attributes:
      frames: F, the number of successive target frames.
      decimate: the step between target frames in the stored clip.
      gap: the reference is more than this many seconds away from every target frame (WarpFace: 0.2); 0 means any other
        frame. None allows any frame of the clip, as X-NeMo does for clips.
      flip: the share of pairs that are mirrored left to right, all pictures of a pair together.
      size: S, the side of the frames in pixels; None keeps the stored size.
      augment: the augmentation, which determines the recipe.
      augmented: whether the augmentation is applied; otherwise `driving` shows the frames unchanged.
      shared: for "pcavs": whether target and reference share one draw of the augmentation rather than have one each.
      random: whether everything is drawn at random. Otherwise the reference is the first frame, the target begins as
        soon as `gap` allows, and nothing is mirrored or augmented.
    """

    frames: int = 1
    decimate: int = 1
    gap: float | None = 0.0
    flip: float = 0.5
    size: int | None = None
    augment: FaceAugment | PcAvsAugment = dataclasses.field(default_factory=FaceAugment)
    augmented: bool = True
    shared: bool = True
    random: bool = True

    @property
    def recipe(self) -> str:
        """The name of the recipe, "face" or "pcavs"."""
        return next(name for name, kind in RECIPES.items() if isinstance(self.augment, kind))

    def random_map(
        self, element: Mapping, rng: np.random.Generator | None
    ) -> dict[str, np.ndarray]:
        """Makes the pair. Raises: ConfigError if the clip is too short; DatasetError as in `decode_clip`."""
        reference, start = self._picked(int(element["length"]), float(element["fps"]), rng)
        picked = range(start, start + (self.frames - 1) * self.decimate + 1, self.decimate)
        video, stored = self._frames(element, [reference, *picked])
        if self.recipe == "pcavs" or "boxes" not in element:
            height, width = video.shape[1:3]
            boxes = np.tile(np.float64([0, 0, width, height]), (len(video), 1))
        else:
            indices = [reference, *picked]
            boxes = np.asarray(element["boxes"], np.float64)[indices] * (video.shape[1] / stored)
        if self.random and rng.random() < self.flip:
            video, boxes = video[:, :, ::-1], faces.mirror(boxes, video.shape[2])
        video = np.ascontiguousarray(video)
        pair = {"reference": video[0], "target": video[1:]}
        views = (
            self._whole(video, rng) if self.recipe == "pcavs" else self._faces(video, boxes, rng)
        )
        return {**pair, **views}

    def candidates(self, length: int, fps: float) -> list[np.ndarray]:
        """Lists, for each possible first target frame, the frames that may be the reference."""
        span = (self.frames - 1) * self.decimate
        clip = np.arange(length)
        if self.gap is None:
            return [clip] * max(0, length - span)
        least = self.gap * fps + 1e-6  # frames; > 0 excludes target frames
        return [
            clip[np.maximum(start - clip, clip - (start + span)) > least]
            for start in range(length - span)
        ]

    def _picked(self, length, fps, rng):
        options = self.candidates(length, fps)
        starts = [k for k, references in enumerate(options) if len(references)]
        if not starts:
            raise ConfigError(
                f"clips of {length} frames at {fps:g} frames/s do not hold {self.frames} target frames, one in "
                f"every {self.decimate}, and a reference more than {self.gap} s away: ask for fewer frames, "
                "or prepare longer clips (--seconds)"
            )
        if not self.random:
            # The reference is the first frame if that leaves room for a target, which it does unless gap is long.
            start = next((k for k in starts if options[k][0] == 0), starts[0])
            return int(options[start][0]), start
        start = starts[int(rng.integers(len(starts)))]
        reference = int(rng.choice(options[start]))
        if self.frames == 1 and rng.random() < 0.5:  # either of the two may be the reference
            return start, reference
        return reference, start

    def _frames(self, element, indices):
        """Returns some frames of a clip, scaled to `size`, and the side at which they are stored."""
        if "clip" in element:
            first, *rest = indices
            step = rest[1] - rest[0] if len(rest) > 1 else 1
            shown = decode_clip(element["clip"], range(rest[0], rest[-1] + 1, step))
            video = np.concatenate([decode_clip(element["clip"], range(first, first + 1)), shown])
        else:
            video = element["video"][indices]
        stored = video.shape[1]
        if self.size in (None, stored):
            return video, stored
        side, how = (self.size, self.size), Image.Resampling.LANCZOS
        resized = [np.asarray(Image.fromarray(picture).resize(side, how)) for picture in video]
        return np.stack(resized), stored

    def _faces(self, video, boxes, rng):
        height, width = video.shape[1:3]
        size = self.augment.size
        squares = faces.driving_boxes(boxes[1:], width, height)
        clean = np.stack([faces.crop(f, box, size) for f, box in zip(video[1:], squares)])
        drawn = self.random and self.augmented
        return {
            "driving": self.augment(video[1:], squares, rng) if drawn else clean,
            "driving_clean": clean,
            "reference_face": faces.crop(
                video[0], faces.reference_box(boxes[0], width, height), size
            ),
            "f_rts": faces.f_rts(boxes[1:], boxes[0]),
        }

    def _whole(self, video, rng):
        seen = video
        if self.random and self.augmented:
            parts = [video] if self.shared else [video[:1], video[1:]]
            seen = np.concatenate([self.augment(part, rng) for part in parts])
        return {"driving": seen[1:], "reference_driving": seen[0]}


def make_pair(random: bool, settings: Mapping | None) -> Pair:
    """Makes a `Pair` from settings in a config.

    Args:
      random: the field `random` of `Pair`.
      settings: a mapping with `recipe` ("face" by default), `augment` (a mapping of the fields of that recipe's
        augmentation) and other fields of `Pair`; a `random` in it is ignored.

    Raises:
      ConfigError: a name or recipe is unknown, or a number is out of range.
    """
    settings = {name: value for name, value in (settings or {}).items() if name != "random"}
    recipe = settings.pop("recipe", "face")
    if recipe not in RECIPES:
        raise ConfigError(f"recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    try:
        augment = RECIPES[recipe](**dict(settings.pop("augment", {})))
        pair = Pair(**settings, augment=augment, random=random)
    except TypeError as error:
        raise ConfigError(f"config.data pair: {error}") from None
    if pair.frames < 1 or pair.decimate < 1 or (pair.gap or 0) < 0 or not 0 <= pair.flip <= 1:
        raise ConfigError(
            "a pair needs frames >= 1, decimate >= 1, gap >= 0 (or None) and flip within 0..1, got "
            f"{pair.frames=}, {pair.decimate=}, {pair.gap=}, {pair.flip=}"
        )
    return pair


class PortraitSource(ClipSource, Prepared):
    """Pairs from prepared clips of one face each.

    With `random`, elements are the stored clips and the loader must apply `transforms`, as with `VideoSource`.

    Attributes:
      transforms: the transforms for the loader to apply; see above.
      fingerprint: hex digest of the clips and of how pairs are taken from them.
    """

    def __init__(
        self,
        directory,
        split: str = "train",
        random: bool = False,
        pair: Mapping | None = None,
        whole: bool = False,
    ):
        """Opens a split.

        Args:
          directory: the folder that `vidmotion.data.prepare` wrote.
          split: the name of the split to read.
          random: whether pairs are drawn at random and augmented; see `Pair`.
          pair: the fields of `Pair`, see `make_pair`.
          whole: whether clips without boxes are accepted; the whole picture is then taken as the face, and the log says
            so.

        Raises:
          DatasetError: as in `RecordSource`; or the folder does not hold clips, or its clips have no boxes and `whole`
            is not set.
          ConfigError: as in `make_pair`, or the clips are too short.
        """
        self._pair = make_pair(random, pair)
        self._records = RecordSource(directory, split)
        self.made_by = self._records.provenance.get("command", "")
        held = self._records.features.keys()
        boxless = self._pair.recipe == "face" and "boxes" not in held
        needed = {"length", "fps"} | ({"boxes"} if boxless and not whole else set())
        if not {"clip", "video"} & held or not needed <= held:
            raise DatasetError(
                f"{directory}: holds {', '.join(held)}; expected clips with their faces' boxes, as written "
                "by python -m vidmotion.data.prepare hdtf, vfhq, nersemble, mead or portraits"
            )
        if boxless:
            log.info(
                "%s has no boxes of the faces: the whole picture is taken as the face", directory
            )
        self.transforms = (self._pair,) if random else ()
        self.fingerprint = _fingerprint(self._records.fingerprint, self._pair)
        self._arguments = (directory, split, random, pair, whole)
        dataclasses.replace(self._pair, random=False).random_map(self._records[0], None)

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        """Returns an element. Raises: IndexError out of range; DatasetError if the data are damaged."""
        record = self._records[index]
        return record if self._pair.random else self._pair.random_map(record, None)

    def __reduce__(self):
        return type(self), self._arguments

    def __repr__(self):
        return f"PortraitSource{self._arguments!r}"


class DrawnPortraitSource(ClipSource):
    """Pairs from clips that this package draws; otherwise like `PortraitSource`.

    The face's box comes from the source's `boxes` if it has them (Heads: exact); otherwise the whole picture is taken
    as the face (Sprites).

    Attributes:
      clips: the source of the clips.
      transforms, fingerprint: see `PortraitSource`.
    """

    def __init__(self, clips, fps: float, random: bool = False, pair: Mapping | None = None):
        """Wraps a source of clips.

        Args:
          clips: the source of the clips; it draws them with `video`.
          fps: frames per second of the clips.
          random: whether pairs are drawn at random and augmented; see `Pair`.
          pair: the fields of `Pair`, see `make_pair`.

        Raises:
          ConfigError: as in `make_pair`, or the clips are too short.
        """
        self._pair, self._fps = make_pair(random, pair), fps
        self.clips = clips
        self._boxes: dict[int, np.ndarray] = {}
        self.transforms = (self._pair,) if random else ()
        self.fingerprint = _fingerprint(clips.fingerprint, self._pair)
        self._arguments = (clips, fps, random, pair)
        dataclasses.replace(self._pair, random=False)._picked(len(clips[0]["video"]), fps, None)

    def __len__(self):
        return len(self.clips)

    def fill(self, clips: Iterable[int]) -> None:
        """Draws clips together before they are read, if their source can. Raises: IndexError out of range."""
        if isinstance(self.clips, Fills):
            self.clips.fill(clips)

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        """Returns an element. Raises: IndexError out of range."""
        video = self.clips.video(index)
        clip = {"video": video, "length": np.int32(len(video)), "fps": np.float32(self._fps)}
        if self._pair.recipe == "face" and isinstance(self.clips, Boxes):
            clip["boxes"] = self._box(index)
        return clip if self._pair.random else self._pair.random_map(clip, None)

    def _box(self, index):
        if index not in self._boxes:
            # Boxes are kept because computing them takes longer than everything else done for a cached clip.
            self._boxes[index] = self.clips.boxes(index)
        return self._boxes[index]

    def __reduce__(self):
        return DrawnPortraitSource, self._arguments

    def __repr__(self):
        return f"DrawnPortraitSource({self.clips!r}, {self._pair!r})"


def head_portraits(random: bool = False, pair: Mapping | None = None, **clips):
    """Makes a source of pairs from Heads.

    Args:
      random: whether pairs are drawn at random and augmented; see `Pair`.
      pair: the fields of `Pair`, see `make_pair`.
      **clips: the arguments of `heads.HeadsSource`.

    Raises:
      ConfigError: as in `make_pair`, or an argument is unknown or missing.
      ValueError: as in `HeadsSource`.
    """
    try:
        source = heads.HeadsSource(**clips)
    except TypeError as error:
        raise ConfigError(f"head portraits: {error}") from None
    return DrawnPortraitSource(source, source.fps, random, pair)


def sprite_portraits(
    sheets_dir, split: str = "train", random: bool = False, pair: Mapping | None = None
):
    """Makes a source of pairs from Sprites, which are taken to be shown at 8 frames/s.

    Raises:
      DatasetError, ValueError: as in `sprites.SpritesSource`.
      ConfigError: as in `make_pair`.
    """
    return DrawnPortraitSource(sprites.SpritesSource(sheets_dir, split), 8.0, random, pair)


def _fingerprint(content: str, pair: Pair) -> str:
    return hashlib.sha256(f"{content}/{pair}".encode()).hexdigest()
