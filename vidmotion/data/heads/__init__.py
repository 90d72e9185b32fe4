"""Draws Heads, procedural talking cartoon heads, for which the ground truth of a motion swap is known exactly.

A clip is `render(identity, motion, size)`. The identity (face, hair, clothes, scene) is fixed over the clip; the motion
(pose, mouth, eyelids, gaze, brows) is one vector per frame. The two are sampled independently, and the pictures are a
pure function of both, so the clip with the content of A and the motion of B is `render(identity_A, motion_B, size)`,
pixel for pixel: the error of a swap can be measured rather than judged. Drawing is anti-aliased analytically at any
size from `MIN_SIZE` up.

Left and right are those of the image. Lengths are shares of the picture's side; angles are in radians.
"""

import dataclasses
import hashlib
import json
import operator
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from vidmotion.data.clip_source import Boxes, Classes, ClipSource, Renders
from vidmotion.data.heads import cartoon
from vidmotion.data.heads.painter import Painter
from vidmotion.data.heads.raster import Canvas

VERSION = 1  # of the pictures: raise it whenever any pixel or any random draw changes
MIN_SIZE = 16
SPLITS = ("train", "eval")
_CHUNK = 1 << 19  # pixels drawn together: as many as fit in a core's cache, to make few calls
# One thread draws at a time: with two, numpy's many short calls pass the GIL back and forth, which makes both together
# slower than one.
_DRAWING = threading.RLock()
_BLOCK = 1 << 20  # pixels that a source draws in one call: enough faces for sorting to help


@dataclasses.dataclass(frozen=True)
class Factor:
    """One factor of variation. Its range is `low`..`high` if continuous, 0..`values` - 1 if discrete."""

    name: str
    kind: str  # "continuous" or "discrete"
    low: float = 0.0
    high: float = 1.0
    values: int = 0
    meaning: str = ""


def _real(name: str, low: float, high: float, meaning: str) -> Factor:
    return Factor(name, "continuous", low, high, meaning=meaning)


def _choice(name: str, values: int, meaning: str) -> Factor:
    return Factor(name, "discrete", 0, values - 1, values, meaning)


IDENTITY_FACTORS: tuple[Factor, ...] = (
    _real("face_width", 0.88, 1.12, "width of the face, relative"),
    _real("jaw", -1.0, 1.0, "pointed to square"),
    _real("chin_length", 0.92, 1.14, "eyes to chin, relative"),
    _real("skin", 0.0, 1.0, "light to dark"),
    _real("eye_size", 0.85, 1.2, "relative"),
    _real("eye_spacing", 0.92, 1.12, "relative"),
    _real("eye_tilt", -1.0, 1.0, "outer corners down to up"),
    _real("nose_width", 0.8, 1.3, "relative"),
    _real("nose_length", 0.6, 1.25, "relative"),
    _real("ear_size", 0.75, 1.3, "relative"),
    _real("brow_thickness", 0.6, 1.6, "relative"),
    _real("lip_fullness", 0.5, 1.6, "relative"),
    _real("hair_volume", 0.0, 1.0, "flat to full (no effect when bald or shaved)"),
    _real(
        "hair_part", -1.0, 1.0, "parted on the left to parted on the right (no effect when bald)"
    ),
    _real("light", -1.0, 1.0, "light from the left to from the right"),
    _choice("hair_style", len(cartoon.HAIRSTYLES), "cartoon.HAIRSTYLES"),
    _choice("hair_colour", len(cartoon.HAIR), "cartoon.HAIR; brows and beard too"),
    _choice("iris_colour", len(cartoon.IRIS), "cartoon.IRIS"),
    _choice("nose_shape", len(cartoon.NOSES), "cartoon.NOSES"),
    _choice("beard", len(cartoon.BEARDS), "cartoon.BEARDS; 0 is none"),
    _choice("glasses", len(cartoon.GLASSES), "cartoon.GLASSES; 0 is none"),
    _choice("freckles", len(cartoon.FRECKLES), "cartoon.FRECKLES; 0 is none"),
    _choice("clothes", len(cartoon.CLOTHES), "cartoon.CLOTHES"),
    _choice("clothes_colour", len(cartoon.CLOTH), "cartoon.CLOTH"),
    _choice("background", len(cartoon.BACKGROUNDS), "cartoon.BACKGROUNDS"),
    _choice("background_colour", len(cartoon.BACKGROUND), "cartoon.BACKGROUND"),
)

