"""Finds faces in pictures and computes crops about them, with a detector that needs no download.

The detector is scikit-image's cascade of local binary patterns (extra `face`). It finds upright faces seen from the
front, without landmarks. Boxes from a better detector can be read from files (`read_boxes`).

Boxes are x0, y0, x1, y1 in pixels of the upright picture; the boxes of a clip are float64 (T, 4).
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

SEARCH_SIDE = 320  # pixels: larger pictures are shrunk so that their longer side is this
SEARCH_LEAST = 160  # pixels: smaller pictures are enlarged so that their shorter side is this
SMALLEST = 1 / 8  # smallest face found: its side over the picture's shorter side
PATIENCE = 25  # pictures (one second), after which a lost face may reappear anywhere
MARGIN = 1.1  # side of a motion encoder's crop over the face's longer side (X-NeMo as released)
SMOOTHING = 5.0  # frames: sigma by which a driver's crops are smoothed (X-NeMo as released)


class FaceError(ConfigError):
    """No face was found where one is needed; the message says what to provide instead."""


def face_box(pictures: Sequence[np.ndarray]) -> np.ndarray | None:
    """Finds one box for the face of a clip: the median of the largest face's box in each picture.

    Args:
      pictures: frames of one clip, uint8 (H, W, 3); a few that are spread over the clip are enough.

    Returns:
      float64 (4,): x0, y0, x1, y1 in pixels, from the eyebrows to the chin; each coordinate is a median of its own.
      None if fewer than half of the pictures show a face.

    Raises:
      ImportError: the extra `face` is not installed.
    """
    found = [box for box in map(_largest_face, pictures) if box is not None]
    if 2 * len(found) < len(pictures):
        return None
    return np.median(found, axis=0)


def about(box: Sequence[float], scale: float = 1.0) -> np.ndarray:
    """Returns the square about a box's centre, `scale` times the box's longer side; it may exceed the picture.

    X-NeMo enlarges a box by a fraction e on every side, which corresponds to scale = 1 + 2 e.
    """
    x0, y0, x1, y1 = box
    centre, half = np.array([x0 + x1, y0 + y1]) / 2, scale * max(x1 - x0, y1 - y0) / 2
    return np.concatenate([centre - half, centre + half])


def inside(box: np.ndarray, width: float, height: float) -> np.ndarray:
    """Moves a box inside the picture, in each direction in which it fits; in others it stays where it is."""
    extent, side = np.array([width, height]), box[2:] - box[:2]
    corner = np.where(side <= extent, np.clip(box[:2], 0, np.maximum(extent - side, 0)), box[:2])
    return np.concatenate([corner, corner + side])


def square(box: Sequence[float], width: float, height: float, scale: float = 1.0) -> np.ndarray:
    """Extends a box to a square within a picture.

    Args:
      box: x0, y0, x1, y1.
      width, height: the picture's size in pixels.
      scale: the side of the square over the box's longer side.

    Returns:
      float64 (4,): the square about the box's centre, shrunk to fit in the picture if need be and moved inside it.
    """
    wide = about(box, scale)
    side = wide[2] - wide[0]
    return inside(about(wide, min(1.0, min(width, height) / side)), width, height)


def crop(picture: np.ndarray, box: Sequence[float], size: tuple[int, int] | int) -> np.ndarray:
    """Crops a region and scales it without aliasing (Lanczos); parts outside the picture are black.

    Args:
      picture: uint8 (H, W, 3).
      box: x0, y0, x1, y1; they need not be integers.
      size: the width and height of the result, or its side if it is square.

    Returns:
      uint8 (height, width, 3).
    """
    size = (size, size) if isinstance(size, int) else size
    height, width = picture.shape[:2]
    box = np.asarray(box, np.float64)
    # Rounding errors in the coordinates must not cause padding.
    box = np.where(np.abs(box - box.round()) < 1e-6, box.round(), box)
    before = [max(0, math.ceil(-low)) for low in box[:2]]
    after = [max(0, math.ceil(high - end)) for high, end in zip(box[2:], (width, height))]
    if any(before) or any(after):
        room = [(before[1], after[1]), (before[0], after[0]), (0, 0)]
        picture, box = np.pad(picture, room), box + np.array(before * 2)
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=tuple(box.tolist())))


def reference_box(box: Sequence[float], width: float, height: float) -> np.ndarray:
    """Returns a motion encoder's crop of a still portrait: the square about the face, enlarged by `MARGIN`.

    As in X-NeMo's release, it is the face's own box, which need not be square, if the square exceeds the picture.
    """
    wide = about(box, MARGIN)
    within = wide[0] >= 0 and wide[1] >= 0 and wide[2] <= width and wide[3] <= height
    return wide if within else np.asarray(box, np.float64)


def driving_boxes(
    boxes: np.ndarray, width: float, height: float, sigma: float = SMOOTHING
) -> np.ndarray:
    """Returns a motion encoder's crops of a driving clip: squares of one size that follow the face.

    As in X-NeMo's release, the side is `MARGIN` times the longer side of the first box, rounded down to an even number.
    The centres are smoothed over time, and each square is then moved inside the frame.

    Args:
      boxes: (T, 4), the box of the face in each frame.
      width, height: the size of the frames in pixels.
      sigma: the standard deviation, in frames, of the Gaussian that smooths the centres, with the ends mirrored; 0
        turns smoothing off.

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
    """Returns position and size of faces relative to the reference's (X-NeMo, section 3.2; y first as released).

    Args:
      boxes: (T, 4), the boxes of the faces as detected.
      reference: (4,), the box of the reference's face as detected, in the same picture coordinates.

    Returns:
      float32 (T, 3): (cy - cy_ref) / s_ref, (cx - cx_ref) / s_ref, s / s_ref, with centres c and longer sides s.
    """
    boxes = np.concatenate([np.asarray(boxes, np.float64), np.asarray(reference)[None]])
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    side = (boxes[:, 2:] - boxes[:, :2]).max(1)
    move = (centre - centre[-1]) / side[-1]
    return np.stack([move[:, 1], move[:, 0], side / side[-1]], 1)[:-1].astype(np.float32)


