"""Long videos in overlapping windows, joined in every denoising step (X-NeMo, "prompt travelling").

A temporal network is trained on short clips. To denoise a longer video, each step cuts it into
windows that overlap, predicts them one by one and averages where they overlap. The windows run in a
closed loop, so that the last one also holds the beginning, and begin at another place in every
step, so that no seam stays where it is.

Shapes are fixed, whatever the offset: everything here can be jitted, and as windows pass through a
scan, the memory that a network takes is that of `together` windows, whatever the video's length.

B batch, F frames of the video, L of a window, N windows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fade(before: Any, after: Any) -> Any:
    """Blend the n frames that two windows share, each given as (..., n, H, W, C).

    The earlier window, `before`, weighs n/(n+1), ..., 1/(n+1), and `after` the rest.
    """
    n = before.shape[-4]
    share = (np.arange(1, n + 1) / (n + 1)).astype(np.float32)
    return before + share.reshape(*[1] * (before.ndim - 4), n, 1, 1, 1) * (after - before)


@dataclasses.dataclass(frozen=True)
class Windows:
    """The overlapping windows into which a long video is cut.

    Attributes:
      frames: F, of the video.
      length: the length of a window; a video that is no longer is one window of its own length. X-NeMo: 24.
      overlap: frames that a window shares with the next. X-NeMo: 4.
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
        """L, the frames of each window."""
        return min(self.length, self.frames)

    @property
    def starts(self) -> np.ndarray:
        """(N,) int32: the first frame of each window, before any offset."""
        if self.frames <= self.length:
            return np.zeros(1, np.int32)
        return np.arange(0, self.frames, self.length - self.overlap, dtype=np.int32)

    def offset(self, key: jax.Array) -> jax.Array:
        """() int32: what a step adds to all starts, uniform in 0 .. length - 1; 0 for one window."""
        if self.frames <= self.length:
            return jnp.zeros((), jnp.int32)
        return jax.random.randint(key, (), 0, self.length)

    def indices(self, offset: jax.Array | int = 0) -> jax.Array:
        """(N, L) int32: the frames of each window, around the loop."""
        first = jnp.asarray(self.starts)[:, None] + jnp.arange(self.span)[None, :]
        return (first + offset) % self.frames


def windowed(
    predict: Callable[[jax.Array, jax.Array, Any], jax.Array],
    per_frame: Any,
    windows: Windows,
    key: jax.Array,
    together: int = 1,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A network of short clips as a network of the whole video, for a sampler.

    Args:
      predict: ``predict(x, time, conditions)``, x (B, L, ...) and conditions with leaves (B, L, ...);
        an array like x. Conditions of the video as a whole it holds itself.
      per_frame: conditions of single frames, leaves (B, F, ...).
      windows: which ones.
      key: the random key of the offsets; the offset of a step is a function of it and of the step's time alone.
      together: windows predicted at a time.

    Returns:
      ``f(x, time)`` with x (B, F, ...): the mean over the windows that hold a frame, in float32.
    """
    count = len(windows.starts)
    together = min(together, count)
    groups = -(-count // together)
    real = jnp.arange(groups * together) < count  # the last group is filled up
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
