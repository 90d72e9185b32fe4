"""Means over pairs of frames (driving and generated), some of which show no face.

    score = PairedScore().update(blendshape_distance(driving, generated), seen)
    score.merge(other_host).row("aed", "mediapipe_51", weights, "256x256")

Every metric of this kind (CSIM, AED, APD, ARD, AUH) consists of a function that returns one value for
each pair, and the accumulator `PairedScore`.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from vidmotion.metrics.accumulate import Mean
from vidmotion.metrics.result import MetricResult, not_computed


@dataclasses.dataclass(frozen=True)
class PairedScore:
    """The mean of one value per pair; `PairedScore()` is empty, `update` and `merge` return new ones.

    Sums and counts are kept in a `Mean`, so the result does not depend on how the pairs were split. A value
    that is not finite counts and makes the row "not computed". Only pairs without a detection are left
    out, whatever their values, and the row says how many pairs had one.

    Attributes:
      mean: the mean over pairs, or over videos of the mean of each video's pairs (`update_video`).
      pairs: the number of pairs given.
      skipped: the number of pairs that were left out.
      zeroed: the number of pairs that counted as 0, because the generated frame had no face (CSIM only).
      unit: the unit that is averaged, "pairs" or "videos".
    """

    mean: Mean = dataclasses.field(default_factory=Mean)
    pairs: int = 0
    skipped: int = 0
    zeroed: int = 0
    unit: str = "pairs"

    def update(self, values: ArrayLike, seen: ArrayLike | None = None) -> "PairedScore":
        """Adds the values of pairs.

        Args:
          values: (n,), one value per pair.
          seen: (n,) booleans: whether both frames of a pair show a face; None means that all do.

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
        """Adds one video: the mean of its frames' values counts as one value, or none if no frame shows a face.

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
        """Returns the score over both sets of pairs.

        Raises:
          ValueError: one score averages pairs, the other videos.
        """
        if self.pairs and other.pairs and self.unit != other.unit:
            raise ValueError(f"a mean over {self.unit} and one over {other.unit} cannot be merged")
        return PairedScore(
            self.mean.merge(other.mean),
            self.pairs + other.pairs,
            self.skipped + other.skipped,
            self.zeroed + other.zeroed,
            self.unit if self.pairs else other.unit,
        )

    def compute(self) -> float:
        """Returns the mean; NaN if nothing was counted."""
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
        """Returns the mean as a row of results; its n is the number of pairs or videos averaged.

        Args:
          name, convention, weights, resolution: see `MetricResult`.
          note: a remark for the reader, such as "degrees".
          times: a factor that converts the mean to another unit.
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
    """Returns both sequences as float64, after checking that their shapes are equal.

    Raises:
      ValueError: the shapes differ (in the number of frames, or of values per frame).
    """
    driving, generated = np.asarray(driving, np.float64), np.asarray(generated, np.float64)
    if driving.shape != generated.shape:
        raise ValueError(
            f"{what} to compare have shapes {driving.shape} and {generated.shape}, which must be equal: "
            "frame i is compared with frame i"
        )
    return driving, generated


def _checked(values: ArrayLike, seen: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values, np.float64)
    seen = np.ones(values.shape, bool) if seen is None else np.asarray(seen)
    if values.ndim != 1 or seen.shape != values.shape or seen.dtype != bool:
        raise ValueError(
            f"values must be (n,), with one boolean for each, got {values.shape} and {seen.dtype} "
            f"{seen.shape}"
        )
    return values, seen
