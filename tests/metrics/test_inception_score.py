"""The streaming Inception score against its definition and hand computations; bad input is refused."""

import numpy as np
import pytest

from vidmotion.metrics.inception_score import InceptionScore, result, without_weights


def plain(logits, splits):
    """Computes the score by its definition, with probabilities and logarithms."""
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    n, scores = len(p), []
    for i in range(splits):
        part = p[i * n // splits : (i + 1) * n // splits]
        kl = (part * np.log(part / part.mean(0))).sum(1)
        scores.append(np.exp(kl.mean()))
    return np.mean(scores), np.std(scores)


def test_golden_block():
    """Checks the table of the spec metrics.md, section 14, given as logits."""
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.9, 0.05, 0.05]])
    score = InceptionScore.empty(3, total=4, splits=1).update(np.log(p) + 5, np.arange(4))
    assert score.compute() == (pytest.approx(1.4188362838, abs=1e-10), 0.0)


@pytest.mark.parametrize("n, splits", [(40, 10), (43, 10), (7, 1), (7, 7)])
def test_batches_hosts_and_order_do_not_matter(n, splits):
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(n, 12))
    hosts = [InceptionScore.empty(12, n, splits) for _ in range(2)]
    for i, indices in enumerate(np.array_split(rng.permutation(n), 5)):
        hosts[i % 2] = hosts[i % 2].update(logits[indices], indices)
    np.testing.assert_allclose(
        hosts[0].merge(hosts[1]).compute(), plain(logits, splits), rtol=1e-12, atol=1e-12
    )


def test_extremes():
    sure = np.where(np.eye(6, dtype=bool), 0.0, -np.inf)  # probabilities are exactly 0 and 1
    score = InceptionScore.empty(6, 6, 1).update(sure, np.arange(6))
    assert score.compute()[0] == pytest.approx(6, rel=1e-14)
    score = InceptionScore.empty(6, 6, 1).update(np.ones((6, 6)), np.arange(6))
    assert score.compute()[0] == pytest.approx(1, rel=1e-14)
    score = InceptionScore.empty(6, 6, 1).update(1e4 * np.eye(6), np.arange(6))  # must not overflow
    assert score.compute()[0] == pytest.approx(6, rel=1e-12)


def test_rows():
    logits = np.random.default_rng(1).normal(size=(20, 5))
    score = InceptionScore.empty(5, 20, 2).update(logits, np.arange(20))
    mean, deviation = plain(logits, 2)
    row = result(score, "w", "64x64")
    assert row.value == pytest.approx(mean) and row.n == 20 and row.convention == "tf_graph"
    assert row.note == f"mean of 2 parts, deviation {deviation:.4f}"
    logits[3] = np.nan
    row = result(InceptionScore.empty(5, 20, 2).update(logits, np.arange(20)), "w", "64x64")
    assert row.value is None and row.note == "not computed: logits are not finite"
    assert "needs pt_inception-2015-12-05" in without_weights("64x64", 20).note


def test_a_masked_sample_counts_for_nothing():
    logits = np.random.default_rng(1).normal(size=(5, 4))
    padded = np.concatenate([logits, np.full((2, 4), np.nan)])
    indices = np.array([0, 1, 2, 3, 4, 4, 4])
    got = InceptionScore.empty(4, 5, 1).update(padded, indices, indices < 5 - (np.arange(7) > 4))
    assert got.compute() == pytest.approx(plain(logits, 1))


def test_refusals():
    score = InceptionScore.empty(4, total=5, splits=2)
    with pytest.raises(ValueError, match="0 samples were counted, but the set has 5"):
        score.compute()
    half = score.update(np.ones((3, 4)), np.arange(3))
    with pytest.raises(ValueError, match="6 samples were counted, but the set has 5"):
        half.merge(half).compute()
    with pytest.raises(ValueError, match=r"logits must be \(b, 4\)"):
        score.update(np.ones((3, 5)), np.arange(3))
    with pytest.raises(ValueError, match="indices must be 3 integers"):
        score.update(np.ones((3, 4)), np.arange(2))
    with pytest.raises(ValueError, match=r"lie in \[0, 5\)"):
        score.update(np.ones((3, 4)), np.arange(3, 6))
    with pytest.raises(ValueError, match="cannot be cut into 2 parts"):
        InceptionScore.empty(4, 1, 2)
    with pytest.raises(ValueError, match="different sets"):
        score.merge(InceptionScore.empty(4, 6, 2))
