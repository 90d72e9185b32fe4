"""Frechet distances between sets of features: FID of images, FVD of clips (spec metrics.md, 4 and 5).

    real = FeatureSet.empty("fid", "pytorch_fid", weights, "256x256", dim=2048)
    real = collect(extract, real_images, real, rows=32)
    made = collect(extract, made_images, FeatureSet.empty(...), rows=32)
    row = compare(real, made)

Sets are kept as count, mean and scatter in float64 on the host, so memory does not grow with them,
and parts of other batches and hosts merge. Bad input, throughout: a set of another convention,
weights, resolution or length of clip is refused, and so is one of less than two samples; features
that are not finite count and make the result "not computed"; constant features and covariances
without full rank are nothing special.
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
FVD_FRAMES = 16  # of a clip, unless a paper says otherwise
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
    """Count, mean and scatter of vectors; `update` and `merge` return new ones.

    Merging is Chan's: deviations are always from the mean of their own part, so nothing cancels
    however far the features lie from zero, and any split into batches and hosts gives the same to
    float64 rounding.

    Attributes:
      count: vectors seen.
      mean: (d,) float64.
      scatter: (d, d) float64, the sum over vectors of the outer product of their deviation.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, dim: int) -> "Moments":
        """The moments of no vectors yet, of length `dim`."""
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    def update(self, features: ArrayLike, mask: ArrayLike | None = None) -> "Moments":
        """Add vectors.

        Args:
          features: (b, d) floats. Those that are not finite count too, and show in the distance.
          mask: (b,) booleans; False leaves a vector out (the padding of a last batch), whatever it
            holds.

        Raises:
          ValueError: shapes that do not fit, no floats, or a mask that is not boolean.
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
        with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, which is to show
            deviation = features - mean
            part = Moments(len(features), mean, deviation.T @ deviation)
        return self.merge(part)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of vectors.

        Raises:
          ValueError: vectors of different length.
        """
        if len(self.mean) != len(other.mean):
            raise ValueError(f"features of {len(self.mean)} and of {len(other.mean)} numbers")
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
        """Whether all features were."""
        return bool(np.isfinite(self.mean).all() and np.isfinite(self.scatter).all())


def frechet_distance(first: Moments, second: Moments, divide_by: str = "N-1") -> float:
    """|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)) of the Gaussians fitted to two sets.

    The trace of the root is the sum of the singular values of F1^T F2, where F F^T = S. A covariance
    of N samples has rank N - 1 at most, and F that many columns, so the result is exact where N is
    below the number of features, too; scipy's root of the singular product is off by 1e-6 there, and
    scripts that add 1e-6 to its diagonal by more.

    Args:
      divide_by: the scatter gives the covariance over "N-1" (all conventions but one) or "N".

    Returns:
      Not negative: rounding below zero is cut off. NaN where a feature was not finite.

    Raises:
      ValueError: features of different length, a set of less than two samples, or another divisor.
    """
    if len(first.mean) != len(second.mean):
        raise ValueError(f"features of {len(first.mean)} and of {len(second.mean)} numbers")
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
    """F (d, rank) with F F^T the covariance, and the trace of that."""
    divisors = {"N-1": moments.count - 1, "N": moments.count}
    if divide_by not in divisors:
        raise ValueError(f"divide_by must be 'N-1' or 'N', got {divide_by!r}")
    spectrum, vectors = np.linalg.eigh(moments.scatter / divisors[divide_by])
    # What rounding leaves of zeros must go before the root makes much of it.
    dim = len(spectrum)
    kept = np.arange(dim) >= dim - (moments.count - 1)
    kept &= spectrum > dim * np.finfo(np.float64).eps * max(spectrum[-1], 0.0)
    return vectors[:, kept] * np.sqrt(spectrum[kept]), float(spectrum[kept].sum())


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Moments of a set's features with what they are features of; only likes merge or compare.

    Attributes:
      metric: "fid" or "fvd".
      convention: a key of `resize.IMAGE_CONVENTIONS` or `resize.CLIP_CONVENTIONS`.
      weights: identity of the network's weights.
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
        """A set without samples; `frames` and `dim` default to those of the metric.

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
        """The moments with further vectors; see `Moments.update`."""
        return dataclasses.replace(self, moments=self.moments.update(features, mask))

    def merge(self, other: "FeatureSet") -> "FeatureSet":
        """Both sets as one.

        Raises:
          ValueError: sets that are not alike.
        """
        self._check(other)
        return dataclasses.replace(self, moments=self.moments.merge(other.moments))

    def _check(self, other: "FeatureSet") -> None:
        for name in ("metric", "convention", "weights", "resolution", "frames"):
            mine, others = getattr(self, name), getattr(other, name)
            if mine != others:
                raise ValueError(f"sets of different {name} have no distance: {mine} and {others}")


def compare(real: FeatureSet, made: FeatureSet) -> MetricResult:
    """The distance of two sets as a row; n is the number of generated samples.

    Raises:
      ValueError: sets that are not alike.
    """
    real._check(made)
    known = CONVENTIONS[real.metric][real.convention]
    counts = made.moments.count, real.moments.count
    # The expectation falls with n, so the other side's count belongs to the number.
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
    """The row where the network's weights are not at hand; `metric` is "fid" or "fvd".

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
    """Features of samples, a batch at a time; batches all have the same shape, so `jit` compiles once.

    Args:
      extract: (rows, ...) -> (rows, d) features, usually under `jit`: resize and network.
      samples: images (h, w, 3) or clips (t, h, w, 3), uint8 or floats in [0, 1].
      into: what they are added to.
      rows: samples of a batch; the last is filled up with copies, which do not count.

    Raises:
      ValueError: a sample of another size, length, dtype or value range; which one is named.
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