def mirror(boxes: np.ndarray, width: float) -> np.ndarray:
    """Mirrors boxes (..., 4) left to right, in pictures that are `width` wide."""
    x0, y0, x1, y1 = np.moveaxis(np.asarray(boxes), -1, 0)
    return np.stack([width - x1, y0, width - x0, y1], -1)


# --- Finding --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Track:
    """One face through a clip.

    Attributes:
      boxes: float64 (T, 4), the box of the face in each picture. Where the face was not found, boxes are interpolated,
        or held constant at the ends.
      seen: bool (T,), whether the face was found in each picture.
      several: the number of pictures with more than one face.
    """

    boxes: np.ndarray
    seen: np.ndarray
    several: int = 0

    def report(self) -> str:
        """Returns remarks for the user; "" if the face was found everywhere and alone."""
        remarks = []
        if lost := int((~self.seen).sum()):
            remarks.append(
                f"no face was found in {lost} of {len(self.seen)} frames: its place there is estimated"
            )
        if self.several:
            remarks.append(
                f"several faces in {self.several} frames: the one that is largest at first is followed"
            )
        return "; ".join(remarks)


def locate(
    pictures: Iterable[np.ndarray],
    name: str,
    how: str | Path = "detect",
    own: Callable[[], tuple[np.ndarray, int]] | None = None,
) -> Track:
    """Locates the face in a portrait (one picture) or in a driving video (its frames, one by one).

    Args:
      pictures: the pictures, uint8 (H, W, 3) each.
      name: the name of the file, for messages and for its entry in a box file.
      how: "detect" runs the detector; "whole" takes the whole picture as the face; otherwise the path of a box file
        (`read_boxes`) with one box for all frames or one for each.
      own: `media.own_frames` of the video. If given, a box file with one box for each frame of the file also works for
        videos of varying rate, and `pictures` are not read when a box file is used.

    Raises:
      FaceError: no picture shows a face, or the box file does not fit this file; the message says what else can be
        done.
      DatasetError: the box file cannot be read.
      ImportError: `how` is "detect" and the extra `face` is not installed.
    """
    if how == "detect":
        boxes, several = follow(map(find_faces, pictures))
        if np.isnan(boxes).all():
            raise FaceError(
                f"no face was found in {name} ({len(boxes)} pictures; the detector knows upright "
                "faces seen from the front). Give its place in a box file (JSON "
                '{"'
                + Path(name).name
                + '": [x0, y0, x1, y1]}), or take the whole picture as the face (--box=whole for the portrait '
                "or video to animate, --motion_box=whole for the driving video)"
            )
        return Track(fill(steady(boxes)), ~np.isnan(boxes[:, 0]), several)
    if how == "whole":
        whole = [(0.0, 0.0, *picture.shape[1::-1]) for picture in pictures]
        return Track(np.array(whole), np.ones(len(whole), bool))
    known = read_boxes(Path(how), per_frame=True)
    found = known.get(name, known.get(Path(name).name))
    if found is None:
        raise FaceError(f"{how}: has no box for {name}, only for {', '.join(sorted(known)[:5])}")
    if own is None:
        count = sum(1 for _ in pictures)
        numbers = np.arange(count)
    else:
        numbers, count = own()
    if found.ndim == 1:
        boxes = np.tile(found, (len(numbers), 1))
    elif len(found) == count:
        boxes = found[numbers]
    elif len(found) == len(numbers):  # made from a copy of the video at a constant rate
        boxes = found
    else:
        raise FaceError(
            f"{how}: has {len(found)} boxes for the {count} frames of {name}; "
            "give one box for each frame, or one in all"
        )
    return Track(boxes, np.ones(len(boxes), bool))


