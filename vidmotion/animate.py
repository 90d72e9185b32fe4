"""Animates a portrait with the face in a video, for systems that look at face crops (X-NeMo, section 3.1 of its spec).

The video is read frame by frame: once to find the face, once to read its crops, and once more if it is shown beside
the result. Only one vector and one latent per frame are held, so memory hardly grows with the length of the video.
The networks run one after the other, and only one of the two large ones, reference and denoiser, is in memory at a
time.
"""

import dataclasses
import functools
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
import safetensors
import safetensors.numpy

from vidmotion import files, media, sharding
from vidmotion.data import faces
from vidmotion.errors import ConfigError
from vidmotion.evaluation.transfer import to_uint8
from vidmotion.open_run import open_run
from vidmotion.run import Run
from vidmotion.systems.motion_tokenizer import ENCODER

log = logging.getLogger("vidmotion.reenact")

AROUND = 2.0  # portrait's side / face box's side: half a side is added all round, as released
SMALL = 64  # pixels; a smaller portrait is a blur at the size of the system
CROPS = 16  # crops encoded together, rounded up to whole windows of a temporal motion encoder
DECODED = 25  # frames decoded together, as released
NUMBER = r"-?\d+(?:\.\d+)?"
FOLLOWS = ("still", "first")
FEATHER = 1 / 8  # width of the fading edge, as a share of the animated square's side


@dataclasses.dataclass(frozen=True)
class Faces:
    """Where the faces are, and how the portrait's face follows the driver's.

    Attributes:
      portrait: how to find the portrait's face: the `how` of `faces.locate`, or a box x0,y0,x1,y1 in pixels.
      driver: how to find the driver's face: likewise; a box holds for all frames.
      follow: ``still`` keeps the face where it is in the portrait, as released; ``first`` moves and scales it as the
        driver's face moves and scales relative to its first frame, or to the frame that `Drive.relative` names.
      paste: whether to return the whole picture, at its own resolution, with the animated square put back into it.
    """

    portrait: str = "detect"
    driver: str = "detect"
    follow: str = "still"
    paste: bool = False

    def __post_init__(self):
        if self.follow not in FOLLOWS:
            raise ConfigError(f"--follow={self.follow}: choose {' or '.join(FOLLOWS)}")


def locate(
    pictures: Iterable[np.ndarray],
    name: str,
    how: str,
    own: Callable[[], tuple[np.ndarray, int]] | None = None,
) -> faces.Track:
    """Find the face in each picture with `faces.locate`, or take the box that `how` spells out for every picture.

    Raises:
      ConfigError: the box is empty, or the detector is not installed; and whatever `faces.locate` raises.
    """
    if re.fullmatch(rf"{NUMBER}(,{NUMBER}){{3}}", how):
        box = np.array(how.split(","), np.float64)
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ConfigError(f"the box {how} for {name} is empty: it needs x0 < x1 and y0 < y1")
        count = sum(1 for _ in pictures)
        return faces.Track(np.tile(box, (count, 1)), np.ones(count, bool))
    try:
        return faces.locate(pictures, name, how, own)
    except ImportError as error:
        raise ConfigError(
            f"{name}: {error}; or give the position of the face, or --box=whole"
        ) from error


@dataclasses.dataclass(frozen=True)
class Drive:
    """Sources of motion instead of a video or in addition to one, and how motion is applied (appendix E of the paper).

    Attributes:
      keys: the key frames, pictures or videos of any person; of a video, the first frame is taken.
      between: the number of frames from one key frame to the next; their codes are interpolated linearly.
      codes: a file of generated codes, as written by `write_codes`.
      outpaint: the workdir of a token generator that continues the motion where the video ends.
      more: the number of frames that the token generator makes.
      strength: a factor on the difference that is added to the portrait's own code; 0 leaves the portrait's
        expression as it is, and more than 1 exaggerates.
      relative: the reference code that is subtracted from each driver code to give this difference. "" takes the
        portrait's own code, so that the portrait takes on the driver's expression itself; a number takes the code
        of that frame of the driver, counted from 0; ``best`` takes the driver's code nearest to the portrait's.
        `Faces.follow` then counts from the same frame.
    """

    keys: tuple[str, ...] = ()
    between: int = 24
    codes: str = ""
    outpaint: str = ""
    more: int = 0
    strength: float = 1.0
    relative: str = ""

    def __post_init__(self):
        if len(self.keys) == 1:
            raise ConfigError(
                f"--keys={self.keys[0]}: give at least two key frames, separated by commas"
            )
        if bool(self.outpaint) != bool(self.more):
            raise ConfigError("--outpaint=RUN and --more=FRAMES go together")
        if self.strength < 0:
            raise ConfigError(f"--strength={self.strength:g} must be at least 0")
        if not (self.relative in ("", "best") or self.relative.isdecimal()):
            raise ConfigError(
                f"--relative={self.relative}: give best, or the number of a frame, counted from 0"
            )


