"""Pixel metrics between images: L1, PSNR, SSIM and relative sharpness, one value per frame.

Images are (..., H, W, C) floats in [0, 1]; every leading axis (batch, time) is kept. All functions
are pure, run under `jit`, and compute in float32. The value for a clip is the mean of its per-frame
values (not the PSNR of the mean error); the value for a data set is the mean over clips.

Invalid input raises a ValueError: shapes and dtypes are always checked, the value range (and NaN) only
outside `jit`, where the values are known. The caller must clip generated images to [0, 1], because only
the caller knows whether clipping is right.
"""

import jax
import jax.numpy as jnp
import numpy as np

Images = jax.Array | np.ndarray

PSNR_CONVENTIONS = ("vidtok", "common", "uint8")
SSIM_CONVENTIONS = ("wang", "vidtok")

_WINDOW = 11  # in pixels
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def l1(x: Images, y: Images) -> jax.Array:
    """Returns the mean absolute difference over H, W, C.

    Args:
        x, y: (..., H, W, C) in [0, 1].

    Returns:
        (...,) float32 in [0, 1], the scale of X-NeMo's table 1.

    Raises:
        ValueError: shapes differ, not floats, or values outside [0, 1].
    """
    x, y = _checked(x, y)
    return jnp.mean(jnp.abs(x - y), axis=(-3, -2, -1))


def psnr(x: Images, y: Images, convention: str) -> jax.Array:
    """Returns the peak signal-to-noise ratio of each frame, 10 log10(R^2 / MSE), in dB.

    Args:
        x, y: (..., H, W, C) in [0, 1].
        convention: the definition to use:
            "vidtok": R = 1 and 1e-8 is added to the MSE, so equal frames give 80 dB (VidTok's and
                VidTwin's evaluation script);
            "common": R = 1, and 100 dB where MSE < 1e-10 (common_metrics_on_video_quality);
            "uint8": R = 255, and both images are rounded to 0..255, half to even; equal frames give
                infinity (scikit-image).

    Returns:
        (...,) float32.

    Raises:
        ValueError: unknown convention, shapes differ, not floats, or values outside [0, 1].
    """
    x, y = _checked(x, y)
    if convention == "vidtok":
        return -10 * jnp.log10(_mse(x, y) + 1e-8)
    if convention == "common":
        mse = _mse(x, y)
        return jnp.where(mse < 1e-10, 100.0, -10 * jnp.log10(jnp.maximum(mse, 1e-10)))
    if convention == "uint8":
        return 10 * jnp.log10(255**2 / _mse(jnp.round(x * 255), jnp.round(y * 255)))
    raise ValueError(f"convention must be one of {PSNR_CONVENTIONS}, got {convention!r}")


