"""Protocols of data sources: what every source must have, and what some sources offer in addition.

The sources of this package inherit from these protocols. Any other object that has their members works, too; an entry
in `pipeline.SOURCES` makes it available as a ``config.data.kind``. A source must be picklable for worker processes to
read it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class ClipSource(Protocol):
    """Random access to the elements of one split.

    Attributes:
      fingerprint: hex digest of the content; a run resumes only on data with the same fingerprint.
      transforms: transforms for the loader to apply to each element; the loader supplies the random numbers.
      networks: the fingerprints, by name, of the frozen networks that made the elements.
    """

    fingerprint: str
    transforms: Sequence[Any] = ()
    networks: Mapping[str, str] = {}

    def __len__(self) -> int:
        """Returns the number of elements."""
        ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns element `index`: arrays by name. Raises: IndexError out of range."""
        ...

    def origin(self, index: int) -> str:
        """Returns where element `index` comes from, such as a video file; elements of one origin show one person."""
        return str(index)


@runtime_checkable
class Boxes(Protocol):
    """A source that knows where the faces are."""

    def boxes(self, i: int) -> np.ndarray:
        """Returns the box of the face in each frame of clip `i`, (T, 4): x0, y0, x1, y1 in pixels."""
        ...


@runtime_checkable
class Renders(Protocol):
    """A source that draws its clips from known factors, and can draw one identity with the motion of another clip."""

    def video(self, i: int) -> np.ndarray:
        """Returns the pictures of clip `i`, uint8 (T, H, W, 3), without the other entries of its element."""
        ...

    def swap(self, content: int, motion: int) -> np.ndarray:
        """Draws the identity of clip `content` with the motion of clip `motion`, uint8 (T, H, W, 3)."""
        ...

    def identity_id(self, i: int) -> int:
        """Returns the number of the identity that clip `i` shows."""
        ...

    def factors(self, i: int) -> dict[str, Mapping[str, float | int | np.ndarray]]:
        """Returns the factors that clip `i` was drawn from.

        Returns:
          ``identity`` and ``motion``, each a mapping by name of numbers, classes (int) or values over time (T,).
        """
        ...


@runtime_checkable
class Classes(Protocol):
    """A source whose clips belong to classes.

    Attributes:
      classes: the names of the classes; empty if the clips have none.
    """

    classes: Sequence[str]

    def class_of(self, element: Mapping[str, np.ndarray]) -> int:
        """Returns the index into `classes` of an element."""
        ...


@runtime_checkable
class Prepared(Protocol):
    """A source that reads files made by a command of this package.

    Attributes:
      made_by: the command that made the files; "" if the files do not say.
    """

    made_by: str


@runtime_checkable
class Fills(Protocol):
    """A source that makes several elements faster together than one by one."""

    def fill(self, indices: Iterable[int]) -> None:
        """Prepares the elements of a batch before they are read. Raises: IndexError out of range."""
        ...
