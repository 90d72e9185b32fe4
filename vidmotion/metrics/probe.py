"""Held-out probes: measure how much of a factor can be read from a code.

There are two probes, both kernel ridge regressions in closed form (float64, no seed, no training loop): ``linear``,
and ``mlp``, which is a network of one hidden ReLU layer whose first layer is random and whose readout is fitted, in
the limit of infinite width. Its kernel is the arc-cosine kernel of order 1 (Cho and Saul, Kernel methods for deep
learning, 2009). Classes are read by regressing their indicators and taking the largest.

Examples are split by group into three parts: one to fit the readout, one to choose the strength of the ridge, and one
to test. The strengths reach to infinity, where the prediction is the mean of the fitting part. The strongest ridge
whose error in the choosing part is within one standard error of the best is taken, so a code that says nothing about
a factor scores at chance rather than below it.

Shapes: n examples, d features, g groups of the test part, k factors.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

PROBES = ("linear", "mlp")
SHARES = (0.6, 0.2, 0.2)  # the shares of the groups that fit, choose and test

# Strengths of the ridge from weak to strong, relative to the mean eigenvalue of the fitting part's kernel.
_STRENGTHS = (*np.logspace(-5, 4, 19), np.inf)
_DRAWS = 2000  # bootstrap samples


class Parts(NamedTuple):
    """The indices of the examples in each part."""

    fit: np.ndarray
    choose: np.ndarray
    test: np.ndarray


class Reading(NamedTuple):
    """How well one factor was read in the test part: ``sum(won) / sum(of)``.

    Attributes:
      won, of: (g,) numerator and denominator for each group. Continuous factors: `of` is the squared error of the mean
        of the fitting part, and `won` is how much less the probe's squared error is, so the ratio is R^2 out of
        sample. Classes: `won` is the number of examples classified correctly, `of` the number of examples.
      chance: the same ratio for the best constant of the fitting part: 0 for continuous factors, for classes the
        share of its commonest class in the test part.
      strength: the strength of the ridge, in mean eigenvalues of the kernel; infinite if nothing could be read.
    """

    won: np.ndarray
    of: np.ndarray
    chance: float
    strength: float

    @property
    def value(self) -> float:
        """R^2 (at most 1, 0 is chance) or accuracy; NaN for a factor that does not vary."""
        return float(_ratio(self.won.sum(), self.of.sum()))


class Estimate(NamedTuple):
    """A mean over factors with the ends of its bootstrap interval, and the mean of their chance levels."""

    value: float
    low: float
    high: float
    chance: float


def split(groups: ArrayLike, seed: int = 0) -> Parts:
    """Split examples into three parts so that no group is in two of them.

    Args:
      groups: (n,) integers, the group of each example: the person, or whatever else must not be recognised.
      seed: the seed of the order in which groups are assigned to parts.

    Raises:
      ValueError: fewer than three groups.
    """
    groups = np.asarray(groups)
    names = np.unique(groups)
    if len(names) < 3:
        raise ValueError(f"three parts need at least three groups, got {len(names)}")
    order = np.random.default_rng(seed).permutation(names)
    last = max(1, round(SHARES[2] * len(names)))
    middle = max(1, round(SHARES[1] * len(names)))
    ends = np.array([len(names) - last - middle, len(names) - last])
    return Parts(*(np.flatnonzero(np.isin(groups, part)) for part in np.split(order, ends)))


def read(
    probe: str,
    code: ArrayLike,
    factors: Mapping[str, ArrayLike],
    parts: Parts,
    groups: ArrayLike,
) -> dict[str, Reading]:
    """Fit one probe for each factor, and score it in the test part.

    Features are standardised over the fitting part; those that are constant there are left out. Without any, every
    reading is at chance.

    Args:
      probe: one of `PROBES`.
      code: (n, d) floats.
      factors: the factors by name: floats (n,) for a number; floats (n, t) for a course of t numbers that share one
        R^2; integers (n,) for a class.
      parts: the result of `split`.
      groups: (n,) as for `split`; test examples of one group are resampled together.

    Returns:
      a reading for each factor. Its value is NaN if the factor is constant over the fitting part or the test part.

    Raises:
      ValueError: an unknown probe, shapes that do not fit, or values that are not finite.
    """
    if probe not in PROBES:
        raise ValueError(f"probe must be one of {PROBES}, got {probe!r}")
    code, groups = np.asarray(code), np.asarray(groups)
    if code.ndim != 2 or not np.issubdtype(code.dtype, np.floating) or not np.isfinite(code).all():
        raise ValueError(f"a code must be (n, d) finite floats, got {code.dtype} {code.shape}")
    targets = {name: _target(name, values, len(code)) for name, values in factors.items()}
    if not targets:
        return {}
    fit, choose, test = parts
    columns, ends = (
        np.hstack([*targets.values()]),
        np.cumsum([t.shape[1] for t in targets.values()]),
    )
    mean = columns[fit].mean(axis=0)
    ridge = _Ridge(_kernels(probe, code, parts), columns[fit] - mean)

    # Squared errors at each strength, summed for each factor and each group of the choosing part.
    starts = np.array([0, *ends[:-1]])
    of_group = _indicator(groups[choose])
    errors = []
    for strength in _STRENGTHS:
        squares = (columns[choose] - mean - ridge.predict(0, strength)) ** 2
        errors.append(of_group @ np.add.reduceat(squares, starts, axis=1))
    chosen = _strongest(np.stack(errors))

    of_group = _indicator(groups[test])
    readings = {}
    for (name, target), start, end, index in zip(targets.items(), starts, ends, chosen):
        part = slice(start, end)
        scores = mean[part] + ridge.predict(1, _STRENGTHS[index], part)
        truth, constant = target[test], np.broadcast_to(mean[part], scores.shape)
        if np.issubdtype(np.asarray(factors[name]).dtype, np.integer):
            right = [truth.argmax(axis=1) == guess.argmax(axis=1) for guess in (scores, constant)]
            won, of, chance = right[0].astype(float), np.ones(len(test)), right[1].mean()
        else:
            of = ((truth - constant) ** 2).sum(axis=1)
            won, chance = of - ((truth - scores) ** 2).sum(axis=1), 0.0
        if any(np.ptp(target[examples], axis=0).max() == 0 for examples in (fit, test)):
            won, of, chance = 0 * won, 0 * of, np.nan
        readings[name] = Reading(of_group @ won, of_group @ of, float(chance), _STRENGTHS[index])
    return readings


def estimate(readings: Sequence[Reading], level: float = 0.95, seed: int = 0) -> Estimate:
    """Return the mean value of several factors read in one test part, with its percentile bootstrap interval.

    Groups of the test part are resampled with replacement, with the same draw for all factors. The readout stays as
    it was fitted, so the interval covers only the uncertainty due to the choice of test examples. Factors with a NaN
    value are left out.

    Args:
      readings: the readings of the factors.
      level: the coverage of the interval.
      seed: the seed of the bootstrap.

    Raises:
      ValueError: no factor varies.
    """
    kept = [reading for reading in readings if not np.isnan(reading.value)]
    if not kept:
        raise ValueError("none of the factors varies in both the fitting and the test part")
    won, of = (np.stack([getattr(r, name) for r in kept], axis=1) for name in ("won", "of"))
    count = len(won)
    rng = np.random.default_rng(seed)
    times = rng.multinomial(count, np.full(count, 1 / count), size=_DRAWS).astype(float)
    means = np.nanmean(_ratio(times @ won, times @ of), axis=1)
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    value = np.mean([reading.value for reading in kept])
    chance = np.mean([reading.chance for reading in kept])
    return Estimate(float(value), float(low), float(high), float(chance))


class _Ridge:
    """Kernel ridge regression without a penalty on the constant; one factorisation serves all strengths.

    Args:
      kernels: the kernel of the fitting part with itself (n, n), then the kernels of other parts with it.
      targets: (n, c) with mean zero.
    """

    def __init__(self, kernels: Sequence[np.ndarray], targets: np.ndarray):
        inner = kernels[0]
        level, columns = inner.mean(), inner.mean(axis=0)
        centred = [k - k.mean(axis=1, keepdims=True) - columns + level for k in kernels]
        self._spectrum, vectors = np.linalg.eigh(centred[0])
        self._spectrum = np.maximum(self._spectrum, 0.0)
        self._targets = vectors.T @ targets
        self._others = [k @ vectors for k in centred[1:]]

    def predict(self, other: int, strength: float, columns: slice = slice(None)) -> np.ndarray:
        """Return predictions (m, c) for the m examples of the part with index `other` (0 is the first other part)."""
        targets = self._targets[:, columns]
        level = self._spectrum.mean()
        if np.isinf(strength) or level == 0:
            return np.zeros((len(self._others[other]), targets.shape[1]))
        return self._others[other] @ (targets / (self._spectrum + strength * level)[:, None])


def _kernels(probe: str, code: np.ndarray, parts: Parts) -> list[np.ndarray]:
    """Return the float64 kernels of each part with the fitting part, on standardised features."""
    fit = code[parts.fit]
    mean, scale = fit.mean(axis=0, dtype=np.float64), fit.std(axis=0, dtype=np.float64)
    varies = scale > 1e-6 * np.maximum(np.abs(mean), 1e-6)  # the rest is float32 rounding
    divisor = scale[varies] * np.sqrt(max(varies.sum(), 1))
    # Features keep the code's precision, because wide codes are large; its rounding is far below any noise.
    x = [((code[part][:, varies] - mean[varies]) / divisor).astype(code.dtype) for part in parts]
    products = [(part @ x[0].T).astype(np.float64) for part in x]
    if probe == "linear":
        return products
    # The added 1 is a constant feature, the hidden layer's bias; the squares of the others sum to about 1.
    squares = [1.0 + np.square(part, dtype=np.float64).sum(axis=1) for part in x]
    return [_arc_cosine(1.0 + p, square, squares[0]) for p, square in zip(products, squares)]


def _arc_cosine(product: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return 2 E[relu(w x) relu(w y)] over standard normal w, given the products x y and the squares of x and y."""
    lengths = np.sqrt(left[:, None] * right)
    angle = np.arccos(np.clip(product / lengths, -1.0, 1.0))
    return lengths / np.pi * (np.sin(angle) + (np.pi - angle) * np.cos(angle))


