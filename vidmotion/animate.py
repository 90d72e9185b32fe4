"""A portrait moved by the face in a video, for systems that look at face crops (X-NeMo, section 3.1 of its spec).

The video is read frame by frame, once to find the face and once to see its crops (and once more to be shown beside the
result). What is held of it are a vector and a latent per frame, so that memory hardly grows with its length.
"""

import dataclasses
import logging
import re
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from vidmotion import media, sharding
from vidmotion.data import faces
from vidmotion.errors import ConfigError
from vidmotion.evaluation.transfer import to_uint8
from vidmotion.run import Run

log = logging.getLogger("vidmotion.reenact")

AROUND = 2.0  # side of the portrait over that of its face: the box enlarged by half on every side, as released
CROPS = 16  # seen together
DECODED = 25  # frames decoded together, as released
NUMBER = r"-?\d+(?:\.\d+)?"
FOLLOWS = ("still", "first")


@dataclasses.dataclass(frozen=True)
class Faces:
    """Where the faces are, and what becomes of the driver's moves.

    Attributes:
      portrait, driver: as `how` of `faces.locate`, or a box x0,y0,x1,y1 in pixels that holds for all frames.
      follow: ``still``: the face stays where the portrait has it, as released; ``first``: it moves and grows
        as the driver's does from its first frame on.
    """

    portrait: str = "detect"
    driver: str = "detect"
    follow: str = "still"

    def __post_init__(self):
        if self.follow not in FOLLOWS:
            raise ConfigError(f"--follow={self.follow}: choose {' or '.join(FOLLOWS)}")


def locate(pictures: Iterable[np.ndarray], name: str, how: str) -> faces.Track:
    """`faces.locate`, or the box that `how` spells out in every picture.

    Raises:
      As `faces.locate`; ConfigError: the detector is not installed.
    """
    if re.fullmatch(rf"{NUMBER}(,{NUMBER}){{3}}", how):
        box = np.array(how.split(","), np.float64)
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ConfigError(f"the box {how} for {name}: want x0 < x1 and y0 < y1")
        count = sum(1 for _ in pictures)
        return faces.Track(np.tile(box, (count, 1)), np.ones(count, bool))
    try:
        return faces.locate(pictures, name, how)
    except ImportError as error:
        raise ConfigError(f"{name}: {error}; or say where the face is, or --box=whole") from error


def animated(
    run: Run, picture: np.ndarray, content: str, motion: str, where: Faces, seed: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The portrait as the system sees it, and the portrait moved, frame by frame.

    Args:
      run: of a system with a `face_side`.
      picture: of the portrait, uint8 (H, W, 3).
      content: name of its file.
      motion: video.
      where: the faces are.
      seed: of noise and windows.

    Yields:
      Two uint8 (size, size, 3).

    Raises:
      MediaError, ConfigError: before the first frame is made.
    """
    system, side = run.system, run.system.face_side
    extent = picture.shape[1], picture.shape[0]
    known = locate([picture], content, where.portrait)
    box = known.boxes[0]
    if where.portrait == "whole":
        around = seen = faces.square(box, *extent)
    else:
        around = faces.inside(faces.about(box, AROUND), *extent)
        seen = faces.reference_box(box, *extent)
    portrait, still = faces.crop(picture, around, system.size), faces.crop(picture, seen, side)

    track = locate(media.iter_video(motion), motion, where.driver)
    for name, found in ((content, known), (motion, track)):
        if remarks := found.report():
            log.warning("%s: %s", name, remarks)
    moves = np.tile(np.float32([0, 0, 1]), (len(track.boxes), 1))
    if where.follow == "first":
        moves = faces.f_rts(track.boxes, track.boxes[0])

    vars = run.trained_vars()
    whole = sharding.replicated(run.mesh)
    see, animate = (
        jax.jit(function, out_shardings=whole) for function in (system.motion_of, system.animate)
    )
    decode = jax.jit(system.codec.decode, out_shardings=whole)
    vectors = [
        np.asarray(see(vars, chunk[None]))[0, :real]
        for chunk, real in _crops(motion, track.boxes, side, where.driver == "whole")
    ]
    own = np.asarray(see(vars, np.repeat(still[None, None], CROPS, axis=1)))[:, :1]
    latent = animate(
        vars,
        portrait[None],
        np.concatenate(vectors)[None],
        moves[None],
        own,
        jax.random.key(seed),
    )
    for start in range(0, latent.shape[1], DECODED):
        video = decode(vars.consts, latent[:, start : start + DECODED])
        for frame in to_uint8(np.asarray(video[0])):
            yield portrait, frame


def _crops(
    path: str, boxes: np.ndarray, side: int, whole: bool
) -> Iterator[tuple[np.ndarray, int]]:
    """Face crops of a video, `CROPS` at a time, and how many are real; the last chunk is filled up."""
    squares, chunk = None, []
    for k, frame in enumerate(media.iter_video(path)):
        if squares is None:
            extent = frame.shape[1], frame.shape[0]
            same = [faces.square(box, *extent) for box in boxes] if whole else None
            squares = same or faces.driving_boxes(boxes, *extent)
        chunk.append(faces.crop(frame, squares[k], side))
        if len(chunk) == CROPS:
            yield np.stack(chunk), CROPS
            chunk = []
    if chunk:
        yield np.stack(chunk + chunk[-1:] * (CROPS - len(chunk))), len(chunk)
