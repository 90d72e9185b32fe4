"""Where the face is, and the square about it: a detector that needs no download, and its boxes' use.

The detector is scikit-image's cascade of local binary patterns (extra `face`). It finds upright
faces seen from the front, no landmarks; boxes from a better one come in through files (`read_boxes`).

Boxes are x0, y0, x1, y1 in pixels of the upright picture; clips have theirs as float64 (T, 4).
"""

import csv
import dataclasses
import functools
import json
import math
import reprlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vidmotion import files
from vidmotion.data.records import DatasetError
from vidmotion.errors import ConfigError

SEARCH_SIDE = 320  # pixels: larger pictures are searched at this longer side
SEARCH_LEAST = 160  # pixels: smaller pictures are enlarged to this shorter side
SMALLEST = 1 / 8  # a face's side over the picture's shorter side
PATIENCE = 25  # pictures: one second, after which a lost face may turn up anywhere
MARGIN = 1.1  # side of what a motion encoder sees over the face's longer side (X-NeMo as released)
SMOOTHING = 5.0  # frames: sigma over which a driver's crop follows its face (X-NeMo as released)


class FaceError(ConfigError):
    """There is no face where one is needed; says what to give instead."""


def face_box(pictures: Sequence[np.ndarray]) -> np.ndarray | None:
    """The face throughout a clip: the median, side by side, of the largest face in each picture.

    Args:
      pictures: frames of one clip, uint8 (H, W, 3); a few that are spread over it are enough.

    Returns:
      float64 (4,): x0, y0, x1, y1 in pixels, from the eyebrows to the chin. None where fewer than half
      of the pictures show a face.

    Raises:
      ImportError: the extra `face` is not installed.
    """
    found = [box for box in map(_largest_face, pictures) if box is not None]
    if 2 * len(found) < len(pictures):
        return None
    return np.median(found, axis=0)


def about(box: Sequence[float], scale: float = 1.0) -> np.ndarray:
    """The square about a box's centre, `scale` times its longer side; it may leave the picture.

    X-NeMo enlarges a box by a fraction e on every side: that is scale = 1 + 2 e.
    """
    x0, y0, x1, y1 = box
    centre, half = np.array([x0 + x1, y0 + y1]) / 2, scale * max(x1 - x0, y1 - y0) / 2
    return np.concatenate([centre - half, centre + half])


def inside(box: np.ndarray, width: float, height: float) -> np.ndarray:
    """A box moved inside the picture, in each direction in which it fits; elsewhere as it is."""
    extent, side = np.array([width, height]), box[2:] - box[:2]
    corner = np.where(side <= extent, np.clip(box[:2], 0, np.maximum(extent - side, 0)), box[:2])
    return np.concatenate([corner, corner + side])


def square(box: Sequence[float], width: float, height: float, scale: float = 1.0) -> np.ndarray:
    """A box made square within a picture.

    Args:
      box: x0, y0, x1, y1.
      width, height: the picture's size, pixels.
      scale: side of the result over the box's longer side.

    Returns:
      float64 (4,): about the same centre, moved inside the picture, and no larger than fits in it.
    """
    wide = about(box, scale)
    side = wide[2] - wide[0]
    return inside(about(wide, min(1.0, min(width, height) / side)), width, height)


def crop(picture: np.ndarray, box: Sequence[float], size: tuple[int, int] | int) -> np.ndarray:
    """A region scaled without aliasing (Lanczos); what lies outside the picture is black.

    Args:
      picture: uint8 (H, W, 3).
      box: x0, y0, x1, y1; need not be whole numbers.
      size: width and height of the result, or its side.

    Returns:
      uint8 (height, width, 3).
    """
    size = (size, size) if isinstance(size, int) else size
    height, width = picture.shape[:2]
    box = np.asarray(box, np.float64)
    # Coordinates that are off by rounding are no reason to pad.
    box = np.where(np.abs(box - box.round()) < 1e-6, box.round(), box)
    before = [max(0, math.ceil(-low)) for low in box[:2]]
    after = [max(0, math.ceil(high - end)) for high, end in zip(box[2:], (width, height))]
    if any(before) or any(after):
        room = [(before[1], after[1]), (before[0], after[0]), (0, 0)]
        picture, box = np.pad(picture, room), box + np.array(before * 2)
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=tuple(box.tolist())))


