"""Frechet distances between sets of features: FID of images, FVD of clips (spec metrics.md, 4 and 5).

    real = FeatureSet.empty("fid", "pytorch_fid", weights, "256x256", dim=2048)
    real = collect(extract, real_images, real, rows=32)
    made = collect(extract, made_images, FeatureSet.empty(...), rows=32)
    row = compare(real, made)

A set is kept as count, mean and scatter in float64 on the host, so memory does not grow with its size,
and the parts of several batches and hosts can be merged. Bad input is treated alike throughout: sets that
differ in convention, weights, resolution or clip length do not merge or compare (ValueError); features that
are not finite are counted, and make the row of `compare` "not computed", as does a set of fewer than two
samples; constant features and covariances without full rank need no special treatment.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import ArrayLike

from vidmotion.metrics.resize import (
    CLIP_CONVENTIONS,
    IMAGE_CONVENTIONS,
    convention_of,
)
from vidmotion.metrics.result import MetricResult, not_computed

FID_DIM = 2048
FVD_DIM = 400
FVD_FRAMES = 16  # the length of a clip, unless a paper says otherwise
# Where the weights are published.
WEIGHTS = {
    "fid": "pt_inception-2015-12-05-6726825d.pth (releases of github.com/mseitzer/pytorch-fid), "
    "through python -m vidmotion.convert fid_inception",
    "fvd": "i3d_pretrained_400.pt (github.com/wilson1yan/VideoGPT), through python -m "
    "vidmotion.convert i3d",
}
CONVENTIONS = {"fid": IMAGE_CONVENTIONS, "fvd": CLIP_CONVENTIONS}


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of a set of vectors; `update` and `merge` return new ones.

    Merging uses Chan's method: deviations are always from the mean of their own part. So no precision is
    lost to cancellation, however far the features lie from zero, and every split into batches and hosts
    gives the same result up to float64 rounding.

    Attributes:
      count: the number of vectors.
      mean: (d,) float64, the mean of the vectors.
      scatter: (d, d) float64, the sum over vectors of the outer product of their deviation with itself.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, dim: int) -> "Moments":
        """Returns the moments of an empty set of vectors of length `dim`."""
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    def update(self, features: ArrayLike, mask: ArrayLike | None = None) -> "Moments":
        """Adds vectors.

        Args:
          features: (b, d) floats. Values that are not finite count too, and show in the distance.
          mask: (b,) booleans; False leaves a vector out (such as the padding of a last batch), whatever
            it holds.

        Raises:
          ValueError: shapes that do not fit, features that are not floats, or a mask that is not boolean.
        """
        features = np.asarray(features)
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features must be (b, {len(self.mean)}), got {features.shape}")
        if not np.issubdtype(features.dtype, np.floating):
            raise ValueError(f"features must be floats, got {features.dtype}")
        if mask is not None:
            mask = np.asarray(mask)
            if mask.dtype != bool or mask.shape != features.shape[:1]:
                raise ValueError(
                    f"mask must be {len(features)} booleans, got {mask.dtype} {mask.shape}"
                )
            features = features[mask]
        if not len(features):
            return self
        features = features.astype(np.float64)
        mean = features.mean(axis=0)
        with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, which must show
            deviation = features - mean
            part = Moments(len(features), mean, deviation.T @ deviation)
        return self.merge(part)

    def merge(self, other: "Moments") -> "Moments":
        """Returns the moments of both sets of vectors together.

        Raises:
          ValueError: vectors of different length.
        """
        if len(self.mean) != len(other.mean):
            raise ValueError(
                f"features of {len(self.mean)} and of {len(other.mean)} numbers cannot be merged"
            )
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        with np.errstate(invalid="ignore"):
            gap = other.mean - self.mean
            mean = self.mean + gap * (other.count / count)
            scatter = self.scatter + other.scatter
            scatter += np.outer(gap, gap * (self.count * other.count / count))
        return Moments(count, mean, scatter)

    @property
    def finite(self) -> bool:
        """Whether all features were finite."""
        return bool(np.isfinite(self.mean).all() and np.isfinite(self.scatter).all())


def frechet_distance(first: Moments, second: Moments, divide_by: str = "N-1") -> float:
    """Returns |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)) for the Gaussians fitted to two sets.

    The trace of the root is the sum of the singular values of F1^T F2, where F F^T = S. A covariance
    of N samples has rank N - 1 at most, and F has that many columns, so the result is exact even if N is
    below the number of features. There, scipy's root of the singular product is off by 1e-6, and scripts
    that add 1e-6 to its diagonal are off by more.

    Args:
      first, second: the moments of the two sets.
      divide_by: the divisor that turns the scatter into the covariance: "N-1" (all conventions but one) or "N".

    Returns:
      the distance, not negative: rounding below zero is cut off. NaN if a feature was not finite.

    Raises:
      ValueError: features of different lengths, a set of fewer than two samples, or an unknown divisor.
    """
    if len(first.mean) != len(second.mean):
        raise ValueError(
            f"features of {len(first.mean)} and of {len(second.mean)} numbers cannot be compared"
        )
    if min(first.count, second.count) < 2:
        raise ValueError(
            f"a covariance needs at least 2 samples in each set, got {first.count} and "
            f"{second.count}"
        )
    if not (first.finite and second.finite):
        return float("nan")
    factors, traces = zip(*(_factor(moments, divide_by) for moments in (first, second)))
    root = np.linalg.svd(factors[0].T @ factors[1], compute_uv=False).sum()
    distance = np.sum(np.square(first.mean - second.mean)) + sum(traces) - 2 * root
    return max(float(distance), 0.0)


def _factor(moments: Moments, divide_by: str) -> tuple[np.ndarray, float]:
    """Returns F (d, rank), where F F^T is the covariance, and the trace of the covariance."""
    divisors = {"N-1": moments.count - 1, "N": moments.count}
    if divide_by not in divisors:
        raise ValueError(f"divide_by must be 'N-1' or 'N', got {divide_by!r}")
    spectrum, vectors = np.linalg.eigh(moments.scatter / divisors[divide_by])
    # Eigenvalues that are zero but for rounding are dropped, because the square root would enlarge them.
    dim = len(spectrum)
    kept = np.arange(dim) >= dim - (moments.count - 1)
    kept &= spectrum > dim * np.finfo(np.float64).eps * max(spectrum[-1], 0.0)
    return vectors[:, kept] * np.sqrt(spectrum[kept]), float(spectrum[kept].sum())


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """The moments of a set's features, and how they were computed; only sets computed alike merge or compare.

    Attributes:
      metric: "fid" or "fvd".
      convention: a key of `resize.IMAGE_CONVENTIONS` or `resize.CLIP_CONVENTIONS`.
      weights: a text that identifies the network's weights.
      resolution: the resolution of the frames before they are resized for the network, "256x256".
      frames: the number of frames of a clip; 1 for images.
      moments: the moments of the features.
    """

    metric: str
    convention: str
    weights: str
    resolution: str
    frames: int
    moments: Moments

    @classmethod
    def empty(
        cls,
        metric: str,
        convention: str,
        weights: str,
        resolution: str,
        *,
        frames: int | None = None,
        dim: int | None = None,
    ) -> "FeatureSet":
        """Returns a set without samples; `frames` and `dim` default to those of the metric.

        Raises:
          ValueError: unknown metric or convention.
        """
        if metric not in CONVENTIONS:
            raise ValueError(f"metric must be one of {', '.join(CONVENTIONS)}, got {metric!r}")
        convention_of(convention, CONVENTIONS[metric])
        frames = frames or (FVD_FRAMES if metric == "fvd" else 1)
        dim = dim or (FVD_DIM if metric == "fvd" else FID_DIM)
        return cls(metric, convention, weights, resolution, frames, Moments.empty(dim))

    def update(self, features: ArrayLike, mask: ArrayLike | None = None) -> "FeatureSet":
        """Adds feature vectors to the moments; see `Moments.update`."""
        return dataclasses.replace(self, moments=self.moments.update(features, mask))

    def merge(self, other: "FeatureSet") -> "FeatureSet":
        """Merges both sets into one.

        Raises:
          ValueError: the sets were not computed alike.
        """
        self._check(other)
        return dataclasses.replace(self, moments=self.moments.merge(other.moments))

    def _check(self, other: "FeatureSet") -> None:
        for name in ("metric", "convention", "weights", "resolution", "frames"):
            mine, others = getattr(self, name), getattr(other, name)
            if mine != others:
                raise ValueError(
                    f"sets of different {name} cannot be compared or merged: {mine} and {others}"
                )


def compare(real: FeatureSet, made: FeatureSet) -> MetricResult:
    """Returns the distance of two sets as a row of results; its n is the number of generated samples.

    Raises:
      ValueError: the sets were not computed alike.
    """
    real._check(made)
    known = CONVENTIONS[real.metric][real.convention]
    counts = made.moments.count, real.moments.count
    # The expected distance falls with the sample size, so the note gives the counts of both sets.
    unit = f"clips of {real.frames} frames" if real.metric == "fvd" else "images"
    note = f"{counts[0]} generated and {counts[1]} real {unit}"
    row = MetricResult(
        real.metric, None, real.convention, real.weights, real.resolution, counts[0], note
    )
    if min(counts) < 2:
        return dataclasses.replace(
            row, note=f"not computed: needs 2 samples or more of each; {note}"
        )
    value = frechet_distance(real.moments, made.moments, known.divide_by)
    if np.isnan(value):
        return dataclasses.replace(row, note=f"not computed: features are not finite; {note}")
    return dataclasses.replace(row, value=value)


def without_weights(metric: str, convention: str, resolution: str, n: int) -> MetricResult:
    """Returns the row for a metric, "fid" or "fvd", whose network weights are not available.

    Raises:
      ValueError: unknown metric or convention.
    """
    FeatureSet.empty(metric, convention, "none", resolution, dim=1)
    return not_computed(metric, convention, WEIGHTS[metric], resolution, n)


def collect(
    extract: Callable[[np.ndarray], ArrayLike],
    samples: Iterable[np.ndarray],
    into: FeatureSet,
    rows: int,
) -> FeatureSet:
    """Extracts the features of samples in batches, and adds them to a set; `jit` compiles once for all batches.

    Args:
      extract: the function (rows, ...) -> (rows, d) that resizes and runs the network, usually under `jit`.
      samples: images (h, w, 3) or clips (t, h, w, 3), uint8 or floats in [0, 1].
      into: the set that the features are added to.
      rows: the number of samples in a batch; the last batch is padded with copies, which do not count.

    Raises:
      ValueError: a sample has the wrong size, length, dtype or value range; the message says which sample.
    """
    height, width = (int(side) for side in into.resolution.split("x"))
    want = (height, width, 3) if into.metric == "fid" else (into.frames, height, width, 3)
    index, found = 0, iter(samples)
    while batch := [np.asarray(sample) for sample in itertools.islice(found, rows)]:
        for i, sample in enumerate(batch, start=index):
            if sample.shape != want:
                raise ValueError(f"sample {i} must be {want}, got {sample.shape}")
            if sample.dtype != np.uint8 and not (
                np.issubdtype(sample.dtype, np.floating) and sample.min() >= 0 and sample.max() <= 1
            ):
                raise ValueError(
                    f"sample {i} must be uint8 or floats in [0, 1], got {sample.dtype} from "
                    f"{sample.min()} to {sample.max()}"
                )
        filled = np.stack(batch + batch[-1:] * (rows - len(batch)))
        features = np.asarray(extract(filled))
        into = into.update(features, np.arange(rows) < len(batch))
        index += len(batch)
    return into
