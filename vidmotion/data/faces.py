"""Where the face is: one steady square per clip, from a frontal-face detector that needs no download.

The detector is scikit-image's cascade of local binary patterns (extra `face`). It finds upright
faces seen from the front, no landmarks; boxes from a better one come in through `--boxes`.
"""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image

SEARCH_SIDE = 320  # pixels: pictures are searched at this longer side
SMALLEST = 1 / 8  # a face's side over the picture's shorter side


def face_box(pictures: Sequence[np.ndarray]) -> np.ndarray | None:
    """The face throughout a clip: the median, side by side, of the largest face in each picture.

    Args:
      pictures: of one clip, uint8 (H, W, 3); a few that are spread over it are enough.

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


def square(box: Sequence[float], width: float, height: float, scale: float = 1.0) -> np.ndarray:
    """A box made square within a picture.

    Args:
      box: x0, y0, x1, y1.
      width, height: of the picture.
      scale: side of the result over the box's longer side.

    Returns:
      float64 (4,): about the same centre, moved inside the picture, and no larger than fits in it.
    """
    x0, y0, x1, y1 = box
    side = min(scale * max(x1 - x0, y1 - y0), width, height)
    corner = np.array([(x0 + x1 - side) / 2, (y0 + y1 - side) / 2])
    corner = np.clip(corner, 0, [width - side, height - side])
    return np.concatenate([corner, corner + side])


def _largest_face(picture):
    height, width = picture.shape[:2]
    shrink = min(1.0, SEARCH_SIDE / max(height, width))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
    least, most = int(min(size) * SMALLEST), min(size)
    faces = detector().detect_multi_scale(small, 1.2, 1.0, (least, least), (most, most))
    if not faces:
        return None
    face = max(faces, key=lambda face: face["width"])
    left, top = face["c"], face["r"]
    return np.array([left, top, left + face["width"], top + face["height"]]) / shrink


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
