"""Work done piece by piece, so that memory is that of one piece.

A compiler's count of operations takes the body of a loop once, however often it goes round; who counts
asks for `all_at_once`.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax

PyTree = Any
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


def each(function: Callable[[PyTree], PyTree], rows: PyTree, size: int = 1) -> PyTree:
    """`function` of every row of the leading axis, `size` rows at a time, one piece after the other.

    Args:
      function: of one row.
      rows: the leading axis must not be cut over devices, or each of them would work on all rows.
      size: rows of a piece; the last may be smaller.
    """
    if not wanted():
        return jax.vmap(function)(rows)
    return jax.lax.map(function, rows, batch_size=size)
