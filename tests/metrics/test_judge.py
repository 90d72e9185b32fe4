"""Judge scores against closed forms and one small table worked out by hand."""

import math

import numpy as np
import pytest

from vidmotion.metrics import judge

SMALL = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.9, 0.05, 0.05]]


def test_perfect_judgements():
    probs = np.eye(9).repeat(4, axis=0)
    assert judge.accuracy(probs, np.arange(9).repeat(4)) == 1.0
    assert judge.conditional_entropy(probs) == pytest.approx(0, abs=1e-12)
    assert judge.marginal_entropy(probs) == pytest.approx(math.log(9), abs=1e-12)
    assert judge.inception_score(probs) == pytest.approx(9, abs=1e-9)


def test_uniform_judgements():
    probs = np.full((10, 9), 1 / 9)
    assert judge.conditional_entropy(probs) == pytest.approx(math.log(9))
    assert judge.marginal_entropy(probs) == pytest.approx(math.log(9))
    assert judge.inception_score(probs) == pytest.approx(1)


def test_small_table():
    # Expected values were computed independently in float64.
    assert judge.marginal_entropy(SMALL) == pytest.approx(1.0462166779, abs=1e-10)
    assert judge.conditional_entropy(SMALL) == pytest.approx(0.6963796607, abs=1e-10)
    assert judge.inception_score(SMALL) == pytest.approx(1.4188362838, abs=1e-10)
    gap = judge.marginal_entropy(SMALL) - judge.conditional_entropy(SMALL)
    assert judge.inception_score(SMALL) == pytest.approx(math.exp(gap))
    assert judge.accuracy(SMALL, [0, 1, 2, 1]) == 0.75


def test_balanced_takes_the_first_of_each_class():
    labels = np.array([2, 0, 0, 1, 0, 2, 1, 2])
    assert judge.balanced(labels, 3).tolist() == [1, 2, 3, 6, 0, 5]
    with pytest.raises(ValueError, match=r"no clips of class \[3\]"):
        judge.balanced(labels, 4)


def test_what_is_refused():
    with pytest.raises(ValueError, match="summing to 1"):
        judge.inception_score([[2.0, -1.0]])
    with pytest.raises(ValueError, match="summing to 1"):
        judge.inception_score([[np.nan, 1.0]])
    with pytest.raises(ValueError, match="N > 0"):
        judge.marginal_entropy(np.zeros((0, 9)))
    with pytest.raises(ValueError, match=r"lie in \[0, 3\)"):
        judge.accuracy(SMALL, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="4 rows of probabilities but 3 labels"):
        judge.accuracy(SMALL, [0, 1, 2])
    with pytest.raises(ValueError, match="integers"):
        judge.balanced(np.array([0.0, 1.0]), 2)
