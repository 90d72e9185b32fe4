"""Codebook statistics against closed forms and a small table worked out by hand."""

import numpy as np
import pytest

from vidmotion.metrics import codebook

IDS = np.array([[0, 1, 1, 3], [2, 1, 0, 3], [0, 1, 1, 3], [0, 0, 2, 3]])  # 4 frames, 4 codebooks


def test_small_table():
    counts = codebook.usage_counts(IDS, 4)
    assert counts.tolist() == [[3, 0, 1, 0], [1, 3, 0, 0], [1, 2, 1, 0], [0, 0, 0, 4]]
    # H(3/4, 1/4) = 2 - 0.75 log2 3 and H(1/4, 1/2, 1/4) = 1.5.
    quarter = 2 - 0.75 * np.log2(3)
    np.testing.assert_allclose(codebook.entropy_bits(counts), [quarter, quarter, 1.5, 0])
    np.testing.assert_allclose(
        codebook.perplexity(counts), [1.75476535, 1.75476535, 2.82842712, 1], rtol=1e-8
    )
    np.testing.assert_allclose(codebook.used_fraction(counts), [0.5, 0.5, 0.75, 0.25])
    bits = codebook.bits_per_frame(counts)
    assert codebook.kbps(bits, frames_per_second=12.5) == pytest.approx(0.0390319531)
    assert codebook.kbps(4 * 2, 12.5) == pytest.approx(0.1)


@pytest.mark.parametrize("entries", [2, 32, 64])
def test_uniform_use_has_log2_j_bits(entries):
    ids = np.stack([np.arange(3 * entries) % entries] * 5, axis=-1).reshape(3, entries, 5)
    counts = codebook.usage_counts(ids, entries)
    np.testing.assert_allclose(codebook.entropy_bits(counts), np.full(5, np.log2(entries)))
    np.testing.assert_allclose(codebook.perplexity(counts), np.full(5, entries))
    assert codebook.bits_per_frame(counts) == pytest.approx(5 * np.log2(entries))


def test_counts_of_hosts_add_up():
    ids = np.random.default_rng(0).integers(0, 8, (6, 10, 3))
    parts = sum(codebook.usage_counts(part, 8) for part in np.array_split(ids, 4))
    np.testing.assert_array_equal(parts, codebook.usage_counts(ids, 8))


def test_rates_of_the_papers():
    assert codebook.kbps(160) == 4.0  # BCD, LRS3
    assert codebook.kbps(6) == pytest.approx(0.150)  # BCD, Sprites
    # VidTwin, settings 1, 2 and 3.
    for latents, percent in ((4928, 0.2046), (5184, 0.2152), (4144, 0.1721)):
        assert codebook.compression_rate(latents, 16, 224, 224) == pytest.approx(percent, abs=5e-5)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"lie in \[0, 3\), got 0 to 3"):
        codebook.usage_counts(IDS, 3)
    with pytest.raises(ValueError, match="integers"):
        codebook.usage_counts(IDS.astype(float), 4)
    with pytest.raises(ValueError, match="never used"):
        codebook.entropy_bits(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"\(N, J\)"):
        codebook.entropy_bits(np.array([1, 2]))
