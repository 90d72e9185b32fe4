"""Means over pairs of frames, driving and generated, of which some show no face.

    score = PairedScore().update(blendshape_distance(driving, generated), seen)
    score.merge(other_host).row("aed", "mediapipe_51", weights, "256x256")

Every metric of this kind (CSIM, AED, APD, ARD, AUH) is a function that returns one value for each
pair, and this accumulator.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from vidmotion.metrics.accumulate import Mean
from vidmotion.metrics.result import MetricResult, not_computed


@dataclasses.dataclass(frozen=True)
class PairedScore:
    """Mean of one value per pair; `PairedScore()` is empty, `update` and `merge` return new ones.

    Sums and counts are `Mean`'s, so parts of any split merge to the same. A value that is not finite
    counts and makes the row "not computed"; only pairs without a detection are left out, whatever
    they hold, and the row says how many they were.

    Attributes:
      mean: over pairs, or over videos of the means of their pairs (`update_video`).
      pairs: how many pairs came in.
      skipped: how many of them were left out.
      zeroed: how many counted as 0, because the generated side had no face (CSIM only).
      unit: what is averaged, "pairs" or "videos".
    """

    mean: Mean = dataclasses.field(default_factory=Mean)
    pairs: int = 0
    skipped: int = 0
    zeroed: int = 0
    unit: str = "pairs"

    def update(self, values: ArrayLike, seen: ArrayLike | None = None) -> "PairedScore":
        """Add the values of pairs.

        Args:
          values: (n,).
          seen: (n,) booleans: whether both sides show what is measured; all do if None.

        Raises:
          ValueError: shapes that do not fit, or a mask that is not boolean.
        """
        values, seen = _checked(values, seen)
        return dataclasses.replace(
            self,
            mean=self.mean.update(values, seen),
            pairs=self.pairs + len(values),
            skipped=self.skipped + int((~seen).sum()),
        )

    def update_video(self, values: ArrayLike, seen: ArrayLike | None = None) -> "PairedScore":
        """Add one video: the mean of its frames' values counts as one; nothing where none was seen.

        Raises:
          ValueError: as `update`.
        """
        values, seen = _checked(values, seen)
        of_frames = Mean().update(values, seen)
        once = np.full(min(of_frames.count, 1), of_frames.compute())
        return dataclasses.replace(
            self,
            mean=self.mean.update(once),
            pairs=self.pairs + len(values),
            skipped=self.skipped + int((~seen).sum()),
            unit="videos",
        )

    def merge(self, other: "PairedScore") -> "PairedScore":
        """The score over both sets.

        Raises:
          ValueError: one averages pairs, the other videos.
        """
        if self.pairs and other.pairs and self.unit != other.unit:
            raise ValueError(f"a mean over {self.unit} and one over {other.unit} do not merge")
        return PairedScore(
            self.mean.merge(other.mean),
            self.pairs + other.pairs,
            self.skipped + other.skipped,
            self.zeroed + other.zeroed,
            self.unit if self.pairs else other.unit,
        )

    def compute(self) -> float:
        """The mean; NaN where nothing was counted."""
        return self.mean.compute()

    def row(
        self,
        name: str,
        convention: str,
        weights: str,
        resolution: str,
        note: str = "",
        times: float = 1.0,
    ) -> MetricResult:
        """The mean as a row of results; n counts what was averaged.

        Args:
          note: more for the reader, "degrees".
          times: a factor to another unit.
        """
        notes = [note] if note else []
        if self.pairs:
            detected = self.pairs - self.skipped - self.zeroed
            notes.append(f"detected in {detected} of {self.pairs} pairs")
        if self.zeroed:
            notes.append(f"{self.zeroed} generated without a face count as 0")
        if not self.mean.count:
            made = not_computed(
                name, convention, "a pair that shows a face", resolution, 0, weights
            )
            return dataclasses.replace(made, note="; ".join([made.note, *notes]))
        value, count = times * self.compute(), self.mean.count
        if not np.isfinite(value):
            notes.insert(0, "not computed: values are not finite")
            value = None
        return MetricResult(name, value, convention, weights, resolution, count, "; ".join(notes))


def same_frames(driving: ArrayLike, generated: ArrayLike, what: str) -> tuple[np.ndarray, ...]:
    """Both as float64, once they are alike.

    Raises:
      ValueError: shapes differ (another number of frames, or of numbers per frame).
    """
    driving, generated = np.asarray(driving, np.float64), np.asarray(generated, np.float64)
    if driving.shape != generated.shape:
        raise ValueError(
            f"{what} to compare have shapes {driving.shape} and {generated.shape}: frame i belongs "
            "to frame i"
        )
    return driving, generated


def _checked(values: ArrayLike, seen: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values, np.float64)
    seen = np.ones(values.shape, bool) if seen is None else np.asarray(seen)
    if values.ndim != 1 or seen.shape != values.shape or seen.dtype != bool:
        raise ValueError(
            f"needs values (n,) and as many booleans, got {values.shape} and {seen.dtype} "
            f"{seen.shape}"
        )
    return values, seen