VIDEO = Drive()


def animated(
    run: Run,
    picture: np.ndarray,
    content: str,
    motion: str,
    where: Faces,
    seed: int = 0,
    drive: Drive = VIDEO,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Animate a portrait, frame by frame.

    Args:
      run: a run whose system has a `face_side`.
      picture: the picture with the portrait, uint8 (H, W, 3).
      content: the name of the picture's file.
      motion: the driving video; unused if `drive` has key frames or codes.
      where: where the faces are.
      seed: the seed of noise and windows.
      drive: the other sources of motion, and how motion is applied.

    Yields:
      The portrait as the system sees it, and the animated portrait; each uint8 (size, size, 3), or of the picture's
      own size if `where` asks to paste.

    Raises:
      MediaError, ConfigError: raised before the first frame is made.
    """
    system, side = run.system, run.system.face_side
    extent = picture.shape[1], picture.shape[0]
    place = locate([picture], content, where.portrait)
    box = place.boxes[0]
    if where.portrait == "whole":
        around = seen = faces.square(box, *extent)
    else:
        around = faces.inside(faces.about(box, AROUND), *extent)
        seen = faces.reference_box(box, *extent)
    portrait, still = faces.crop(picture, around, system.size), faces.crop(picture, seen, side)
    if remarks := place.report():
        log.warning("%s: %s", content, remarks)
    if min(extent) < SMALL:
        log.warning("%s: enlarged from %d x %d pixels, so it lacks detail", content, *extent)

    read, whole = run.vars_by_part(), sharding.replicated(run.mesh)
    vars = read("motion")
    see, know, move, decode = (
        jax.jit(function, out_shardings=whole, compiler_options=sharding.compiler_options(run.mesh))
        for function in (system.motion_of, system.look, system.move, system.codec.decode)
    )

    count = CROPS + -CROPS % system.encoder.frames

    def look(crops: np.ndarray, one_clip: bool = True) -> np.ndarray:
        if one_clip:
            return np.asarray(see(vars, crops[None]))[0]
        return np.asarray(see(vars, crops[:, None]))[:, 0]

    if drive.codes:
        vectors, _, encoder = read_codes(drive.codes)
        check_encoder(run, vars, encoder, f"--codes={drive.codes}")
    elif drive.keys:
        shown = [_key_face(name, where.driver, side) for name in drive.keys]
        filled = shown + shown[-1:] * (-len(shown) % count)
        chunks = [np.stack(filled[i : i + count]) for i in range(0, len(filled), count)]
        codes = [look(chunk, one_clip=False) for chunk in chunks]
        vectors = between(np.concatenate(codes)[: len(shown)], drive.between)
    else:
        own_frames = functools.partial(media.own_frames, motion)
        track = locate(media.iter_video(motion), motion, where.driver, own_frames)
        if remarks := track.report():
            log.warning("%s: %s", motion, remarks)
        chunks = _crops(motion, track.boxes, side, where.driver == "whole", count)
        vectors = np.concatenate([look(chunk)[:real] for chunk, real in chunks])
    own = look(np.repeat(still[None], count, axis=0))[:1]
    rest = rest_frame(vectors, own[0], drive.relative)
    moves = np.tile(np.float32([0, 0, 1]), (len(vectors), 1))
    if where.follow == "first" and not drive.codes and not drive.keys:
        moves = faces.f_rts(track.boxes, track.boxes[rest or 0])
    if drive.outpaint:
        vectors = np.concatenate([vectors, outpainted(run, vars, vectors, drive, seed)])
        moves = np.concatenate([moves, np.repeat(moves[-1:], drive.more, axis=0)])
    vectors = redirected(vectors, own[0], rest, drive.strength)
    log.info("compiling and sampling %d frames together", len(vectors))
    known = know(read("reference"), portrait[None])
    jax.block_until_ready(known)  # before the next network is read
    key = jax.random.key(seed)
    latent = move(read("denoiser", "motion"), known, vectors[None], moves[None], own[None], key)
    jax.block_until_ready(latent)
    for start in range(0, latent.shape[1], DECODED):
        video = decode(vars.consts, latent[:, start : start + DECODED])
        for frame in to_uint8(np.asarray(video[0])):
            yield (picture, pasted(picture, frame, around)) if where.paste else (portrait, frame)


def rest_frame(vectors_td: np.ndarray, own_d: np.ndarray, relative: str) -> int | None:
    """Return the number of the driver's frame that `Drive.relative` names; None if motion is not relative.

    Raises:
      ConfigError: the driver has no such frame.
    """
    if relative == "best":
        found = int(np.argmin(np.square(vectors_td - own_d).sum(axis=-1)))
        log.info(
            "frame %d of the driver is the most similar to the portrait: motion is measured from it",
            found,
        )
        return found
    if not relative:
        return None
    if int(relative) >= len(vectors_td):
        raise ConfigError(
            f"--relative={relative}: the driver has frames 0 to {len(vectors_td) - 1}"
        )
    return int(relative)


def redirected(
    vectors_td: np.ndarray, own_d: np.ndarray, rest: int | None, strength: float
) -> np.ndarray:
    """Turn the codes (T, D) of a driver into the codes for a portrait: own + strength (v - v_rest).

    v_rest is the code of the driver's frame number `rest`, or the portrait's own code if `rest` is None.
    """
    if rest is None and strength == 1:
        return vectors_td
    reference = own_d if rest is None else vectors_td[rest]
    return own_d + np.float32(strength) * (vectors_td - reference)


def pasted(picture: np.ndarray, frame: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Put an animated square into a picture, with an edge that fades over `FEATHER` of the square's side.

    Args:
      picture: the picture, uint8 (H, W, 3).
      frame: the animated square, uint8 (S, S, 3), of any size S.
      region: x0, y0, x1, y1 of the square in the picture. It may extend beyond the picture; an edge does not fade
        where it reaches or crosses the picture's border.

    Returns:
      uint8 (H, W, 3).
    """
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = region
    left, top = max(math.ceil(x0), 0), max(math.ceil(y0), 0)
    right, bottom = min(math.floor(x1), width), min(math.floor(y1), height)
    # Take the part of the frame that covers whole pixels of the picture.
    scale = len(frame) / (x1 - x0)
    part = (np.array([left, top, right, bottom]) - [x0, y0, x0, y0]) * scale
    shown = faces.crop(frame, part, (right - left, bottom - top)).astype(np.float32)
    reach = FEATHER * (x1 - x0)

    def ramp(first: int, last: int, end: int) -> np.ndarray:
        at = np.arange(first, last) + 0.5
        near = np.full(len(at), np.inf)
        if first > 0:
            near = np.minimum(near, at - first)
        if last < end:
            near = np.minimum(near, last - at)
        t = np.clip(near / reach, 0, 1)
        return t * t * (3 - 2 * t)

    weight = ramp(top, bottom, height)[:, None] * ramp(left, right, width)[None]
    whole = picture.copy()
    under = picture[top:bottom, left:right].astype(np.float32)
    mixed = under + weight[..., None].astype(np.float32) * (shown - under)
    whole[top:bottom, left:right] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return whole


# -- codes instead of a video ---------------------------------------------------------------------


def between(keys_kd: np.ndarray, count: int) -> np.ndarray:
    """Interpolate codes (K, D) of key frames linearly, `count` steps from each to the next: ((K - 1) count + 1, D)."""
    place = np.arange((len(keys_kd) - 1) * count + 1) / count
    before = np.minimum(place.astype(int), len(keys_kd) - 2)
    share = (place - before)[:, None].astype(np.float32)
    return (1 - share) * keys_kd[before] + share * keys_kd[before + 1]


def first_picture(path: str) -> np.ndarray:
    """Read a picture, or the first frame of a video, as uint8 (H, W, 3).

    Raises:
      MediaError: the file cannot be read.
    """
    if media.is_picture(path):
        return media.read_picture(path)
    return next(iter(media.iter_video(path)))


def _key_face(name: str, how: str, side: int) -> np.ndarray:
    picture = first_picture(name)
    extent = picture.shape[1], picture.shape[0]
    boxes = locate([picture], name, how).boxes
    whole = how == "whole"
    seen = faces.square(boxes[0], *extent) if whole else faces.driving_boxes(boxes, *extent)[0]
    return faces.crop(picture, seen, side)


def outpainted(run: Run, vars, vectors: np.ndarray, drive: Drive, seed: int) -> np.ndarray:
    """Generate `drive.more` codes, (more, D), that continue `vectors`, with the token generator `drive.outpaint`.

    Raises:
      ConfigError: the other run generates no tokens, or tokens of another X-NeMo; or there are too few codes for one
        token.
    """
    other = open_run(drive.outpaint)
    if other.config.system.name != "token_gpt":
        raise ConfigError(
            f"--outpaint={drive.outpaint} holds a {other.config.system.name}, not a generator of motion tokens"
        )
    system = other.system
    check_encoder(run, vars, other.networks[ENCODER], f"--outpaint={drive.outpaint}")
    whole = len(vectors) // system.step * system.step
    if not whole:
        raise ConfigError(
            f"--outpaint needs a video of at least {system.step} frames, got {len(vectors)}"
        )
    rows, weights = other.rows(1), other.trained_vars()
    told = {"condition": np.full(rows, system.conditions, np.int32)} if system.conditions else {}
    ids = jax.jit(system.tokenised)(weights, vectors[None, len(vectors) - whole :])
    batch = {"ids": np.repeat(np.asarray(ids), rows, axis=0), **told}
    sample = other.jit_sample(count=-(-drive.more // system.step))
    made = sample(weights, other.put_rows(batch), jax.random.key(seed))["motion"]
    return np.asarray(made[0, : drive.more])


def check_encoder(run: Run, vars, encoder: str, what: str) -> None:
    """Check that `what` was made with the motion encoder of an X-NeMo run, by fingerprint.

    Raises:
      ConfigError: `what` was made with another motion encoder.
    """
    here = run.system.encoder_fingerprint(vars)
    if here != encoder:
        raise ConfigError(
            f"{what} was made with another X-NeMo than {run.workdir}, or with another checkpoint of it: its motion "
            f"encoder has the fingerprint {encoder[:12]}, this run's has {here[:12]}"
        )


def write_codes(path, motion: np.ndarray, encoder: str, fps: float) -> None:
    """Write a file of codes (F, D), with the fingerprint of their motion encoder and their frames per second."""
    arrays = {"motion": np.ascontiguousarray(motion)}
    content = safetensors.numpy.save(arrays, {"encoder": encoder, "fps": f"{fps:g}"})
    files.atomic_write(path, content)


def read_codes(path: str) -> tuple[np.ndarray, float, str]:
    """Read a file of `write_codes`: codes (F, D), frames per second, and the motion encoder's fingerprint.

    Raises:
      ConfigError: the file is missing or is not a file of codes.
    """
    try:
        if files.not_a_file(path):
            raise OSError("not a file")
        with safetensors.safe_open(path, "numpy") as file:
            motion, kept = file.get_tensor("motion"), file.metadata() or {}
            return motion, float(kept["fps"]), kept["encoder"]
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise ConfigError(
            f"--codes={path} is not a file of motion codes, such as the evaluation of configs/xnemo_gpt.py writes to "
            f"<workdir>/samples ({error})"
        ) from error


def _crops(
    path: str, boxes: np.ndarray, side: int, whole: bool, count: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the face crops of a video, `count` at a time, and how many of them are real.

    The last chunk is filled up by repeating its last crop.
    """
    squares, chunk = None, []
    for k, frame in enumerate(media.iter_video(path)):
        if squares is None:
            extent = frame.shape[1], frame.shape[0]
            same = [faces.square(box, *extent) for box in boxes] if whole else None
            squares = same or faces.driving_boxes(boxes, *extent)
        chunk.append(faces.crop(frame, squares[k], side))
        if len(chunk) == count:
            yield np.stack(chunk), count
            chunk = []
    if chunk:
        yield np.stack(chunk + chunk[-1:] * (count - len(chunk))), len(chunk)
