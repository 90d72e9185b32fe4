"""The closed set of layout changes between PyTorch and Flax arrays, each with its inverse.

A `Transform` takes the source arrays of one rule to its target arrays and back, in numpy. Axis
letters: O output channels, I input channels, D H W space, n heads, d head width. Where a transform
permutes axes, a vector (the layer's bias) passes unchanged, so that one transform serves a layer's
weight and bias.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

Arrays = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Transform:
    """A reversible map from source arrays (PyTorch) to target arrays (Flax).

    Attributes:
      name: the name of the transform in error messages.
      forward: function from source arrays to target arrays; raises ValueError where a rank or size does not fit.
      inverse: function from target arrays to source arrays, which undoes `forward` exactly.
      parts: the number of target arrays.
      over: the field of the source template that numbers the source arrays 0, 1, ... (`stack`), or None
        for exactly one source array.
    """

    name: str
    forward: Callable[[Arrays], Arrays]
    inverse: Callable[[Arrays], Arrays]
    parts: int = 1
    over: str | None = None


def _one_to_one(name: str, forward: Callable, inverse: Callable) -> Transform:
    return Transform(name, lambda arrays: [forward(*arrays)], lambda arrays: [inverse(*arrays)])


def _permutation(name: str, axes: tuple[int, ...]) -> Transform:
    back = tuple(np.argsort(axes))

    def permute(x: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
        return x if x.ndim == 1 else _of_rank(x, len(axes)).transpose(order)

    return _one_to_one(name, lambda x: permute(x, axes), lambda x: permute(x, back))


def _of_rank(x: np.ndarray, rank: int) -> np.ndarray:
    if x.ndim != rank:
        raise ValueError(f"needs {rank} axes, got shape {x.shape}")
    return x


same = _one_to_one("same", lambda x: x, lambda x: x)
embed = _permutation("embed", (0, 1))  # (rows, width) on both sides
linear = _permutation("linear", (1, 0))  # OI -> IO
conv1d = _permutation("conv1d", (2, 1, 0))  # OIW -> WIO
conv2d = _permutation("conv2d", (2, 3, 1, 0))  # OIHW -> HWIO
conv3d = _permutation("conv3d", (2, 3, 4, 1, 0))  # OIDHW -> DHWIO


def _conv_transpose() -> Transform:
    # torch's layer is the gradient of a convolution, flax's is a convolution of the dilated input, so
    # the kernels are mirrored in space.
    def mirror(x: np.ndarray) -> np.ndarray:
        return np.flip(x, tuple(range(2, x.ndim)))

    def forward(x: np.ndarray) -> np.ndarray:
        return x if x.ndim == 1 else np.moveaxis(mirror(x), (0, 1), (-2, -1))

    def inverse(x: np.ndarray) -> np.ndarray:
        return x if x.ndim == 1 else mirror(np.moveaxis(x, (-2, -1), (0, 1)))

    return _one_to_one("conv_transpose", forward, inverse)


conv_transpose = _conv_transpose()  # IO[D][H]W -> [D][H]WIO, mirrored in space


def pointwise(space: int) -> Transform:
    """Turns the kernel of a size-1 convolution over `space` axes into that of a dense layer: OI1...1 -> IO."""

    def forward(x: np.ndarray) -> np.ndarray:
        if x.ndim == 1:
            return x
        if _of_rank(x, 2 + space).shape[2:] != (1,) * space:
            raise ValueError(f"needs a kernel of size 1, got shape {x.shape}")
        return x.reshape(x.shape[:2]).T

    def inverse(x: np.ndarray) -> np.ndarray:
        return x if x.ndim == 1 else _of_rank(x, 2).T.reshape(x.shape[::-1] + (1,) * space)

    return _one_to_one(f"pointwise({space})", forward, inverse)


def heads(n: int) -> Transform:
    """Separates the heads of a query, key or value layer: weight (nd, I) -> (I, n, d), bias (nd,) -> (n, d)."""

    def forward(x: np.ndarray) -> np.ndarray:
        return x.T.reshape(*x.shape[1:], n, -1)

    def inverse(x: np.ndarray) -> np.ndarray:
        if x.ndim < 2 or x.shape[-2] != n:
            raise ValueError(f"needs {n} heads on the last axis but one, got shape {x.shape}")
        return x.reshape(*x.shape[:-2], -1).T

    return _one_to_one(f"heads({n})", forward, inverse)


def heads_out(n: int) -> Transform:
    """Separates the heads of an attention's output layer: weight (O, nd) -> (n, d, O)."""

    def forward(x: np.ndarray) -> np.ndarray:
        return x if x.ndim == 1 else _of_rank(x, 2).T.reshape(n, -1, x.shape[0])

    def inverse(x: np.ndarray) -> np.ndarray:
        return x if x.ndim == 1 else _of_rank(x, 3).reshape(-1, x.shape[-1]).T

    return _one_to_one(f"heads_out({n})", forward, inverse)


def split(k: int, axis: int = 0, inner: Transform = same) -> Transform:
    """Cuts one source into `k` equal pieces along `axis`, and applies `inner` to each, for `k` targets."""

    def forward(arrays: Arrays) -> Arrays:
        (x,) = arrays
        return [inner.forward([piece])[0] for piece in np.split(x, k, axis)]

    def inverse(arrays: Arrays) -> Arrays:
        return [np.concatenate([inner.inverse([x])[0] for x in arrays], axis)]

    if inner.parts != 1 or inner.over:
        raise ValueError(f"split cannot hold {inner.name}; write stack(field, split(k, axis, ...))")
    return Transform(f"split({k}, {axis}, {inner.name})", forward, inverse, parts=k)


def stack(field: str, inner: Transform = same) -> Transform:
    """Applies `inner` to each of the sources that `field` numbers 0, 1, ..., and stacks them on a new first axis.

    This is for layers under `nn.scan`; the number of sources is the first dimension of the target.
    `inner` may be a `split`.
    """

    def forward(arrays: Arrays) -> Arrays:
        return [np.stack(part) for part in zip(*(inner.forward([x]) for x in arrays))]

    def inverse(arrays: Arrays) -> Arrays:
        return [inner.inverse(layer)[0] for layer in zip(*arrays)]

    if inner.over:
        raise ValueError(f"stack cannot hold {inner.name}: a rule can have only one numbered field")
    return Transform(f"stack({field}, {inner.name})", forward, inverse, inner.parts, over=field)