def follow(faces: Iterable[np.ndarray]) -> tuple[np.ndarray, int]:
    """Follows one face through pictures that may show several.

    It starts with the largest face. In the next pictures it takes the face nearest to the last position, if its centre
    has moved by less than the face's side. After `PATIENCE` pictures without the face, it takes the largest again.

    Args:
      faces: the boxes found in each picture, (n, 4).

    Returns:
      (path, several): the boxes (T, 4), nan where the face is not found, and the number of pictures with several faces.
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
    """Smooths the boxes (T, 4) of a detector whose results jump between scales; nan stays nan.

    Each coordinate becomes the median over the pictures with a face that are at most `reach` away.
    """
    seen = ~np.isnan(boxes[:, 0])
    result = boxes.copy()
    for k in np.flatnonzero(seen):
        near = slice(max(0, k - reach), k + reach + 1)
        result[k] = np.median(boxes[near][seen[near]], axis=0)
    return result


def fill(boxes: np.ndarray) -> np.ndarray:
    """Fills gaps of nan in boxes (T, 4): linear between known boxes, constant before the first and after the last."""
    known = np.flatnonzero(~np.isnan(boxes[:, 0]))
    frames = np.arange(len(boxes))
    return np.stack([np.interp(frames, known, boxes[known, k]) for k in range(4)], 1)


def read_boxes(path: Path, per_frame: bool = False) -> dict[str, np.ndarray]:
    """Reads boxes by file name; names are relative to the folder of videos, with forward slashes.

    Args:
      path: the path of a JSON file `{name: [x0, y0, x1, y1]}`, or of a CSV file with the header `file,x0,y0,x1,y1`;
        boxes are in pixels of the upright video.
      per_frame: whether a file may also have one box for each frame: a list of boxes (JSON) or several lines (CSV).

    Returns:
      name -> float64 (4,), or (T, 4) if there is one box for each frame.

    Raises:
      DatasetError: the file cannot be read, or an entry is wrong; the message names the first one.
    """
    if files.not_a_file(path):
        raise DatasetError(f"{path}: is not a file")
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
            f"{path}: is not a box file ({error!r}); expected JSON {{name: [x0, y0, x1, y1]}}, or CSV with the "
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
            raise DatasetError(
                f"{path}: {name}: {reprlib.repr(values)} does not have x0 < x1 and y0 < y1"
            )
        boxes[name] = box
    return boxes


def find_faces(picture: np.ndarray) -> np.ndarray:
    """Finds all faces in a picture of any size: boxes float64 (n, 4), from the eyebrows to the chin.

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
    """Removes boxes whose centre lies in a larger box, because the detector finds one face at several scales."""
    kept = []
    for box in sorted(boxes, key=lambda box: box[0] - box[2]):
        x, y = (box[:2] + box[2:]) / 2
        if not any(a <= x <= c and b <= y <= d for a, b, c, d in kept):
            kept.append(box)
    return np.array(kept).reshape(-1, 4)


def _smooth(x, sigma):
    """Applies a Gaussian filter over the first axis of (T, n), cut off at four sigmas, with mirrored edges."""
    if sigma <= 0 or len(x) == 1:
        return x
    reach = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded = np.pad(x, ((reach, reach), (0, 0)), mode="symmetric")
    columns = [np.convolve(column, kernel / kernel.sum(), "valid") for column in padded.T]
    return np.stack(columns, 1)


@functools.cache
def detector():
    """Loads scikit-image's frontal-face cascade. Raises: ImportError without the extra `face`."""
    try:
        from skimage.data import lbp_frontal_face_cascade_filename
        from skimage.feature import Cascade
    except ImportError as error:
        raise ImportError(
            "finding faces needs scikit-image: pip install 'vidmotion[face]'"
        ) from error
    return Cascade(lbp_frontal_face_cascade_filename())