MOTION_FACTORS: tuple[Factor, ...] = (
    _real("yaw", -0.55, 0.55, "radians; positive turns the face to the right"),
    _real("pitch", -0.4, 0.4, "radians; positive looks down"),
    _real("roll", -0.35, 0.35, "radians; positive tilts clockwise"),
    _real("x", -0.14, 0.14, "share of the side; positive is right"),
    _real("y", -0.08, 0.08, "share of the side; positive is down"),
    _real("scale", 0.85, 1.15, "size of the head, relative"),
    _real("mouth_open", 0.0, 1.0, "closed to wide open"),
    _real("smile", -1.0, 1.0, "corners down to up"),
    _real("lid_left", 0.0, 1.0, "eye on the left, open to closed"),
    _real("lid_right", 0.0, 1.0, "eye on the right, open to closed"),
    _real("gaze_x", -1.0, 1.0, "eyes looking left to looking right"),
    _real("gaze_y", -1.0, 1.0, "eyes looking up to looking down"),
    _real("brow_left", -1.0, 1.0, "brow on the left, frowning to raised"),
    _real("brow_right", -1.0, 1.0, "brow on the right, frowning to raised"),
)

_LOW = np.array([f.low for f in MOTION_FACTORS], np.float32)
_HIGH = np.array([f.high for f in MOTION_FACTORS], np.float32)
MOTION_COLUMN: dict[str, int] = {f.name: k for k, f in enumerate(MOTION_FACTORS)}
FACTORS: tuple[str, ...] = tuple(f.name for f in MOTION_FACTORS + IDENTITY_FACTORS)


def _identity_slices() -> dict[str, slice]:
    slices, start = {}, 0
    for f in IDENTITY_FACTORS:
        slices[f.name] = slice(start, start + max(f.values, 1))
        start += max(f.values, 1)
    return slices


IDENTITY_SLICES: dict[str, slice] = _identity_slices()
IDENTITY_DIM: int = max(s.stop for s in IDENTITY_SLICES.values())

Identity = dict[str, float | int]


def sample_identity(rng: np.random.Generator) -> Identity:
    """Samples a random identity: factor name -> float (continuous) or int (discrete).

    Continuous factors are uniform over their range and discrete ones over their values, except that two faces in three
    have no beard, two in three no glasses and two in three no freckles.
    """
    identity: Identity = {}
    for f in IDENTITY_FACTORS:
        share, keep = rng.random(2)  # every kind of factor takes two draws
        if f.kind == "continuous":
            identity[f.name] = float(f.low + share * (f.high - f.low))
        elif f.name in ("beard", "glasses", "freckles"):
            identity[f.name] = 1 + int(share * (f.values - 1)) if keep < 1 / 3 else 0
        else:
            identity[f.name] = int(share * f.values)
    return identity


def identity_vector(identity: Mapping) -> np.ndarray:
    """Encodes an identity as a vector (IDENTITY_DIM,) float32.

    Continuous factors are scaled to [-1, 1] and discrete ones are one-hot, each at `IDENTITY_SLICES[name]`. Raises
    ValueError as `render` does.
    """
    _check_identity(identity)
    vector = np.zeros(IDENTITY_DIM, np.float32)
    for f in IDENTITY_FACTORS:
        start = IDENTITY_SLICES[f.name].start
        if f.kind == "continuous":
            vector[start] = 2 * (identity[f.name] - f.low) / (f.high - f.low) - 1
        else:
            vector[start + identity[f.name]] = 1
    return vector


