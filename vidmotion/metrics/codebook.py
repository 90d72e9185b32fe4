"""Measures how much of its codebooks a model uses: entropy, perplexity, bitrate, compression rate.

The statistics are usage counts (N, J) for N codebooks of J entries each. Counts of batches and hosts are
merged by adding them. Entropies treat codebooks and tokens as independent, so they are an upper bound on
the rate: repetition over time or between codebooks would allow a shorter code.
"""

import numpy as np
from numpy.typing import ArrayLike

# BCD's rates assume 25 frames/s, although training on LRS3 uses every second frame: the table's
# 4 kbps are 160 bits per frame, and the 150 bps of Sprites are 6 bits per frame.
FRAMES_PER_SECOND = 25


def usage_counts(ids: ArrayLike, entries: int) -> np.ndarray:
    """Counts how often each entry of each codebook occurs.

    Args:
        ids: (..., N) integers in [0, entries), one per codebook.
        entries: J, the size of each codebook.

    Returns:
        (N, J) int64.

    Raises:
        ValueError: not integers, no axis of codebooks, or ids out of range.
    """
    ids = np.asarray(ids)
    if ids.ndim == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"ids must be (..., N) integers, got {ids.dtype} {ids.shape}")
    if ids.size and not (ids.min() >= 0 and ids.max() < entries):
        raise ValueError(f"ids must lie in [0, {entries}), got {ids.min()} to {ids.max()}")
    codebooks = ids.shape[-1]
    flat = ids.reshape(-1, codebooks).astype(np.int64) + entries * np.arange(codebooks)
    return np.bincount(flat.ravel(), minlength=codebooks * entries).reshape(codebooks, entries)


def entropy_bits(counts: ArrayLike) -> np.ndarray:
    """Returns the entropy of each codebook's use, H = -sum_j p_j log2 p_j, in bits, with 0 log 0 = 0.

    This is the hard counterpart of BCD's rate term (which adds 1e-10 inside the logarithm: 1e-8 bits).

    Args:
        counts: (N, J) as from `usage_counts`.

    Returns:
        (N,) float64, between 0 and log2 J.

    Raises:
        ValueError: not (N, J), negative, or a codebook without any count.
    """
    counts = np.asarray(counts, np.float64)
    if counts.ndim != 2 or not np.all(counts >= 0):
        raise ValueError(f"counts must be (N, J) and not negative, got shape {counts.shape}")
    totals = counts.sum(axis=1, keepdims=True)
    if not totals.all():
        raise ValueError("a codebook was never used: count some tokens first")
    p = counts / totals
    return 0.0 - np.sum(p * np.log2(p, where=p > 0, out=np.zeros_like(p)), axis=1)  # never -0.0


def perplexity(counts: ArrayLike) -> np.ndarray:
    """Returns 2^H of each codebook: the number of equally used entries that has the same entropy.

    Args:
        counts: (N, J) as from `usage_counts`.

    Returns:
        (N,) float64, between 1 and J.

    Raises:
        ValueError: as `entropy_bits`.
    """
    return 2 ** entropy_bits(counts)


def used_fraction(counts: ArrayLike) -> np.ndarray:
    """Returns the share of each codebook's entries that occur at least once.

    Args:
        counts: (N, J) as from `usage_counts`.

    Returns:
        (N,) float64 in [0, 1].
    """
    return np.mean(np.asarray(counts) > 0, axis=1)


def bits_per_frame(counts: ArrayLike) -> float:
    """Returns the empirical rate in bits per token frame: the sum of the codebooks' entropies.

    Args:
        counts: (N, J) as from `usage_counts`.

    Raises:
        ValueError: as `entropy_bits`.
    """
    return float(entropy_bits(counts).sum())


def kbps(bits: float, frames_per_second: float = FRAMES_PER_SECOND) -> float:
    """Converts a rate in bits per frame to kilobits (1000 bits) per second."""
    return bits * frames_per_second / 1000


def compression_rate(latents: int, frames: int, height: int, width: int) -> float:
    """Returns the number of latent values per value in the video, latents / (3 T H W), in percent.

    Lower means more compression (VidTwin, section B.1): 4928 latent values for 16 x 224 x 224 pixels are 0.2046 %.
    """
    return 100 * latents / (3 * frames * height * width)