def reference_box(box: Sequence[float], width: float, height: float) -> np.ndarray:
    """What a motion encoder sees of a still portrait: the face's square, `MARGIN` wide.

    As released: where that leaves the picture, the face's own box, which need not be square.
    """
    wide = about(box, MARGIN)
    within = wide[0] >= 0 and wide[1] >= 0 and wide[2] <= width and wide[3] <= height
    return wide if within else np.asarray(box, np.float64)


def driving_boxes(
    boxes: np.ndarray, width: float, height: float, sigma: float = SMOOTHING
) -> np.ndarray:
    """What a motion encoder sees of a driving clip: squares of one size that follow the face.

    As released: the side is `MARGIN` times the first face's, rounded down to an even number; the
    centres are smoothed over time (Gaussian, `sigma` frames, the ends mirrored; 0: as they are);
    each square is then moved inside the frame.

    Args:
      boxes: (T, 4) of the face.
      width, height: the frames' size, pixels.

    Returns:
      float64 (T, 4).
    """
    boxes = np.asarray(boxes, np.float64)
    first = about(boxes[0], MARGIN)
    side = max(2, int(first[2] - first[0]) // 2 * 2)
    centres = _smooth((boxes[:, :2] + boxes[:, 2:]) / 2, sigma)
    squares = np.concatenate([centres - side / 2, centres + side / 2], 1)
    return np.stack([inside(box, width, height) for box in squares])


def f_rts(boxes: np.ndarray, reference: Sequence[float]) -> np.ndarray:
    """Place and size of faces against the reference's face (X-NeMo, section 3.2; y first as released).

    Args:
      boxes: (T, 4), the detector's own.
      reference: (4,), likewise, in the same picture coordinates.

    Returns:
      float32 (T, 3): (cy - cy_ref) / s_ref, (cx - cx_ref) / s_ref, s / s_ref, with centres c and longer
      sides s.
    """
    boxes = np.concatenate([np.asarray(boxes, np.float64), np.asarray(reference)[None]])
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    side = (boxes[:, 2:] - boxes[:, :2]).max(1)
    move = (centre - centre[-1]) / side[-1]
    return np.stack([move[:, 1], move[:, 0], side / side[-1]], 1)[:-1].astype(np.float32)


def mirror(boxes: np.ndarray, width: float) -> np.ndarray:
    """Boxes (..., 4) of pictures `width` wide that are turned left to right."""
    x0, y0, x1, y1 = np.moveaxis(np.asarray(boxes), -1, 0)
    return np.stack([width - x1, y0, width - x0, y1], -1)


# --- Finding --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Track:
    """One face through a clip.

    Attributes:
      boxes: float64 (T, 4); where it was not seen, in between its neighbours, or held at the ends.
      seen: bool (T,).
      several: pictures with more than one face.
    """

    boxes: np.ndarray
    seen: np.ndarray
    several: int = 0

    def report(self) -> str:
        """What a person should know of it; "" where all went well."""
        remarks = []
        if lost := int((~self.seen).sum()):
            remarks.append(f"no face in {lost} of {len(self.seen)} frames: its place is estimated")
        if self.several:
            remarks.append(f"several faces in {self.several} frames: the largest one is followed")
        return "; ".join(remarks)


def locate(
    pictures: Iterable[np.ndarray],
    name: str,
    how: str | Path = "detect",
    own: Callable[[], tuple[np.ndarray, int]] | None = None,
) -> Track:
    """The face of a portrait (one picture) or of a driving video (its frames, one by one).

    Args:
      pictures: uint8 (H, W, 3) each.
      name: the name of the file, for messages and for its entry in a box file.
      how: "detect"; "whole", the whole picture is the face; or a box file (`read_boxes`), with one
        box, or one for each frame.
      own: `media.own_frames` of the video; boxes, one for each frame of the file, then follow a rate that varies.
        A box file is used without looking at `pictures` then.

    Raises:
      FaceError: no face anywhere, or none given for this file; says what else can be done.
      DatasetError: the box file cannot be read.
      ImportError: "detect" without the extra `face`.
    """
    if how == "detect":
        boxes, several = follow(map(find_faces, pictures))
        if np.isnan(boxes).all():
            raise FaceError(
                f"no face was found in {name} ({len(boxes)} pictures; the detector knows upright "
                "faces seen from the front). Give its place in a box file (JSON "
                '{"'
                + Path(name).name
                + '": [x0, y0, x1, y1]}), or take the whole picture as the face (--box=whole for who is to '
                "move, --motion_box=whole for the driver)"
            )
        return Track(fill(steady(boxes)), ~np.isnan(boxes[:, 0]), several)
    if how == "whole":
        whole = [(0.0, 0.0, *picture.shape[1::-1]) for picture in pictures]
        return Track(np.array(whole), np.ones(len(whole), bool))
    known = read_boxes(Path(how), per_frame=True)
    found = known.get(name, known.get(Path(name).name))
    if found is None:
        raise FaceError(f"{how}: no box for {name}; it has {', '.join(sorted(known)[:5])}")
    if own is None:
        count = sum(1 for _ in pictures)
        numbers = np.arange(count)
    else:
        numbers, count = own()
    if found.ndim == 1:
        boxes = np.tile(found, (len(numbers), 1))
    elif len(found) == count:
        boxes = found[numbers]
    elif len(found) == len(numbers):  # made of a copy at a constant rate
        boxes = found
    else:
        raise FaceError(f"{how}: {len(found)} boxes for the {count} frames of {name}")
    return Track(boxes, np.ones(len(boxes), bool))


def follow(faces: Iterable[np.ndarray]) -> tuple[np.ndarray, int]:
    """One face through pictures that may show several.

    The largest to begin with, then the one nearest to where it was last, if its centre moved by less
    than the face's side; after `PATIENCE` pictures without it, the largest again.

    Args:
      faces: the boxes found in each picture, (n, 4).

    Returns:
      (T, 4), nan where it is not seen; the number of pictures with several faces.
    """
    path, last, lost, several = [], None, 0, 0
    for boxes in faces:
        several += len(boxes) > 1
        found = None
        if len(boxes) and (last is None or lost >= PATIENCE):
            found = boxes[np.argmax(boxes[:, 2] - boxes[:, 0])]
        elif len(boxes):
            moved = np.hypot(*((boxes - last).reshape(-1, 2, 2).mean(1).T))
            if moved.min() < last[2] - last[0]:
                found = boxes[np.argmin(moved)]
        lost = 0 if found is not None else lost + 1
        last = last if found is None else found
        path.append(np.full(4, np.nan) if found is None else found)
    return np.array(path, np.float64).reshape(-1, 4), several


def steady(boxes: np.ndarray, reach: int = 2) -> np.ndarray:
    """(T, 4) of a detector whose boxes jump between scales: the median, side by side, of what was
    seen up to `reach` pictures away; nan stays nan."""
    seen = ~np.isnan(boxes[:, 0])
    result = boxes.copy()
    for k in np.flatnonzero(seen):
        near = slice(max(0, k - reach), k + reach + 1)
        result[k] = np.median(boxes[near][seen[near]], axis=0)
    return result


def fill(boxes: np.ndarray) -> np.ndarray:
    """(T, 4) with gaps of nan -> without: linear between what is known, held before and after it."""
    known = np.flatnonzero(~np.isnan(boxes[:, 0]))
    frames = np.arange(len(boxes))
    return np.stack([np.interp(frames, known, boxes[known, k]) for k in range(4)], 1)


def read_boxes(path: Path, per_frame: bool = False) -> dict[str, np.ndarray]:
    """Boxes by file name, relative to the folder of videos with forward slashes.

    Args:
      path: JSON `{name: [x0, y0, x1, y1]}`, or CSV with the header `file,x0,y0,x1,y1`; pixels of
        the upright video.
      per_frame: whether an entry may also be a list of boxes, one for each frame (JSON), or several
        lines of one file (CSV).

    Returns:
      name -> float64 (4,), or (T, 4) where there are several.

    Raises:
      DatasetError: it cannot be read so; names the first wrong entry.
    """
    if files.not_a_file(path):
        raise DatasetError(f"{path}: not a file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            entries = list(json.loads(text).items())
        else:
            lines = {}
            for row in csv.DictReader(text.splitlines()):
                box = [row[k] for k in ("x0", "y0", "x1", "y1")]
                lines.setdefault(row["file"], []).append(box)
            one = {name: found[0 if len(found) == 1 or not per_frame else slice(None)]
                   for name, found in lines.items()}  # fmt: skip
            entries = list(one.items())
    except (
        *(OSError, UnicodeDecodeError, ValueError, KeyError, AttributeError, RecursionError),
        csv.Error,
    ) as error:
        raise DatasetError(
            f"{path}: not a box file ({error!r}); JSON {{name: [x0, y0, x1, y1]}}, or CSV with the "
            "header file,x0,y0,x1,y1"
        ) from error
    boxes = {}
    for name, values in entries:
        try:
            box = np.array(values, np.float64)
        except (TypeError, ValueError, OverflowError, RecursionError):
            box = np.zeros(0)
        if box.shape != (4,) and not (per_frame and box.ndim == 2 and box.shape[1:] == (4,)):
            raise DatasetError(f"{path}: {name}: {reprlib.repr(values)} is not x0, y0, x1, y1")
        x0, y0, x1, y1 = box.T
        if not (np.isfinite(box).all() and np.all(x0 < x1) and np.all(y0 < y1)):
            raise DatasetError(f"{path}: {name}: {reprlib.repr(values)} is not x0 < x1, y0 < y1")
        boxes[name] = box
    return boxes


def find_faces(picture: np.ndarray) -> np.ndarray:
    """All faces that the detector sees, float64 (n, 4), eyebrows to chin, of a picture of any size.

    Raises:
      ImportError: the extra `face` is not installed.
    """
    height, width = picture.shape[:2]
    scale = max(min(1.0, SEARCH_SIDE / max(height, width)), SEARCH_LEAST / min(height, width))
    scale = min(scale, SEARCH_SIDE * 4 / max(height, width))  # a very long strip is not a portrait
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.BOX if scale <= 1 else Image.Resampling.BICUBIC
    small = np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, how))
    least, most = int(min(size) * SMALLEST), min(size)
    faces = detector().detect_multi_scale(small, 1.2, 1.0, (least, least), (most, most))
    boxes = [(f["c"], f["r"], f["c"] + f["width"], f["r"] + f["height"]) for f in faces]
    return _distinct(np.array(boxes, np.float64).reshape(-1, 4)) / scale


