"""The Inception score of generated images, streaming (Salimans et al., arXiv:1606.03498, section 4).

    score = InceptionScore.empty(1008, total=50_000)
    score = score.update(logits, indices)      # InceptionV3's "logits_unbiased", any order
    mean, deviation = score.compute()

The score is exp(E KL(p(y|x) || p(y))), computed in each of `splits` equal parts of the set; the result is
the mean and deviation over the parts. As in the original, the network's input follows FID's convention
``tf_graph``, and its logits are without bias. Only sums are kept for each part, so memory does not grow
with the set. For a judge of few classes, whose logarithms use an epsilon, see `metrics.judge`.
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
    """Accumulator of the Inception score, with sums for each part; `update` and `merge` return new ones.

    Attributes:
      total: the number of samples in the whole set; part k begins at sample ``k * total // splits``.
      counts: (splits,) the number of samples seen in each part.
      probs: (splits, C) float64, the sums of the probabilities.
      negentropy: (splits,) float64, the sums of sum_c p log p, with the natural logarithm.
    """

    total: int
    counts: np.ndarray
    probs: np.ndarray
    negentropy: np.ndarray

    @classmethod
    def empty(cls, classes: int, total: int, splits: int = SPLITS) -> "InceptionScore":
        """Returns an accumulator without samples.

        Raises:
          ValueError: there are fewer samples than parts, or no parts.
        """
        if not 1 <= splits <= total:
            raise ValueError(f"{total} samples cannot be cut into {splits} parts")
        return cls(total, np.zeros(splits, np.int64), np.zeros((splits, classes)), np.zeros(splits))

    def update(
        self, logits: ArrayLike, indices: ArrayLike, mask: ArrayLike | None = None
    ) -> "InceptionScore":
        """Adds samples.

        Args:
          logits: (b, C) floats. Values that are not finite count too, and make the score of their part NaN.
          indices: (b,) integers in [0, total), the index of each sample in the whole set.
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
            raise ValueError(
                f"indices must lie in [0, {self.total}), got {indices.min()} to {indices.max()}"
            )
        with np.errstate(invalid="ignore"):  # NaN must show in the result
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
        """Merges the sums over two sets of samples, which must not overlap.

        Raises:
          ValueError: the accumulators differ in total, parts or classes.
        """
        if self.total != other.total or self.probs.shape != other.probs.shape:
            raise ValueError(
                "scores of different sets cannot be merged: total, parts and classes must be equal"
            )
        return dataclasses.replace(
            self,
            counts=self.counts + other.counts,
            probs=self.probs + other.probs,
            negentropy=self.negentropy + other.negentropy,
        )

    def compute(self) -> tuple[float, float]:
        """Returns the mean and the (population) standard deviation over the parts; NaN if a logit was not finite.

        Raises:
          ValueError: samples are missing, or were given twice.
        """
        if self.counts.sum() != self.total:
            raise ValueError(
                f"{self.counts.sum()} samples were counted, but the set has {self.total}"
            )
        marginal = self.probs / self.counts[:, None]
        # The mean KL is the mean of sum p log p, minus the sum of marginal log marginal.
        log = np.log(np.where(marginal > 0, marginal, 1.0))
        log = np.where(np.isnan(marginal), np.nan, log)
        scores = np.exp(self.negentropy / self.counts - (marginal * log).sum(axis=1))
        return float(scores.mean()), float(scores.std())


def result(score: InceptionScore, weights: str, resolution: str) -> MetricResult:
    """Returns the score as a row of results."""
    mean, deviation = score.compute()
    splits = len(score.counts)
    row = MetricResult("is", None, CONVENTION, weights, resolution, score.total, "not computed")
    if np.isnan(mean):
        return dataclasses.replace(row, note="not computed: logits are not finite")
    note = f"mean of {splits} parts, deviation {deviation:.4f}" if splits > 1 else "one part"
    return dataclasses.replace(row, value=mean, note=note)


def without_weights(resolution: str, n: int) -> MetricResult:
    """Returns the row for the case that the network's weights are not available."""
    return not_computed("is", CONVENTION, WEIGHTS["fid"], resolution, n)
