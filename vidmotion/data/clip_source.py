"""What a data source is, and what some sources know beside their elements.

The sources of this package inherit from these protocols. Any other object that has the members will do: a table
entry in `pipeline.SOURCES` makes it a ``config.data.kind``. It must be picklable if worker processes are to read it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class ClipSource(Protocol):
    """Random access to the elements of one split.

    Attributes:
      fingerprint: hex text that names the content; a run resumes only on data of the same fingerprint.
      transforms: what the loader applies to each element, with random numbers of its own.
      networks: fingerprints, by name, of the never-trained networks that made the elements.
    """

    fingerprint: str
    transforms: Sequence[Any] = ()
    networks: Mapping[str, str] = {}

    def __len__(self) -> int:
        """The number of elements."""
        ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Element `index`, arrays by name. Raises: IndexError out of range."""
        ...

    def origin(self, index: int) -> str:
        """What element `index` is from, such as a video file: elements of one origin show the same person."""
        return str(index)


@runtime_checkable
class Boxes(Protocol):
    """A source that knows where the faces are."""

    def boxes(self, i: int) -> np.ndarray:
        """The box of the face in each frame of clip `i`, (T, 4): x0, y0, x1, y1 in pixels."""
        ...


@runtime_checkable
class Renders(Protocol):
    """A source that draws its clips from known factors, and can draw one identity with the motion of another clip."""

    def video(self, i: int) -> np.ndarray:
        """The pictures of clip `i`, uint8 (T, H, W, 3), without all else that its element has."""
        ...

    def swap(self, content: int, motion: int) -> np.ndarray:
        """The identity of clip `content` moving as clip `motion`, uint8 (T, H, W, 3)."""
        ...

    def identity_id(self, i: int) -> int:
        """The number of the identity that clip `i` shows."""
        ...

    def factors(self, i: int) -> dict[str, Mapping[str, float | int | np.ndarray]]:
        """What clip `i` was drawn from: ``identity`` and ``motion``, each a mapping of numbers, classes (int) or
        courses (T,) by name."""
        ...


@runtime_checkable
class Classes(Protocol):
    """A source whose clips belong to classes.

    Attributes:
      classes: names of the classes; empty where these clips have none.
    """

    classes: Sequence[str]

    def class_of(self, element: Mapping[str, np.ndarray]) -> int:
        """The index into `classes` of an element."""
        ...


@runtime_checkable
class Prepared(Protocol):
    """A source that reads files which a command of this package made.

    Attributes:
      made_by: that command; "" where the files do not say.
    """

    made_by: str


@runtime_checkable
class Fills(Protocol):
    """A source that makes several elements together faster than one by one."""

    def fill(self, indices: Iterable[int]) -> None:
        """Gets the elements of a batch ready before they are read. Raises: IndexError out of range."""
        ...
