"""Work done piece by piece, so that memory is that of one piece.

Where the batch is cut over a mesh, each device goes through its own rows: a loop over the rows as they are would
bring every row to every device.

A compiler counts the operations in the body of a loop once, however often the loop runs: to count them all, trace
within `all_at_once`.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import PartitionSpec

PyTree = Any
BATCH_AXES = ("data", "fsdp")  # of the mesh, that cut the batch
_WHOLE = contextvars.ContextVar("whole", default=False)


@contextlib.contextmanager
def all_at_once() -> Iterator[None]:
    """What is traced within is not cut into pieces: to be counted, not to be run."""
    token = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(token)


def wanted() -> bool:
    """Whether what is traced now may be cut into pieces."""
    return not _WHOLE.get()


def row_shards(rows: int) -> int:
    """Devices over which an axis of `rows` that begins with the batch is cut, where it is traced.

    1 outside of `sharding.OnMesh`, and where the mesh does not divide the rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)
    return 1 if rows % shards else shards


def cuts(length: int, values: int, limit: int) -> int:
    """Into how many equal pieces an axis of `length` is cut, so that of `values` in all each piece holds `limit` at
    most, or those of one place on the axis."""
    divisors = (p for p in range(1, length) if not length % p and values <= limit * p)
    return next(divisors, length)


def each(
    function: Callable[[PyTree], PyTree], rows: PyTree, size: int = 1, shards: int = 1
) -> PyTree:
    """`function` of every row of the leading axis, one piece after the other.

    Args:
      function: takes one row.
      rows: arrays (n, ...).
      size: rows that a device takes at a time; its last piece may be smaller.
      shards: over how many devices the leading axis is cut (`row_shards`), a divisor of n.

    Returns:
      Arrays (n, ...).
    """
    if not wanted():
        return jax.vmap(function)(rows)
    if shards == 1:
        return jax.lax.map(function, rows, batch_size=size)

    def pinned(x):
        free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 2)
        return jax.lax.with_sharding_constraint(x, PartitionSpec(None, BATCH_AXES, *free))

    def own(x):  # (n, ...) -> (n / shards, shards, ...): row i of every device
        return pinned(x.reshape(shards, -1, *x.shape[1:]).swapaxes(0, 1))

    def back(x):
        return pinned(x).swapaxes(0, 1).reshape(-1, *x.shape[2:])

    parts = jax.lax.map(jax.vmap(function), jax.tree.map(own, rows), batch_size=size)
    return jax.tree.map(back, parts)
