"""The Inception score of generated images, streaming (Salimans et al., arXiv:1606.03498, section 4).

    score = InceptionScore.empty(1008, total=50_000)
    score = score.update(logits, indices)      # InceptionV3's "logits_unbiased", any order
    mean, deviation = score.compute()

exp(E KL(p(y|x) || p(y))) in each of `splits` equal parts of the set, then mean and deviation over
parts. The network's input is that of FID's convention ``tf_graph``, and its logits are without bias, as
in the original. Of each part only sums are kept, so memory does not grow with the set. For a judge of
few classes, whose logarithms take an epsilon, see `metrics.judge`.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from vidmotion.metrics.frechet import WEIGHTS
from vidmotion.metrics.result import MetricResult, not_computed

SPLITS = 10
CONVENTION = "tf_graph"


@dataclasses.dataclass(frozen=True)
class InceptionScore:
    """Sums of each part; `update` and `merge` return new ones.

    Attributes:
      total: samples that the whole set has; part k are the samples from ``k * total // splits`` on.
      counts: (splits,) samples seen.
      probs: (splits, C) float64, sums of the probabilities.
      negentropy: (splits,) float64, sums of sum_c p log p, natural logarithm.
    """

    total: int
    counts: np.ndarray
    probs: np.ndarray
    negentropy: np.ndarray

    @classmethod
    def empty(cls, classes: int, total: int, splits: int = SPLITS) -> "InceptionScore":
        """The accumulator before any sample.

        Raises:
          ValueError: less samples than parts.
        """
        if not 1 <= splits <= total:
            raise ValueError(f"{total} samples cannot be cut into {splits} parts")
        return cls(total, np.zeros(splits, np.int64), np.zeros((splits, classes)), np.zeros(splits))

    def update(
        self, logits: ArrayLike, indices: ArrayLike, mask: ArrayLike | None = None
    ) -> "InceptionScore":
        """Add samples.

        Args:
          logits: (b, C) floats. Those that are not finite count too, and make their part NaN.
          indices: (b,) integers in [0, total), the place of each in the whole set.
          mask: (b,) booleans; False leaves a sample out.

        Raises:
          ValueError: shapes that do not fit, or an index out of range.
        """
        logits, indices = np.asarray(logits, np.float64), np.asarray(indices)
        splits, classes = self.probs.shape
        if logits.ndim != 2 or logits.shape[1] != classes:
            raise ValueError(f"logits must be (b, {classes}), got {logits.shape}")
        if indices.shape != logits.shape[:1] or not np.issubdtype(indices.dtype, np.integer):
            raise ValueError(f"indices must be {len(logits)} integers, got {indices.shape}")
        if mask is not None:
            logits, indices = logits[np.asarray(mask, bool)], indices[np.asarray(mask, bool)]
        if indices.size and not (indices.min() >= 0 and indices.max() < self.total):
            raise ValueError(f"indices must lie in [0, {self.total})")
        with np.errstate(invalid="ignore"):  # NaN is to show
            shifted = logits - logits.max(axis=1, keepdims=True)
            log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
            p = np.exp(log_p)
            # Where p is zero, so is p log p, whatever the logarithm.
            negentropy = np.where(p == 0, 0.0, p * log_p).sum(axis=1)
        part = ((indices + 1) * splits - 1) // self.total
        belongs = (np.arange(splits)[:, None] == part).astype(np.float64)
        counts, sums, entropies = self.counts.copy(), self.probs.copy(), self.negentropy.copy()
        for i in np.unique(part):  # not one product: 0 * NaN would spread to the other parts
            mine = belongs[i] > 0
            counts[i] += mine.sum()
            sums[i] += p[mine].sum(axis=0)
            entropies[i] += negentropy[mine].sum()
        return dataclasses.replace(self, counts=counts, probs=sums, negentropy=entropies)

    def merge(self, other: "InceptionScore") -> "InceptionScore":
        """Both sets of samples, which must not overlap.

        Raises:
          ValueError: of other sets.
        """
        if self.total != other.total or self.probs.shape != other.probs.shape:
            raise ValueError("scores of different sets: total, parts and classes must be equal")
        return dataclasses.replace(
            self,
            counts=self.counts + other.counts,
            probs=self.probs + other.probs,
            negentropy=self.negentropy + other.negentropy,
        )

    def compute(self) -> tuple[float, float]:
        """Mean and (population) deviation over the parts; NaN where a logit was.

        Raises:
          ValueError: samples are missing, or were given twice.
        """
        if self.counts.sum() != self.total:
            raise ValueError(f"{self.counts.sum()} samples of {self.total} were counted")
        marginal = self.probs / self.counts[:, None]
        # A mean KL = mean of sum p log p, minus sum of marginal log marginal.
        log = np.log(np.where(marginal > 0, marginal, 1.0))
        log = np.where(np.isnan(marginal), np.nan, log)
        scores = np.exp(self.negentropy / self.counts - (marginal * log).sum(axis=1))
        return float(scores.mean()), float(scores.std())


def result(score: InceptionScore, weights: str, resolution: str) -> MetricResult:
    """The score as a row."""
    mean, deviation = score.compute()
    splits = len(score.counts)
    row = MetricResult("is", None, CONVENTION, weights, resolution, score.total, "not computed")
    if np.isnan(mean):
        return dataclasses.replace(row, note="not computed: logits are not finite")
    note = f"mean of {splits} parts, deviation {deviation:.4f}" if splits > 1 else "one part"
    return dataclasses.replace(row, value=mean, note=note)


def without_weights(resolution: str, n: int) -> MetricResult:
    """The row where the network's weights are not at hand."""
    return not_computed("is", CONVENTION, WEIGHTS["fid"], resolution, n)
