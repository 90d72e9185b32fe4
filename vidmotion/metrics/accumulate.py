"""Streaming means over an evaluation set that merge across batches and hosts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Mean:
    """A running mean, kept as sum and count on the host; `Mean()` is empty, `update` and `merge` return new ones.

    The sum is float64 and the count an integer, so the mean of merged parts is the mean of all
    values up to float64 rounding, however the values were split into batches or hosts.

    NaN and infinities count like any other value, so they show in the result: a failed sample must not
    improve an average. Only masked entries are ignored, whatever they hold.

    Attributes:
        total: the sum of the values counted.
        count: the number of values counted; a result row reports it as n.
    """

    total: float = 0.0
    count: int = 0

    def update(self, values: ArrayLike, mask: ArrayLike | None = None) -> "Mean":
        """Adds every entry of `values`, of any shape.

        Args:
            values: the numbers to add.
            mask: booleans that broadcast to `values`; False leaves an entry out (such as the padding of a
                last batch). A mask (B,) for values (B, T) must be given as `mask[:, None]`.

        Raises:
            ValueError: the mask is not boolean or does not broadcast.
        """
        values = np.asarray(values, np.float64)
        if mask is not None:
            mask = np.asarray(mask)
            if mask.dtype != bool:
                raise ValueError(f"mask must be boolean, got {mask.dtype}")
            values = values[np.broadcast_to(mask, values.shape)]
        return Mean(self.total + float(values.sum()), self.count + values.size)

    def merge(self, other: "Mean") -> "Mean":
        """Returns the mean over both sets of values."""
        return Mean(self.total + other.total, self.count + other.count)

    def compute(self) -> float:
        """Returns the mean; NaN if nothing was counted."""
        return self.total / self.count if self.count else float("nan")