def sample_motion(rng: np.random.Generator, frames: int, fps: float = 25.0) -> np.ndarray:
    """Samples a random motion, (frames, len(MOTION_FACTORS)) float32, smooth in time and within the factors' ranges.

    Pose, smile and brows are sums of three slow sinusoids; the gaze rests and jumps; the eyelids blink, sometimes only
    one of them; the mouth opens and closes at the rhythm of syllables while the head speaks. `fps` is the frames per
    second, positive. A motion of fewer frames is a prefix of one of more frames from the same generator state. Raises
    ValueError if frames < 1 or fps <= 0.
    """
    frames = _at_least("frames", frames, 1)
    if not fps > 0:
        raise ValueError(f"fps is {fps}; give a positive number of frames per second")
    time = np.arange(frames) / fps

    def wander(slowest: float, fastest: float) -> np.ndarray:
        """Returns a weighted sum of three sinusoids, within [-1, 1]; frequencies are in Hz."""
        weight = rng.dirichlet((4.0, 3.0, 2.0))
        rate, phase = rng.uniform(slowest, fastest, 3), rng.uniform(0, 2 * np.pi, 3)
        return np.sin(2 * np.pi * rate * time[:, None] + phase) @ weight

    unit = {f.name: np.tanh(1.6 * wander(0.15, 0.8)) for f in MOTION_FACTORS}
    both = unit["brow_left"]
    unit["brow_right"] = 0.75 * both + 0.25 * unit["brow_right"]
    for name in ("gaze_x", "gaze_y"):
        unit[name] = np.tanh(4.0 * wander(0.3, 0.8))

    # Syllables: two and a half to four per second, of varying strength, with pauses between.
    syllable = 0.5 - 0.5 * np.cos(2 * np.pi * (rng.uniform(2.5, 4.0) * time + rng.random()))
    strength = np.clip(0.6 + 0.7 * wander(0.3, 0.9), 0.0, 1.0)
    unit["mouth_open"] = 2 * strength * (0.15 + 0.85 * syllable) - 1

    # Blinks: every 0.8 to 3 s, about a fifth of a second long, over slightly lowered lids.
    rest = 0.15 + 0.15 * wander(0.2, 0.6)
    lids = np.stack([rest, rest])
    moment = rng.uniform(-0.5, 1.5)
    while moment < time[-1] + 0.5:
        bump = np.exp(-(((time - moment) / 0.09) ** 2))
        eyes = rng.choice(3, p=(0.6, 0.2, 0.2))
        for eye in (0, 1):
            if eyes in (0, eye + 1):
                lids[eye] = lids[eye] + (1 - lids[eye]) * bump
        moment += rng.uniform(0.8, 3.0)
    unit["lid_left"], unit["lid_right"] = 2 * lids - 1

    motion = np.stack([unit[f.name] for f in MOTION_FACTORS], 1).astype(np.float32)
    return np.clip(_LOW + (motion + 1) * 0.5 * (_HIGH - _LOW), _LOW, _HIGH)


def render(identity: Mapping, motion: np.ndarray, size: int) -> np.ndarray:
    """Renders `identity` with `motion` as pictures (T, size, size, 3) uint8, deterministically.

    Each frame depends on its own motion vector only.

    Args:
      identity: factor name -> value, for all of `IDENTITY_FACTORS`.
      motion: (T, len(MOTION_FACTORS)), in the order and units of `MOTION_FACTORS`.
      size: the side of the pictures in pixels, at least `MIN_SIZE`.

    Raises:
      ValueError: a factor is missing, unknown or outside its range (values are never clipped), or a shape or the size
        is wrong.
    """
    return render_many([identity], [motion], size)[0]


