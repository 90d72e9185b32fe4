"""Preprocesses frames for the networks of FID and FVD, under each of the published conventions.

Numbers under different conventions must not be compared, because resizing alone changes them (spec
metrics.md, sections 4 and 5). Frames are uint8, or floats in [0, 1]; most conventions round floats to
0..255, because the published scripts read stored files. Other input raises a ValueError; the value range
(and NaN) can only be checked outside `jit`. All conventions resize by linear maps of rows and columns and
run under `jit`. Shape suffixes: n images or clips, t frames, h height, w width, c colours.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

Frames = jax.Array | np.ndarray

INCEPTION_SIZE = 299
I3D_SIZE = 224
KINDS = ("half_pixel", "tf1", "pil_bicubic")


@dataclasses.dataclass(frozen=True)
class ImageConvention:
    """How images are prepared for the Inception network.

    Attributes:
      kind: the kind of resizing, one of `KINDS`.
      centre: the value in 0..255 that is mapped to zero; values are also divided by it.
      divide_by: the divisor of the covariance, "N-1" or "N".
    """

    kind: str
    centre: float
    divide_by: str = "N-1"


@dataclasses.dataclass(frozen=True)
class ClipConvention:
    """How clips are prepared for I3D, and how its features are evaluated.

    Attributes:
      kind: the kind of resizing, one of `KINDS`.
      crop: True: the shorter side is resized and the centre cut out; False: both sides are resized to the square.
      quantise: how floats are brought to 0..255: "round", "truncate" (as VideoGPT's script does), or "keep" (scaled
        only).
      bn_eps: the epsilon of the network's batch norms.
      divide_by: the divisor of the covariance, "N-1" or "N".
    """

    kind: str
    crop: bool
    quantise: str
    bn_eps: float = 1e-3
    divide_by: str = "N-1"


IMAGE_CONVENTIONS = {
    # mseitzer/pytorch-fid, most papers on faces.
    "pytorch_fid": ImageConvention("half_pixel", 127.5),
    # The original, torch-fidelity and StyleGAN's scripts.
    "tf_graph": ImageConvention("tf1", 128.0),
    # clean-fid.
    "clean": ImageConvention("pil_bicubic", 128.0),
}
CLIP_CONVENTIONS = {
    # fvd-comparison and common_metrics_on_video_quality.
    "styleganv_np": ClipConvention("half_pixel", True, "keep"),
    # universome/stylegan-v.
    "styleganv": ClipConvention("half_pixel", False, "round", divide_by="N"),
    # wilson1yan/VideoGPT.
    "videogpt": ClipConvention("half_pixel", True, "truncate", bn_eps=1e-5),
    # google-research/frechet_video_distance.
    "tf": ClipConvention("tf1", False, "round"),
}
FID_DEFAULT = "pytorch_fid"
FVD_DEFAULT = "styleganv_np"


def convention_of(name: str, known: dict) -> ImageConvention | ClipConvention:
    """Returns the entry `name` of `known`, one of the two tables of conventions.

    Raises:
      ValueError: there is no convention of this name.
    """
    if name not in known:
        raise ValueError(f"convention must be one of {', '.join(known)}, got {name!r}")
    return known[name]


def for_inception(x_nhwc: Frames, convention: str = FID_DEFAULT) -> jax.Array:
    """Prepares images for `InceptionV3`.

    Args:
      x_nhwc: RGB (n, h, w, 3), uint8 or floats in [0, 1], which are rounded to 0..255, half to even.
      convention: a key of `IMAGE_CONVENTIONS`.

    Returns:
      (n, 299, 299, 3) float32, about [-1, 1].

    Raises:
      ValueError: unknown convention, wrong shape or dtype, or values outside [0, 1].
    """
    how = convention_of(convention, IMAGE_CONVENTIONS)
    _check(x_nhwc, 4, "images must be (n, h, w, 3)")
    x = resize(_bytes(x_nhwc, "round"), how.kind, (INCEPTION_SIZE, INCEPTION_SIZE))
    if how.kind == "pil_bicubic":  # the negative lobes of its kernel overshoot
        x = jnp.clip(x, 0.0, 255.0)
    return (x - how.centre) / how.centre


def for_i3d(x_nthwc: Frames, convention: str = FVD_DEFAULT) -> jax.Array:
    """Prepares clips for `I3D`.

    Args:
      x_nthwc: RGB (n, t, h, w, 3), uint8 or floats in [0, 1], which are quantised as the convention says.
      convention: a key of `CLIP_CONVENTIONS`.

    Returns:
      (n, t, 224, 224, 3) float32 in [-1, 1].

    Raises:
      ValueError: unknown convention, wrong shape or dtype, or values outside [0, 1].
    """
    how = convention_of(convention, CLIP_CONVENTIONS)
    _check(x_nthwc, 5, "clips must be (n, t, h, w, 3)")
    n, t, h, w, _ = x_nthwc.shape
    x = _bytes(x_nthwc, how.quantise).reshape(n * t, h, w, 3)
    size = (I3D_SIZE, I3D_SIZE)
    if how.crop:
        short = min(h, w)
        size = math.ceil(h * I3D_SIZE / short), math.ceil(w * I3D_SIZE / short)
    x = resize(x, how.kind, size)
    top, left = ((side - I3D_SIZE) // 2 for side in size)
    x = x[:, top : top + I3D_SIZE, left : left + I3D_SIZE]
    return (x / 127.5 - 1.0).reshape(n, t, I3D_SIZE, I3D_SIZE, 3)


def resize(x_nhwc: Frames, kind: str, size: tuple[int, int]) -> jax.Array:
    """Resizes images to another height and width.

    Args:
      x_nhwc: (n, h, w, c), any real dtype.
      kind: "half_pixel": bilinear between pixel centres without smoothing, like PyTorch's
        ``interpolate(mode="bilinear", align_corners=False)``; "tf1": bilinear with source positions
        ``i * in / out``, like TensorFlow 1's ``resize_bilinear``; "pil_bicubic": like Pillow's BICUBIC on each
        colour in floats, which smooths when it shrinks an image.
      size: (height, width) of the result.

    Returns:
      (n, *size, c) float32.

    Raises:
      ValueError: unknown kind.
    """
    x = jnp.asarray(x_nhwc, jnp.float32)
    rows, columns = (matrix(kind, n, m) for n, m in zip(x.shape[1:3], size))
    # Like Pillow, columns come first. Without full precision, accelerators round to 10 bits.
    x = jnp.einsum("nhwc,vw->nhvc", x, columns, precision="highest")
    return jnp.einsum("nhvc,uh->nuvc", x, rows, precision="highest")


def matrix(kind: str, length: int, out: int) -> np.ndarray:
    """Returns weights (out, length) float32: how much each old pixel of a line counts in each new one; see `resize`."""
    i, pixels = np.arange(out)[:, None], np.arange(length)[None]
    if kind == "pil_bicubic":
        scale = max(length / out, 1.0)  # the filter is widened to shrink, but never narrowed
        centre = (i + 0.5) * length / out
        first = np.maximum(np.floor(centre - 2.0 * scale + 0.5), 0)
        last = np.minimum(np.floor(centre + 2.0 * scale + 0.5), length)
        weights = _cubic((pixels - centre + 0.5) / scale)
        weights = np.where((pixels >= first) & (pixels < last), weights, 0.0)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    if kind == "half_pixel":
        place = np.maximum((i + 0.5) * length / out - 0.5, 0.0)
    elif kind == "tf1":
        place = i * length / out
    else:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    # Interpolates between two neighbours; positions beyond the last pixel take the last pixel.
    return np.maximum(1.0 - np.abs(np.minimum(place, length - 1) - pixels), 0.0).astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Evaluates Keys' interpolation kernel with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _check(x: Frames, rank: int, want: str) -> None:
    if x.ndim != rank or x.shape[-1] != 3 or 0 in x.shape[1:]:
        raise ValueError(f"{want}, got {x.shape}")
    if x.dtype == np.uint8:
        return
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"frames must be uint8 or floats in [0, 1], got {x.dtype}")
    if not isinstance(x, jax.core.Tracer) and x.size:
        low, high = float(x.min()), float(x.max())
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise ValueError(f"frames must lie in [0, 1], but span {low} to {high}")


def _bytes(x: Frames, quantise: str) -> jax.Array:
    """Converts frames to float32 values on the scale 0..255, with floats quantised as `quantise` says."""
    if x.dtype == np.uint8:
        return jnp.asarray(x, jnp.float32)
    x = 255.0 * jnp.asarray(x, jnp.float32)
    return {"round": jnp.round, "truncate": jnp.floor, "keep": lambda v: v}[quantise](x)
