"""Denoising of long videos in overlapping windows that are joined in every step (X-NeMo, "prompt travelling").

A temporal network is trained on short clips. To denoise a longer video, each step cuts it into
windows that overlap, predicts them one by one, and averages the predictions where they overlap. The windows form a
closed loop, so that the last one also contains the beginning of the video. They start at another frame in every
step, so that no seam stays in the same place.

Shapes do not depend on the offset, so that everything in this module can be jitted. The windows pass through a scan, so
the network takes the memory of `together` windows, whatever the length of the video.

B batch, F frames of the video, L frames of a window, N windows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fade(before: Any, after: Any) -> Any:
    """Blends the n frames that two windows share, each given as (..., n, H, W, C).

    The frames of the earlier window, `before`, have the weights n/(n+1), ..., 1/(n+1); `after` has the remainder to 1.
    """
    n = before.shape[-4]
    share = (np.arange(1, n + 1) / (n + 1)).astype(np.float32)
    return before + share.reshape(*[1] * (before.ndim - 4), n, 1, 1, 1) * (after - before)


@dataclasses.dataclass(frozen=True)
class Windows:
    """The overlapping windows into which a long video is cut.

    Attributes:
      frames: F, the number of frames of the video.
      length: the length of a window; a video that is not longer than this is a single window. X-NeMo: 24.
      overlap: the number of frames that a window shares with the next. X-NeMo: 4.
    """

    frames: int
    length: int = 24
    overlap: int = 4

    def __post_init__(self):
        if self.frames < 1 or not 0 <= self.overlap < self.length:
            raise ValueError(
                f"windows need frames >= 1 and 0 <= overlap < length, got {self.frames} frames, "
                f"length {self.length}, overlap {self.overlap}"
            )

    @property
    def span(self) -> int:
        """L, the number of frames in each window."""
        return min(self.length, self.frames)

    @property
    def starts(self) -> np.ndarray:
        """The first frame of each window before any offset, (N,) int32."""
        if self.frames <= self.length:
            return np.zeros(1, np.int32)
        return np.arange(0, self.frames, self.length - self.overlap, dtype=np.int32)

    def offset(self, key: jax.Array) -> jax.Array:
        """Draws the number that a step adds to all starts: () int32, uniform in 0 .. length - 1; 0 for one window."""
        if self.frames <= self.length:
            return jnp.zeros((), jnp.int32)
        return jax.random.randint(key, (), 0, self.length)

    def indices(self, offset: jax.Array | int = 0) -> jax.Array:
        """Returns the frames of each window, (N, L) int32; they wrap around at the end of the video."""
        first = jnp.asarray(self.starts)[:, None] + jnp.arange(self.span)[None, :]
        return (first + offset) % self.frames


def windowed(
    predict: Callable[[jax.Array, jax.Array, Any], jax.Array],
    per_frame: Any,
    windows: Windows,
    key: jax.Array,
    together: int = 1,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Turns a network for short clips into one for the whole video, for a sampler.

    Args:
      predict: ``predict(x, time, conditions)`` with x (B, L, ...) and conditions with leaves (B, L, ...); returns an
        array like x. Conditions of the video as a whole must be bound to it already.
      per_frame: conditions of single frames, leaves (B, F, ...).
      windows: the windows into which the video is cut.
      key: the random key of the offsets; the offset of a step depends only on this key and the step's time.
      together: the number of windows that are predicted at a time.

    Returns:
      ``f(x, time)`` with x (B, F, ...), which returns for each frame the mean over the windows that contain it, in
      float32.
    """
    count = len(windows.starts)
    together = min(together, count)
    groups = -(-count // together)
    real = jnp.arange(groups * together) < count  # the last group is padded
    per_frame = jax.tree.map(jnp.asarray, per_frame)

    def whole(x, time):
        indices = windows.indices(windows.offset(jax.random.fold_in(key, time)))
        filled = jnp.resize(indices, (groups * together, windows.span))
        weight = jnp.broadcast_to(real[:, None], filled.shape).astype(jnp.float32)

        def one(index):
            part = jax.tree.map(lambda leaf: leaf[:, index], (x, per_frame))
            return predict(part[0], time, part[1])

        def group(total, picked):
            index, share = picked
            parts = jax.vmap(one)(index).astype(jnp.float32)  # (together, B, L, ...)
            parts *= share.reshape(together, 1, windows.span, *[1] * (x.ndim - 2))
            parts = jnp.moveaxis(parts, 1, 0)  # (B, together, L, ...)
            return total.at[:, index].add(parts), None

        split = (groups, together, windows.span)
        pieces = (filled.reshape(split), weight.reshape(split))
        total, _ = jax.lax.scan(group, jnp.zeros(x.shape, jnp.float32), pieces)
        covered = jnp.zeros(windows.frames).at[filled].add(weight)
        return total / covered.reshape(1, -1, *[1] * (x.ndim - 2))

    return whole