def render_many(
    identities: Sequence[Mapping], motions: Sequence[np.ndarray], size: int
) -> list[np.ndarray]:
    """Renders several clips together: ten clips of two frames take little longer than one of twenty.

    The result is `[render(who, how, size) for who, how in zip(identities, motions)]`, bit for bit. Raises ValueError as
    `render` does, or if the numbers of identities and motions differ.
    """
    size = _at_least("size", size, MIN_SIZE)
    if len(identities) != len(motions):
        raise ValueError(
            f"got {len(identities)} identities and {len(motions)} motions; give one motion for each identity"
        )
    for identity in identities:
        _check_identity(identity)
    motions = [_checked_motion(motion) for motion in motions]
    lengths = [len(motion) for motion in motions]
    who = {
        f.name: np.repeat(
            np.array([i[f.name] for i in identities], float if f.kind == "continuous" else int),
            lengths,
        )
        for f in IDENTITY_FACTORS
    }
    pose = np.concatenate(motions)
    frames = np.empty((len(pose), size, size, 3), np.uint8)
    # Faces with the same layers are put next to each other, because a layer is drawn once for all faces that have it.
    order = np.lexsort([who["clothes"], who["hair_style"]])
    step = max(1, _CHUNK // (size * size))
    with _DRAWING:
        for start in range(0, len(order), step):
            part = order[start : start + step]
            frames[part] = _draw(
                {name: values[part] for name, values in who.items()},
                {f.name: pose[part, k] for k, f in enumerate(MOTION_FACTORS)},
                size,
            )
    return np.split(frames, np.cumsum(lengths)[:-1])


def _draw(who: Mapping[str, np.ndarray], pose: Mapping[str, np.ndarray], size: int) -> np.ndarray:
    canvas = Canvas(cartoon.backgrounds(who, size))
    Painter(who, pose, size, canvas).paint()
    return canvas.to_uint8()


def face_boxes(identity: Mapping, motion: np.ndarray, size: int) -> np.ndarray:
    """Computes the face's box, from the brows to the chin, in each of `render`'s pictures.

    The arguments are those of `render`. Returns float64 (T, 4): x0, y0, x1, y1 in pixels, the bounds of the turned
    skull's sides, the brows' upper edge and the chin; hair, ears and beard do not count. Raises ValueError as `render`
    does.
    """
    _check_identity(identity)
    motion = _checked_motion(motion)
    pose = {f.name: motion[:, k] for k, f in enumerate(MOTION_FACTORS)}
    head = cartoon.Head(identity, pose, _at_least("size", size, MIN_SIZE))
    nothing, whole = (0.0, 0.0), np.ones_like(head.unit)
    sides = [head.plane((side * head.outline_a, 0.0 * whole), nothing, nothing) for side in (-1, 1)]
    brows = head.on_face(0.0, -0.4)
    chin = head.plane(head.project(0.0, head.chin, 0.3), nothing, nothing)
    points = np.stack([frame.origin for frame in (*sides, brows, chin)], 1).astype(np.float64)
    return np.concatenate([points.min(1), points.max(1)], 1)


def seen(identity: Mapping, motion: np.ndarray) -> np.ndarray:
    """Tells which factors have an effect on each of `render`'s pictures.

    These have none: iris colour and gaze when both lids cover the irises, the size of ears under long hair, the volume
    of bald or shaved hair, and the parting of a bald head. All other factors always have some effect, if often a slight
    one.

    The arguments are those of `render`. Returns bool (T, len(FACTORS)), with columns as in `FACTORS`. Raises ValueError
    as `render` does.
    """
    _check_identity(identity)
    motion = _checked_motion(motion)
    style = cartoon.HAIRSTYLES[identity["hair_style"]]
    pose = {f.name: motion[:, k] for k, f in enumerate(MOTION_FACTORS)}
    lid = np.minimum(pose["lid_left"], pose["lid_right"])
    # As in `Painter._eye`: compares the lid's lower edge, an arc, with the lowest point of the iris.
    edge = (1.95 * lid - 0.8) * np.sqrt(1 - (0.4 * pose["gaze_x"]) ** 2)
    iris = edge < 0.02 + 0.32 * pose["gaze_y"] + 0.62
    hides = {
        "iris_colour": ~iris,
        "gaze_x": ~iris,
        "gaze_y": ~iris,
        "ear_size": style.sides >= 0.3,
        "hair_volume": style.volume <= 0.05,
        "hair_part": style.volume == 0,
    }
    shown = np.ones((len(motion), len(FACTORS)), bool)
    for name, hidden in hides.items():
        shown[:, FACTORS.index(name)] &= ~np.asarray(hidden)
    return shown


class HeadsSource(ClipSource, Boxes, Renders, Classes):
    """Random access to seeded clips; clip i is a function of (seed, split, i) and the other arguments only.

    Args:
      size: the side of the pictures in pixels, at least `MIN_SIZE`.
      frames: the number of frames per clip.
      clips: the number of clips, `len()`.
      seed: the seed of all clips; non-negative.
      split: "train" or "eval"; the two draw from separate streams and share no identity or motion.
      identities: the number of distinct identities, used in turn: clip i has identity i % identities. By default every
        clip has its own. Every clip has its own motion in any case.
      fps: frames per second of the motion.
      cache: whether to keep rendered clips in memory as uint8 (clips * frames * size^2 * 3 bytes). The cache is filled
        by `fill` and as clips are read; cached videos are read-only views.

    Raises:
      ValueError: an argument is out of range.
    """

    def __init__(
        self,
        size: int,
        frames: int,
        clips: int,
        seed: int = 0,
        split: str = "train",
        *,
        identities: int | None = None,
        fps: float = 25.0,
        cache: bool = False,
    ):
        self.size = _at_least("size", size, MIN_SIZE)
        self.frames = _at_least("frames", frames, 1)
        self.clips = _at_least("clips", clips, 1)
        self.seed = _at_least("seed", seed, 0)
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")
        self.split = split
        self.identities = _at_least("identities", clips if identities is None else identities, 1)
        if self.identities > self.clips:
            raise ValueError(f"identities is {self.identities}, more than the {self.clips} clips")
        if not fps > 0:
            raise ValueError(f"fps is {fps}; give a positive number of frames per second")
        self.fps = float(fps)
        self._cache: np.ndarray | None = None
        if cache:
            self._cache = np.zeros((self.clips, *self.video_shape), np.uint8)
            self._motions = np.zeros((self.clips, self.frames, len(MOTION_FACTORS)), np.float32)
            self._cached = np.zeros(self.clips, bool)

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """The shape of one video, (frames, size, size, 3)."""
        return (self.frames, self.size, self.size, 3)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the generator's version and with every argument that changes a clip."""
        arguments = [
            self.size, self.frames, self.clips, self.seed, self.split, self.identities, self.fps
        ]  # fmt: skip
        text = json.dumps(["heads", VERSION, *arguments])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def origin(self, i: int) -> str:
        """Returns the number of the identity that clip i shows, as text."""
        return str(self.identity_id(i))

    def identity_id(self, i: int) -> int:
        """Returns which of the split's identities clip i shows, 0 .. identities - 1."""
        return self._index(i) % self.identities

    def identity(self, i: int) -> Identity:
        """Returns the identity of clip i. Raises IndexError outside 0 .. len - 1."""
        return sample_identity(self._rng(0, self.identity_id(i)))

    def motion(self, i: int) -> np.ndarray:
        """Returns the motion of clip i, (frames, len(MOTION_FACTORS)) float32. Raises IndexError as `identity` does."""
        i = self._index(i)
        if self._cache is not None and self._cached[i]:
            return self._motions[i].copy()
        return sample_motion(self._rng(1, i), self.frames, self.fps)

    def boxes(self, i: int) -> np.ndarray:
        """Returns `face_boxes` of clip i, (frames, 4), one box per frame. Raises IndexError as `identity` does."""
        return face_boxes(self.identity(i), self.motion(i), self.size)

    def factors(self, i: int) -> dict[str, Mapping[str, float | int | np.ndarray]]:
        """Returns the factors of clip i by name. Raises IndexError as `identity` does.

        Returns:
          `identity`, with a float or an int (a class) for each factor, and `motion`, with (frames,) float32 for each.
        """
        return {"identity": self.identity(i), "motion": dict(zip(MOTION_COLUMN, self.motion(i).T))}

    def video(self, i: int) -> np.ndarray:
        """Returns the pictures of clip i, (frames, size, size, 3) uint8; read-only if cached."""
        i = self._index(i)
        if self._cache is None:
            return render(self.identity(i), self.motion(i), self.size)
        self.fill([i])
        view = self._cache[i]
        view.flags.writeable = False
        return view

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        """Returns clip i. Raises IndexError outside 0 .. len - 1.

        Returns:
          `video` (frames, size, size, 3) uint8, `identity` (IDENTITY_DIM,) float32, `motion`
          (frames, len(MOTION_FACTORS)) float32, `seen` (frames, len(FACTORS)) bool, and `identity_id` () int32.
        """
        video, identity, motion = self.video(i), self.identity(i), self.motion(i)
        return {
            "video": video,
            "identity": identity_vector(identity),
            "motion": motion,
            "seen": seen(identity, motion),
            "identity_id": np.array(self.identity_id(i), np.int32),
        }

    def __repr__(self) -> str:
        return (
            f"HeadsSource(size={self.size}, frames={self.frames}, clips={self.clips}, "
            f"seed={self.seed}, split={self.split!r}, identities={self.identities}, fps={self.fps})"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the hair styles; the hair style serves as the class of a clip."""
        return tuple(style.name for style in cartoon.HAIRSTYLES)

    def class_of(self, element: Mapping) -> int:
        """Returns the index into `classes` of an element."""
        return int(np.argmax(element["identity"][IDENTITY_SLICES["hair_style"]]))

    def swap(self, content: int, motion: int) -> np.ndarray:
        """Renders the ground truth of a swap: clip `content`'s identity with clip `motion`'s motion.

        Returns uint8 (frames, size, size, 3). Raises IndexError as `identity` does.
        """
        return render(self.identity(content), self.motion(motion), self.size)

    def fill(self, clips: Iterable[int]) -> None:
        """Draws the given clips together and caches them, unless they are cached already.

        For clips of few frames this is several times faster than drawing each when it is read. Does nothing without a
        cache. Raises IndexError as `identity` does.
        """
        if self._cache is None:
            return
        clips = [self._index(i) for i in clips]
        if all(self._cached[i] for i in clips):
            return
        with _DRAWING:
            missing = [i for i in dict.fromkeys(clips) if not self._cached[i]]
            for block, motions, videos in self._drawn(missing):
                for i, motion, video in zip(block, motions, videos):
                    self._motions[i], self._cache[i] = motion, video
                    self._cached[i] = True  # set last: other threads see whole clips only

    def _blocks(self, clips: Sequence[int]) -> Iterator[Sequence[int]]:
        """Splits `clips` into parts that are drawn together."""
        step = max(1, _BLOCK // (self.frames * self.size**2))
        for start in range(0, len(clips), step):
            yield clips[start : start + step]

    def _drawn(self, clips: Sequence[int]) -> Iterator[tuple[Sequence[int], list, list]]:
        """Draws `clips` in parts; yields each part with its motions and videos."""
        for block in self._blocks(clips):
            identities, motions = [self.identity(i) for i in block], [self.motion(i) for i in block]
            yield block, motions, render_many(identities, motions, self.size)

    def _index(self, i: int) -> int:
        i = operator.index(i)
        if not 0 <= i < self.clips:
            raise IndexError(f"no clip {i} in a source of {self.clips} clips")
        return i

    def _rng(self, stream: int, i: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, SPLITS.index(self.split), stream, i))


def _at_least(name: str, value: int, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}; give an integer") from None
    if number < least:
        raise ValueError(f"{name} is {number}; give at least {least}")
    return number


def _check_identity(identity: Mapping) -> None:
    names = [f.name for f in IDENTITY_FACTORS]
    missing, unknown = set(names) - set(identity), set(identity) - set(names)
    if missing or unknown:
        raise ValueError(
            f"identity lacks {sorted(missing)} and has unknown {sorted(unknown)}; "
            "start from sample_identity and change its values"
        )
    for f in IDENTITY_FACTORS:
        value = identity[f.name]
        if not f.low <= value <= f.high or (f.kind == "discrete" and value != int(value)):
            raise ValueError(
                f"identity factor {f.name} is {value}; expected a {f.kind} value from {f.low} to {f.high}"
            )


def _checked_motion(motion: np.ndarray) -> np.ndarray:
    motion = np.asarray(motion, np.float32)
    if motion.ndim != 2 or motion.shape[1] != len(MOTION_FACTORS) or not len(motion):
        raise ValueError(
            f"motion has shape {motion.shape}; expected (T, {len(MOTION_FACTORS)}) with T >= 1, "
            f"columns {', '.join(MOTION_COLUMN)}"
        )
    bad = np.argwhere(~((motion >= _LOW) & (motion <= _HIGH)))
    if len(bad):
        t, k = bad[0]
        f = MOTION_FACTORS[k]
        raise ValueError(
            f"motion factor {f.name} at frame {t} is {motion[t, k]}; its range is {f.low} to "
            f"{f.high} (clip the motion first)"
        )
    return motion
