"""Max and average pooling of images and clips, one axis after the other.

A window's maximum is the maximum of its rows' maxima, so k + k + k values are compared instead of
k * k * k. On CPUs this is several times faster than `flax.linen.max_pool`, and gives the same values.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


def max_pool(
    x: jax.Array, window: Sequence[int], strides: Sequence[int], padding: str
) -> jax.Array:
    """Takes the maximum over windows; padding is never the maximum.

    Args:
      x: (n, ..., c), with one axis between n and c for each size in `window`.
      window, strides: the window's length and the stride along each of these axes.
      padding: "SAME" or "VALID", as TensorFlow and XLA define them.
    """
    for axis, (size, stride) in enumerate(zip(window, strides), start=1):
        x = _along(x, axis, size, stride, padding, jnp.maximum, -jnp.inf)
    return x


def mean_3x3(x_nhwc: jax.Array) -> jax.Array:
    """Takes the mean over the 3x3 pixels around each pixel; at the border, over only those inside the image."""
    total, count = x_nhwc, jnp.ones((1, *x_nhwc.shape[1:3], 1), x_nhwc.dtype)
    for axis in (1, 2):
        total, count = (_along(v, axis, 3, 1, "SAME", jnp.add, 0.0) for v in (total, count))
    return total / count


def same_padding(length: int, size: int, stride: int) -> tuple[int, int]:
    """Returns (before, after), the padding of an axis by "SAME"; an odd one is added after."""
    out = -(-length // stride)
    total = max((out - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def taps(x: jax.Array, axis: int, size: int, stride: int) -> list[jax.Array]:
    """Returns `size` arrays; array i has entry i of every window along `axis`, without padding."""
    last = (x.shape[axis] - size) // stride * stride
    return [jax.lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(size)]


def pad_axis(x: jax.Array, axis: int, before: int, after: int, value: float = 0.0) -> jax.Array:
    """Pads one axis of `x` with `before` and `after` entries of `value`."""
    if before == after == 0:
        return x
    width = [(0, 0)] * x.ndim
    width[axis] = before, after
    return jnp.pad(x, width, constant_values=value)


def _along(
    x: jax.Array,
    axis: int,
    size: int,
    stride: int,
    padding: str,
    join: Callable[[jax.Array, jax.Array], jax.Array],
    empty: float,
) -> jax.Array:
    if size == stride == 1:
        return x
    if padding == "SAME":
        x = pad_axis(x, axis, *same_padding(x.shape[axis], size, stride), empty)
    first, *rest = taps(x, axis, size, stride)
    for other in rest:
        first = join(first, other)
    return first
