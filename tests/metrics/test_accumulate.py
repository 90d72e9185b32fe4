"""The streaming mean against the mean over all values at once."""

import math

import numpy as np
import pytest

from vidmotion.metrics.accumulate import Mean


def test_batches_and_hosts_merge_to_the_mean_of_all():
    values = np.random.default_rng(0).normal(size=1003).astype(np.float32)
    expected = math.fsum(values.tolist()) / 1003
    for parts in (1, 7, 100):
        hosts = [Mean(), Mean(), Mean()]
        for index, batch in enumerate(np.array_split(values, parts)):
            hosts[index % 3] = hosts[index % 3].update(batch)
        merged = hosts[0].merge(hosts[1]).merge(hosts[2])
        assert merged.count == 1003
        assert merged.compute() == pytest.approx(expected, rel=1e-13)


def test_float32_values_are_summed_in_float64():
    # float32 cannot represent 2^24 + 1.
    mean = Mean(total=2.0**24, count=1).update(np.ones(1, np.float32))
    assert mean.total == 2**24 + 1


def test_padding_is_masked_whatever_it_holds():
    batch = np.array([[1.0, 3.0], [np.nan, np.inf]])
    mean = Mean().update(batch, np.array([True, False])[:, None])
    assert (mean.compute(), mean.count) == (2.0, 2)
    with pytest.raises(ValueError, match="boolean"):
        Mean().update(batch, np.ones((2, 2)))


def test_nan_shows_and_empty_is_nan():
    assert math.isnan(Mean().update([1.0, np.nan]).compute())
    assert Mean().update([1.0, np.inf]).compute() == math.inf
    assert math.isnan(Mean().compute())
    assert Mean().update(4.0).merge(Mean()).compute() == 4.0
