"""Measures how steady a video is: flicker and shaking, which no single frame shows.

None of these measures is from a paper. Videos are (..., T, H, W, C) floats in [0, 1] or uint8; every leading axis is
kept, and all functions run under `jit`.
"""

import jax
import jax.numpy as jnp
import numpy as np

Video = jax.Array | np.ndarray


def flicker(x: Video) -> jax.Array:
    """Returns the mean of |x[t-1] - 2 x[t] + x[t+1]| over inner frames, pixels and colours: less is steadier.

    It is zero for a still video and for brightness that changes evenly; an alternation between a and b gives
    2 |a - b|. True motion adds to it, so it should be judged by its difference from the flicker of the driving
    video.

    Args:
      x: a video of at least 3 frames.

    Returns:
      (...,) float32.

    Raises:
      ValueError: wrong rank or dtype, too few frames, or values outside [0, 1].
    """
    x = _checked(x, 3)
    return jnp.mean(jnp.abs(_change(_change(x))), axis=(-4, -3, -2, -1))


def change_error(x: Video, y: Video) -> jax.Array:
    """Returns the mean of |(y[t+1] - y[t]) - (x[t+1] - x[t])|: how much the generated y changes unlike the true x.

    A constant error in the colour or place of a still background costs nothing, but flicker does.

    Args:
      x, y: videos of equal shapes, with at least 2 frames.

    Returns:
      (...,) float32.

    Raises:
      ValueError: shapes differ, and as `flicker`.
    """
    if x.shape != y.shape:
        raise ValueError(f"videos to compare have shapes {x.shape} and {y.shape}")
    x, y = _checked(x, 2), _checked(y, 2)
    return jnp.mean(jnp.abs(_change(y) - _change(x)), axis=(-4, -3, -2, -1))


def seam(x: Video, y: Video, window: int, overlap: int = 0) -> tuple[jax.Array, jax.Array]:
    """Returns `change_error` at the borders of the windows in which y was made, and elsewhere.

    The two are about equal if the borders are not visible.

    Args:
      x, y: videos of equal shapes, with at least 2 frames.
      window: the number of frames in a window.
      overlap: the number of frames that a window shares with the next. The changes that lead to these frames, and to
        the first frame after them, count as the border.

    Returns:
      two (...,) float32: at the borders, and elsewhere; NaN if there are no such frames.

    Raises:
      ValueError: shapes differ, and as `flicker`.
    """
    if x.shape != y.shape:
        raise ValueError(f"videos to compare have shapes {x.shape} and {y.shape}")
    x, y = _checked(x, 2), _checked(y, 2)
    error = jnp.mean(jnp.abs(_change(y) - _change(x)), axis=(-3, -2, -1))
    frames, step = x.shape[-4], window - overlap
    later = np.arange(1, frames)  # the frame that each change leads to
    begins = np.arange(step, frames - overlap, step)[:, None]  # the windows after the first
    border = ((begins <= later[None]) & (later[None] <= begins + overlap)).any(axis=0)
    return error[..., border].mean(axis=-1), error[..., ~border].mean(axis=-1)


def _change(x: jax.Array) -> jax.Array:
    return x[..., 1:, :, :, :] - x[..., :-1, :, :, :]


def _checked(x: Video, least: int) -> jax.Array:
    if x.ndim < 4 or x.shape[-4] < least:
        raise ValueError(
            f"videos must be (..., T, H, W, C) of {least} frames or more, got {x.shape}"
        )
    if x.dtype == np.uint8:
        return jnp.asarray(x, jnp.float32) / 255
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"videos must be uint8 or floats in [0, 1], got {x.dtype}")
    if not isinstance(x, jax.core.Tracer) and x.size:
        low, high = float(x.min()), float(x.max())
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise ValueError(f"videos must lie in [0, 1], but span {low} to {high}")
    return jnp.asarray(x, jnp.float32)