def _strongest(errors: np.ndarray) -> np.ndarray:
    """Return the index (k,) of the strongest strength within one standard error of the best, for each factor.

    Args:
      errors: (s, g, k) errors at s strengths, from weak to strong, in g groups, of k factors.
    """
    best = errors.sum(axis=1).argmin(axis=0)
    more = errors - np.take_along_axis(errors, best[None, None], axis=0)
    total = more.sum(axis=1)
    spread = np.sqrt(errors.shape[1]) * more.std(axis=1)  # the standard error of the total
    return len(errors) - 1 - (total <= spread)[::-1].argmax(axis=0)


def _target(name: str, values: ArrayLike, count: int) -> np.ndarray:
    """Return a factor as (n, c) float64: its numbers, or the indicators of its classes."""
    values = np.asarray(values)
    whole = np.issubdtype(values.dtype, np.integer)
    if len(values) != count or values.ndim > (1 if whole else 2) or not np.isfinite(values).all():
        raise ValueError(
            f"factor {name} must be {count} finite numbers, courses of numbers, or integer classes; "
            f"got {values.dtype} {values.shape}"
        )
    if whole:
        return (values[:, None] == np.unique(values)).astype(np.float64)
    return values.reshape(count, -1).astype(np.float64)


def _indicator(groups: np.ndarray) -> np.ndarray:
    """Return a matrix (g, n) with a one where an example belongs to a group; multiplying by it sums over groups."""
    return (np.unique(groups)[:, None] == groups).astype(np.float64)


def _ratio(won: np.ndarray, of: np.ndarray) -> np.ndarray:
    return np.divide(won, of, out=np.full(np.shape(of), np.nan), where=np.asarray(of) > 0)
