"""How much of its codebooks a model uses: entropy, perplexity, bitrate, compression rate.

Statistics are usage counts (N, J): N codebooks of J entries each. Counts of batches and hosts are
merged by adding them. Entropies treat codebooks and tokens as independent, so they bound the rate
from above; what repeats over time or between codebooks could be coded in less.
"""

import numpy as np
from numpy.typing import ArrayLike

# BCD's rates count 25 frames/s, although LRS3 clips are trained on every second frame: the table's
# 4 kbps are 160 bits a frame, the 150 bps of Sprites are 6.
FRAMES_PER_SECOND = 25


def usage_counts(ids: ArrayLike, entries: int) -> np.ndarray:
    """How often each entry of each codebook occurs.

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
    """Entropy of each codebook's use, H = -sum_j p_j log2 p_j, in bits, with 0 log 0 = 0.

    The hard counterpart of BCD's rate term (which adds 1e-10 inside the logarithm: 1e-8 bits).

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
    """2^H of each codebook: the number of equally used entries with the same entropy.

    Args:
        counts: (N, J) as from `usage_counts`.

    Returns:
        (N,) float64, between 1 and J.

    Raises:
        ValueError: as `entropy_bits`.
    """
    return 2 ** entropy_bits(counts)


def used_fraction(counts: ArrayLike) -> np.ndarray:
    """Share of each codebook's entries that occur at all.

    Args:
        counts: (N, J) as from `usage_counts`.

    Returns:
        (N,) float64 in [0, 1].
    """
    return np.mean(np.asarray(counts) > 0, axis=1)


def bits_per_frame(counts: ArrayLike) -> float:
    """Empirical rate in bits per token frame: the sum of the codebooks' entropies.

    Args:
        counts: (N, J) as from `usage_counts`.

    Raises:
        ValueError: as `entropy_bits`.
    """
    return float(entropy_bits(counts).sum())


def kbps(bits: float, frames_per_second: float = FRAMES_PER_SECOND) -> float:
    """Rate in kilobits (1000 bits) per second from bits per frame."""
    return bits * frames_per_second / 1000


def compression_rate(latents: int, frames: int, height: int, width: int) -> float:
    """Latent numbers kept per number in the video, latents / (3 T H W), in percent.

    Lower is more compressed (VidTwin, section B.1): 4928 latents of 16 x 224 x 224 are 0.2046 %.
    """
    return 100 * latents / (3 * frames * height * width)
