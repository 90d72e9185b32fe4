"""Head pose: angles of a rotation, and APD and ARD between two sequences (spec metrics.md, 7 and 10).

Angles are (..., 3) pitch, yaw, roll, with R = Rz(roll) Ry(yaw) Rx(pitch), in radians unless a name
says degrees. APD and ARD are two names for the same number, the wrapped difference in degrees averaged over
angles and frames: BCD calls it ARD, X-NeMo and WarpFace call it APD. `geodesic` is a different number and
is never used in their place.
"""

import numpy as np
from numpy.typing import ArrayLike

from vidmotion.metrics.paired import same_frames


def rotation(angles: ArrayLike) -> np.ndarray:
    """Converts angles (..., 3) to rotation matrices float64 (..., 3, 3).

    Raises:
      ValueError: the shape is not (..., 3).
    """
    angles = np.asarray(angles, np.float64)
    if angles.shape[-1:] != (3,):
        raise ValueError(f"angles must be (..., 3) pitch, yaw, roll, got {angles.shape}")
    (sx, sy, sz), (cx, cy, cz) = (np.moveaxis(f(angles), -1, 0) for f in (np.sin, np.cos))
    rows = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def angles(matrices: ArrayLike) -> np.ndarray:
    """Returns pitch, yaw and roll of rotation matrices, the inverse of `rotation`.

    Args:
      matrices: (..., 3, 3), or (..., 4, 4) like MediaPipe's facial transformation matrices, of which only
        the upper left 3 x 3 part is used; columns may have any length.

    Returns:
      float64 (..., 3), with yaw within a quarter turn; NaN where a matrix is not finite or has a zero column.

    Raises:
      ValueError: the shape is neither of these.
    """
    matrices = np.asarray(matrices, np.float64)
    if matrices.shape[-2:] not in ((3, 3), (4, 4)):
        raise ValueError(f"matrices must be (..., 3, 3) or (..., 4, 4), got {matrices.shape}")
    r = matrices[..., :3, :3]
    with np.errstate(invalid="ignore", divide="ignore"):
        r = r / np.linalg.norm(r, axis=-2, keepdims=True)
    pitch = np.arctan2(r[..., 2, 1], r[..., 2, 2])
    yaw = -np.arcsin(np.clip(r[..., 2, 0], -1.0, 1.0))
    return np.stack([pitch, yaw, np.arctan2(r[..., 1, 0], r[..., 0, 0])], axis=-1)


def wrap_degrees(difference: ArrayLike) -> np.ndarray:
    """Wraps differences of angles in degrees to [-180, 180)."""
    return (np.asarray(difference, np.float64) + 180) % 360 - 180


def angle_distance(driving: ArrayLike, generated: ArrayLike) -> np.ndarray:
    """Returns APD / ARD of each frame: the absolute wrapped difference, averaged over the three angles, in degrees.

    Args:
      driving, generated: (n, 3) angles in radians.

    Returns:
      (n,) float64 in [0, 180].

    Raises:
      ValueError: the shapes differ, or are not (n, 3).
    """
    driving, generated = same_frames(driving, generated, "head angles")
    if driving.ndim != 2 or driving.shape[1] != 3:
        raise ValueError(f"head angles must be (n, 3) pitch, yaw, roll, got {driving.shape}")
    return np.abs(wrap_degrees(np.rad2deg(driving - generated))).mean(axis=1)


def geodesic(driving: ArrayLike, generated: ArrayLike) -> np.ndarray:
    """Returns the angle of the rotation from one head pose to the other, in degrees.

    Args:
      driving, generated: (n, 3) angles in radians.

    Returns:
      (n,) float64 in [0, 180].

    Raises:
      ValueError: the shapes differ, or are not (n, 3).
    """
    driving, generated = same_frames(driving, generated, "head angles")
    between = np.swapaxes(rotation(driving), -1, -2) @ rotation(generated)
    # The sine is used too, because the cosine alone is imprecise at small angles.
    skew = between - np.swapaxes(between, -1, -2)
    sine = np.sqrt(np.square(skew).sum(axis=(-2, -1)) / 8)
    cosine = (np.trace(between, axis1=-2, axis2=-1) - 1) / 2
    return np.rad2deg(np.arctan2(sine, cosine))