def ssim(x: Images, y: Images, convention: str, *, gray: bool = False) -> jax.Array:
    """Returns the structural similarity of each frame (Wang et al. 2004), averaged over the map and channels.

    The window is an 11 x 11 Gaussian of sigma 1.5, with K1 = 0.01, K2 = 0.03, R = 1, population covariance
    and valid positions only. This equals scikit-image's `structural_similarity(..., gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False, data_range=1)`, not scikit-image's defaults.

    Args:
        x, y: (..., H, W, C) in [0, 1].
        convention: "wang"; or "vidtok", which first averages blocks of f x f pixels with
            f = max(1, round(min(H, W) / 256)). The two agree below 384 pixels.
        gray: whether to convert RGB to BT.601 luma first, as Wang's page asks; few papers do.

    Returns:
        (...,) float32, at most 1.

    Raises:
        ValueError: unknown convention, shapes differ, not floats, values outside [0, 1], frames
            smaller than the window, or `gray` without three channels.
    """
    if convention not in SSIM_CONVENTIONS:
        raise ValueError(f"convention must be one of {SSIM_CONVENTIONS}, got {convention!r}")
    x, y = _checked(x, y)
    if gray:
        if x.shape[-1] != 3:
            raise ValueError(f"luma needs RGB, got {x.shape[-1]} channels")
        x, y = _luma(x), _luma(y)
    if convention == "vidtok":
        factor = max(1, round(min(x.shape[-3:-1]) / 256))  # half to even, like the original
        x, y = _pool(x, factor), _pool(y, factor)
    if min(x.shape[-3:-1]) < _WINDOW:
        raise ValueError(f"SSIM needs frames of {_WINDOW} x {_WINDOW} or more, got {x.shape}")

    # Variances are E[v^2] - E[v]^2 after subtracting each channel's mean: in bright, flat frames the
    # rounding error of float32 would otherwise be noticeable beside c2 = 9e-4.
    level_x, level_y = (v.mean(axis=(-3, -2), keepdims=True) for v in (x, y))
    x, y = x - level_x, y - level_y
    mean_x, mean_y = _smooth(x), _smooth(y)
    variances = _smooth(x * x) + _smooth(y * y) - mean_x**2 - mean_y**2
    covariance = _smooth(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + level_x, mean_y + level_y
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return jnp.mean(luminance * structure, axis=(-3, -2, -1))


def sharpness(x: Images, y: Images) -> jax.Array:
    """Returns the gradient energy of each frame of `x` divided by that of `y`.

    The gradient energy is the sum of the squared differences of neighbouring pixels, along both axes and over all
    channels. 1 is as sharp as `y`; a blurred picture is below 1, and a noisy one may be above. PSNR rewards the blur of
    an uncertain answer, and this ratio shows it. It is not from any of the papers.

    Args:
        x, y: (..., H, W, C) in [0, 1].

    Returns:
        (...,) float32, at least 0; a frame of `y` that has one colour only counts as one of energy 1e-10.

    Raises:
        ValueError: shapes differ, not floats, or values outside [0, 1].
    """
    x, y = _checked(x, y)
    return _gradient_energy(x) / jnp.maximum(_gradient_energy(y), 1e-10)


def _gradient_energy(x: jax.Array) -> jax.Array:
    return sum(jnp.sum(jnp.square(jnp.diff(x, axis=axis)), axis=(-3, -2, -1)) for axis in (-3, -2))


def _checked(x: Images, y: Images) -> tuple[jax.Array, jax.Array]:
    if x.shape != y.shape:
        raise ValueError(f"images to compare have shapes {x.shape} and {y.shape}")
    if x.ndim < 3:
        raise ValueError(f"images must be (..., H, W, C), got {x.shape}")
    for name, image in (("first", x), ("second", y)):
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise ValueError(f"the {name} images must be floats in [0, 1], got {image.dtype}")
        if not isinstance(image, jax.core.Tracer) and image.size:
            low, high = float(image.min()), float(image.max())
            if not (low >= 0 and high <= 1):  # also true for NaN
                raise ValueError(f"the {name} images must lie in [0, 1], but span {low} to {high}")
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def _mse(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(x - y), axis=(-3, -2, -1))


def _luma(x: jax.Array) -> jax.Array:
    return sum(weight * x[..., i : i + 1] for i, weight in enumerate(_LUMA))


def _pool(x: jax.Array, factor: int) -> jax.Array:
    """Averages blocks of factor x factor pixels; a remainder at the far edges is left out."""
    *lead, height, width, channels = x.shape
    height, width = height // factor, width // factor
    x = x[..., : height * factor, : width * factor, :]
    return x.reshape(*lead, height, factor, width, factor, channels).mean(axis=(-4, -2))


def _smooth(x: jax.Array) -> jax.Array:
    """Applies a separable Gaussian at valid positions; sums of slices keep float32 precision on every backend."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights = (weights / weights.sum()).tolist()
    for axis in (x.ndim - 3, x.ndim - 2):
        size = x.shape[axis] - _WINDOW + 1
        x = sum(
            weight * jax.lax.slice_in_dim(x, start, start + size, axis=axis)
            for start, weight in enumerate(weights)
        )
    return x