def _largest_face(picture):
    boxes = find_faces(picture)
    return boxes[np.argmax(boxes[:, 2] - boxes[:, 0])] if len(boxes) else None


def _distinct(boxes):
    """Without boxes whose centre lies in a larger one: the detector sees one face at several scales."""
    kept = []
    for box in sorted(boxes, key=lambda box: box[0] - box[2]):
        x, y = (box[:2] + box[2:]) / 2
        if not any(a <= x <= c and b <= y <= d for a, b, c, d in kept):
            kept.append(box)
    return np.array(kept).reshape(-1, 4)


def _smooth(x, sigma):
    """Gaussian over the first axis of (T, n), four sigmas wide, the ends mirrored with the edge."""
    if sigma <= 0 or len(x) == 1:
        return x
    reach = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded = np.pad(x, ((reach, reach), (0, 0)), mode="symmetric")
    columns = [np.convolve(column, kernel / kernel.sum(), "valid") for column in padded.T]
    return np.stack(columns, 1)


@functools.cache
def detector():
    """scikit-image's frontal-face cascade. Raises: ImportError without the extra `face`."""
    try:
        from skimage.data import lbp_frontal_face_cascade_filename
        from skimage.feature import Cascade
    except ImportError as error:
        raise ImportError(
            "finding faces needs scikit-image: pip install 'vidmotion[face]'"
        ) from error
    return Cascade(lbp_frontal_face_cascade_filename())
