"""Maps a function over arrays piece by piece, so that only one piece at a time takes memory.

If the batch is cut over a mesh, each device loops over its own rows. A loop over the rows in their global order would
bring every row to every device.

A compiler counts the operations in the body of a loop once, however often the loop runs. To count them all, trace
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
BATCH_AXES = ("data", "fsdp")  # the axes of the mesh over which the batch is cut
_WHOLE = contextvars.ContextVar("whole", default=False)
_OWN = contextvars.ContextVar("own", default=False)


@contextlib.contextmanager
def _set(variable: contextvars.ContextVar) -> Iterator[None]:
    token = variable.set(True)
    try:
        yield
    finally:
        variable.reset(token)


def all_at_once() -> contextlib.AbstractContextManager[None]:
    """Trace without cutting into pieces inside this context, to count operations and not to run the program."""
    return _set(_WHOLE)


def wanted() -> bool:
    """Tell whether the code that is being traced may be cut into pieces."""
    return not _WHOLE.get()


def row_shards(rows: int) -> int:
    """Return the number of devices over which an axis is cut that is the batch, or the batch merged with later axes.

    `rows` is the length of the axis. The number is 1 outside of `sharding.OnMesh`, if the mesh does not divide it, and
    in a function that `each` applies to a row, all of which is on one device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)
    return 1 if rows % shards or _OWN.get() else shards


def on_own_rows(x: jax.Array) -> jax.Array:
    """Return an array unchanged, but keep each of its rows on the device that holds this part of the batch.

    The leading axis is the batch, or the batch merged with later axes. Where kernels are cut over ``fsdp``, XLA may
    otherwise cut the channels of what they compute, and then each device holds some channels of all rows, which takes
    many times the memory of a gathered kernel.
    """
    if row_shards(len(x)) == 1:
        return x
    free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES, *free))


def cuts(length: int, values: int, limit: int) -> int:
    """Return the least number of equal pieces of an axis for which each piece holds at most `limit` values.

    If no number will do, each position on the axis is a piece of its own.

    Args:
      length: the length of the axis.
      values: the number of values in the whole array.
      limit: the largest number of values in a piece.
    """
    divisors = (p for p in range(1, length) if not length % p and values <= limit * p)
    return next(divisors, length)


def each(
    function: Callable[[PyTree], PyTree], rows: PyTree, size: int = 1, shards: int = 1
) -> PyTree:
    """Apply `function` to every row of the leading axis, one piece after the other.

    Args:
      function: a function of one row.
      rows: arrays (n, ...).
      size: the number of rows that a device takes at a time; its last piece may be smaller.
      shards: the number of devices over which the leading axis is cut (`row_shards`), a divisor of n.

    Returns:
      Arrays (n, ...).
    """
    if not wanted():
        return jax.vmap(function)(rows)

    def one(row):
        with _set(_OWN):
            return function(row)

    if shards == 1:
        return jax.lax.map(one, rows, batch_size=size)

    def pinned(x):
        free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 2)
        return jax.lax.with_sharding_constraint(x, PartitionSpec(None, BATCH_AXES, *free))

    def own(x):  # (n, ...) -> (n / shards, shards, ...): row i of every device
        return pinned(x.reshape(shards, -1, *x.shape[1:]).swapaxes(0, 1))

    def back(x):
        return pinned(x).swapaxes(0, 1).reshape(-1, *x.shape[2:])

    parts = jax.lax.map(jax.vmap(one), jax.tree.map(own, rows), batch_size=size)
    return jax.tree.map(back, parts)
