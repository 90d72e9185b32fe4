"""CSIM, also called ID-SIM: measures whether two faces are of the same person (spec metrics.md, section 6).

    faces = align(frames, five_points)             # 112x112, [-1, 1]
    embedding = iresnet.apply(variables, faces)
    score = update(PairedScore(), embedding_a, embedding_b, found_a, found_b)
    score.row("csim", CONVENTION, weights, "256x256")

CSIM is the cosine of two embeddings of aligned faces, averaged over pairs. It is not 1 - cos, and not a mean
over persons. It falls for large poses and rewards warped copies (BCD, supplement), so it must be judged
together with motion metrics.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from vidmotion.metrics.paired import PairedScore
from vidmotion.metrics.result import MetricResult, not_computed

CONVENTION = "arcface_5_points"
NEEDS = (
    "backbone.pth of arcface_torch (model zoo of github.com/deepinsight/insightface), through python "
    "-m vidmotion.convert arcface"
)
# The positions x, y of the left eye, right eye, nose, left and right corner of the mouth (left as seen in the
# picture) in ArcFace's aligned faces of 112 x 112 pixels.
TEMPLATE = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)


def template(size: int) -> np.ndarray:
    """Returns the five points of an aligned face of size x size pixels, float64 (5, 2).

    For multiples of 112, `TEMPLATE` is scaled; for multiples of 128, it is shifted right by 8 pixels first.

    Raises:
      ValueError: `size` is a multiple of neither.
    """
    if size > 0 and size % 112 == 0:
        return TEMPLATE * (size / 112)
    if size > 0 and size % 128 == 0:
        return (TEMPLATE + np.array((8.0, 0.0))) * (size / 128)
    raise ValueError(f"faces are aligned to multiples of 112 or 128 pixels, got {size}")


def similarity_transform(points: ArrayLike, target: ArrayLike) -> np.ndarray:
    """Returns the rotation, scale and shift that best map points to target points (Umeyama 1991); no reflection.

    Args:
      points: (..., k, 2) with k of 2 or more.
      target: (k, 2) or (..., k, 2).

    Returns:
      float64 (..., 2, 3): A and t in target = A point + t.

    Raises:
      ValueError: the shapes do not fit, or the points are not finite or all coincide.
    """
    points, target = np.asarray(points, np.float64), np.asarray(target, np.float64)
    if points.ndim < 2 or points.shape[-1] != 2 or points.shape[-2] < 2:
        raise ValueError(f"points must be (..., k, 2) with k of 2 or more, got {points.shape}")
    if target.shape[-2:] != points.shape[-2:]:
        raise ValueError(
            f"points of shape {points.shape} cannot be aligned to points of shape {target.shape}"
        )
    if not (np.isfinite(points).all() and np.isfinite(target).all()):
        raise ValueError("points to align are not finite: leave frames without a face out")
    middle, middle_target = (p.mean(axis=-2, keepdims=True) for p in (points, target))
    spread = np.square(points - middle).sum(axis=-1).mean(axis=-1)
    if not (spread > 1e-12 * np.square(middle).sum(axis=(-2, -1))).all():
        raise ValueError("points to align all lie in one place")
    covariance = np.swapaxes(target - middle_target, -1, -2) @ (points - middle)
    u, sizes, vt = np.linalg.svd(covariance / points.shape[-2])
    signs = np.ones(sizes.shape)
    signs[..., -1] = np.where(np.linalg.det(u) * np.linalg.det(vt) < 0, -1.0, 1.0)
    scale = (sizes * signs).sum(axis=-1) / spread
    linear = scale[..., None, None] * ((u * signs[..., None, :]) @ vt)
    shift = np.swapaxes(middle_target, -1, -2) - linear @ np.swapaxes(middle, -1, -2)
    return np.concatenate([linear, shift], axis=-1)


def warp(images: jax.Array | np.ndarray, transforms: ArrayLike, size: int) -> jax.Array:
    """Warps images by affine maps, bilinear between pixels, 0 outside (like OpenCV's warpAffine).

    Pixel centres have whole coordinates. Unlike OpenCV, which rounds coordinates to 1/32 of a pixel and results
    to whole numbers, this function rounds neither. Like OpenCV, it does not smooth images before it shrinks
    them.

    Args:
      images: (n, h, w, c) floats.
      transforms: (n, 2, 3), from pixels x, y of the image to pixels of the result.
      size: the side of the result in pixels.

    Returns:
      (n, size, size, c) float32.
    """
    linear, shift = np.split(np.asarray(transforms, np.float64), [2], axis=-1)
    back = np.linalg.inv(linear)
    back = np.concatenate([back, -back @ shift], axis=-1)
    return _sample(jnp.asarray(images, jnp.float32), jnp.asarray(back, jnp.float32), size)


@functools.partial(jax.jit, static_argnums=2)
def _sample(images_nhwc: jax.Array, back: jax.Array, size: int) -> jax.Array:
    height, width = images_nhwc.shape[1:3]
    images_nhwc = jnp.pad(images_nhwc, ((0, 0), (1, 1), (1, 1), (0, 0)))  # 0 outside
    row, column = jnp.meshgrid(*2 * [jnp.arange(size, dtype=jnp.float32)], indexing="ij")

    def one(image_hwc: jax.Array, back: jax.Array) -> jax.Array:
        x, y = (a * column + b * row + c + 1 for a, b, c in back)
        x, y = jnp.clip(x, 0, width + 1), jnp.clip(y, 0, height + 1)
        left, top = jnp.minimum(jnp.floor(x), width), jnp.minimum(jnp.floor(y), height)
        i, j = top.astype(jnp.int32), left.astype(jnp.int32)
        x, y = (x - left)[..., None], (y - top)[..., None]
        above = (1 - x) * image_hwc[i, j] + x * image_hwc[i, j + 1]
        below = (1 - x) * image_hwc[i + 1, j] + x * image_hwc[i + 1, j + 1]
        return (1 - y) * above + y * below

    return jax.vmap(one)(images_nhwc, back)


def align(images: jax.Array | np.ndarray, points: ArrayLike, size: int = 112) -> jax.Array:
    """Cuts out and aligns faces as in ArcFace's training.

    Args:
      images: (n, h, w, 3) RGB, uint8 or floats in [0, 1].
      points: (n, 5, 2): x, y in pixels, in the order of `TEMPLATE`.
      size: the side of the result in pixels; see `template`.

    Returns:
      (n, size, size, 3) float32 in [-1, 1]; pixels outside the image are -1.

    Raises:
      ValueError: shapes that do not fit, values outside [0, 1], or points that are not finite or all coincide.
    """
    images, points = np.asarray(images), np.asarray(points, np.float64)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be (n, h, w, 3), got {images.shape}")
    if points.shape != (len(images), 5, 2):
        raise ValueError(f"points must be ({len(images)}, 5, 2), got {points.shape}")
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / 255
    elif not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images must be uint8 or floats in [0, 1], got {images.dtype}")
    elif images.size and not (images.min() >= 0 and images.max() <= 1):  # also true for NaN
        raise ValueError(f"images must lie in [0, 1], but span {images.min()} to {images.max()}")
    if not len(images):
        return jnp.zeros((0, size, size, 3))
    return 2 * warp(images, similarity_transform(points, template(size)), size) - 1


def cosine(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Returns the cosine of each pair of embeddings.

    Args:
      first, second: (n, d); the vectors may have any length but 0.

    Returns:
      (n,) float64 in [-1, 1]; NaN where an embedding is zero or not finite.

    Raises:
      ValueError: shapes differ.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"embeddings to compare have shapes {first.shape} and {second.shape}")
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = (e / np.linalg.norm(e, axis=1, keepdims=True) for e in (first, second))
        return np.clip((first * second).sum(axis=1), -1.0, 1.0)


def update(
    score: PairedScore,
    real: ArrayLike,
    generated: ArrayLike,
    real_found: ArrayLike | None = None,
    generated_found: ArrayLike | None = None,
) -> PairedScore:
    """Adds pairs of embeddings to CSIM.

    A pair without a face in the real image is dropped. A pair without a face in the generated image scores 0,
    because the identity has been lost.

    Args:
      score: the score to add to.
      real, generated: (n, d) embeddings; rows without a face may hold anything.
      real_found, generated_found: (n,) booleans: whether a face was found; None means that all were.

    Raises:
      ValueError: shapes that do not fit, or masks that are not boolean.
    """
    values = cosine(real, generated)
    found = [
        np.ones(len(values), bool) if mask is None else np.asarray(mask)
        for mask in (real_found, generated_found)
    ]
    for mask in found:
        if mask.shape != values.shape or mask.dtype != bool:
            raise ValueError(f"masks must be {len(values)} booleans, got {mask.dtype} {mask.shape}")
    score = score.update(np.where(found[1], values, 0.0), found[0])
    lost = int((found[0] & ~found[1]).sum())
    return dataclasses.replace(score, zeroed=score.zeroed + lost)


def without_weights(resolution: str, n: int) -> MetricResult:
    """Returns the row of CSIM for the case that the recogniser's weights are not available."""
    return not_computed("csim", CONVENTION, NEEDS, resolution, n)
