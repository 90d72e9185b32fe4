"""Bits, rates and the rate term against values computed by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion.losses import bitrate
from vidmotion.metrics import codebook


def test_bits_per_frame_and_kbps():
    assert bitrate.bits_per_frame(4000) == 160  # LRS3
    # Sprites: the most that one codebook of 64 entries can hold.
    assert bitrate.bits_per_frame(150) == 6
    # 8 kbps is the most that 64 codebooks of 32 entries can hold: the top row of the bitrate ablation.
    assert bitrate.bits_per_frame(8000) == 64 * 5 == 320
    for bits in (6.0, 160.0):
        assert float(bitrate.kbps(jnp.float32(bits))) == pytest.approx(bits * 25 / 1000)
        assert codebook.kbps(bits) == pytest.approx(bits * 25 / 1000)


def test_entropy_in_bits():
    usage = np.array([[0.5, 0.25, 0.125, 0.125], [0.25] * 4, [0, 1, 0, 0], [0.5, 0, 0, 0.5]])
    np.testing.assert_allclose(bitrate.entropy_bits(usage), [1.75, 2, 0, 1], atol=1e-6)
    counts = np.random.default_rng(0).integers(0, 50, (3, 16))
    usage = counts / counts.sum(axis=1, keepdims=True)
    expected = codebook.entropy_bits(counts)  # computed in float64, and exact at zero
    np.testing.assert_allclose(bitrate.entropy_bits(usage), expected, atol=1e-5)


def test_entropy_of_unused_entries_has_a_finite_gradient():
    gradient = jax.grad(lambda a: jnp.sum(bitrate.entropy_bits(a)))(jnp.array([[1.0, 0.0]]))
    # d/da of -a log2(a + e) is -log2(a + e) - a / ((a + e) ln 2): -1 / ln 2 at one, -log2(1e-10) at zero.
    np.testing.assert_allclose(gradient, [[-1 / math.log(2), 10 * math.log2(10)]], rtol=1e-5)


def test_magnitudes_at_maximum_use():
    # 64 codebooks of 5 bits each against a target of 160: 2.5 bits too many per codebook (spec of the rate term).
    full = jnp.full((64,), 5.0)
    expected = {
        "per_codebook_mean": 0.25,  # 0.04 * 2.5^2
        "per_codebook_sum": 16.0,  # 64 times 0.25
        "total_normalised": 0.25,
        "l1": 0.04 * 0.01 * 64 * 2.5,
    }
    assert set(expected) == set(bitrate.MODES)
    for mode, value in expected.items():
        assert float(0.04 * bitrate.rate_loss(full, 160.0, mode)) == pytest.approx(value), mode
    # A penalty on the squared total, 0.04 * 160^2, would be 1024: this is why no mode uses it.
    assert 0.04 * float(jnp.sum(full) - 160.0) ** 2 == pytest.approx(1024)
    assert 64**2 * expected["total_normalised"] == pytest.approx(1024)


def test_only_the_total_lets_books_trade_bits():
    uneven = jnp.array([1.0, 3.0])  # the target is 2 + 2
    values = {mode: float(bitrate.rate_loss(uneven, 4.0, mode)) for mode in bitrate.MODES}
    assert values == {
        "per_codebook_mean": pytest.approx(1.0),
        "per_codebook_sum": pytest.approx(2.0),
        "total_normalised": 0.0,
        "l1": pytest.approx(0.02),
    }


@pytest.mark.parametrize("mode", bitrate.MODES)
def test_too_few_bits_cost_as_much_as_too_many(mode):
    rate = [float(bitrate.rate_loss(jnp.full((4,), b), 8.0, mode)) for b in (1.0, 2.0, 3.0)]
    assert rate[1] == 0
    slope = jax.grad(lambda h: bitrate.rate_loss(h, 8.0, mode))
    assert np.all(slope(jnp.full((4,), 2.5)) > 0)
    assert np.all(slope(jnp.full((4,), 1.5)) < 0)
    if mode != "l1":  # l1 has a kink at the target
        np.testing.assert_array_equal(slope(jnp.full((4,), 2.0)), 0)
    assert rate[0] == pytest.approx(rate[2])
    assert rate[0] > 0


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"rate mode 'mean': choose one of per_codebook_mean"):
        bitrate.rate_loss(jnp.ones(2), 1.0, "mean")
