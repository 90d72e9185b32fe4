"""Scores of generated clips from the probabilities of a classifier, the judge (Sprites; BCD, table A1).

They follow the evaluation of C-DSVAE (JunwenBai/C-DSVAE, `test_sprite_cls.py`): natural
logarithms, and EPS = 1e-16 inside each. Probabilities are (N, C), a softmax per clip; sums are
float64. The original averages over batches and drops the last; these scores are exact over the N clips given.

H(y|x), H(y) and the inception score are reported on a class-balanced set:
`probs[balanced(labels)]`. With nine actions, perfect judgements give H(y|x) = 0, H(y) = ln 9 and an
inception score of 9.
"""

import numpy as np
from numpy.typing import ArrayLike

EPS = 1e-16


def accuracy(probs: ArrayLike, labels: ArrayLike) -> float:
    """Returns the share of clips, in [0, 1], whose most probable class is the label.

    With cross-driving, the action's label is that of the motion clip, and the labels of appearance are
    those of the content clip.

    Args:
        probs: (N, C) probabilities.
        labels: (N,) integers in [0, C).

    Raises:
        ValueError: shapes that do not match, labels out of range, or rows that are not
            probabilities.
    """
    probs = _probabilities(probs)
    labels = _labels(labels, probs.shape[1])
    if len(labels) != len(probs):
        raise ValueError(f"got {len(probs)} rows of probabilities but {len(labels)} labels")
    return float(np.mean(probs.argmax(axis=1) == labels))


def balanced(labels: ArrayLike, num_classes: int) -> np.ndarray:
    """Returns the indices of the first n clips of each class, where n is the size of the smallest class.

    Args:
        labels: (N,) integers in [0, num_classes).

    Returns:
        (num_classes * n,) int64, ordered by class, and in data order within each class.

    Raises:
        ValueError: labels out of range, or a class without clips.
    """
    labels = _labels(labels, num_classes)
    counts = np.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise ValueError(f"there are no clips of class {np.flatnonzero(counts == 0).tolist()}")
    return np.concatenate(
        [np.flatnonzero(labels == label)[: counts.min()] for label in range(num_classes)]
    )


def conditional_entropy(probs: ArrayLike) -> float:
    """Returns H(y|x) in nats, the mean over clips of -sum_c p log p: low when the judge is sure.

    Args:
        probs: (N, C) probabilities.

    Raises:
        ValueError: rows that are not probabilities.
    """
    return float(np.mean(_entropy(_probabilities(probs))))


def marginal_entropy(probs: ArrayLike) -> float:
    """Returns H(y) in nats, the entropy of the mean of p over clips: high when all classes occur.

    Args:
        probs: (N, C) probabilities.

    Raises:
        ValueError: rows that are not probabilities.
    """
    return float(_entropy(_probabilities(probs).mean(axis=0)))


def inception_score(probs: ArrayLike) -> float:
    """Returns the exp of the mean over clips of KL(p || mean p), which is exp(H(y) - H(y|x)), between 1 and C.

    Args:
        probs: (N, C) probabilities.

    Raises:
        ValueError: rows that are not probabilities.
    """
    probs = _probabilities(probs)
    return float(np.exp(np.mean(_kl(probs, probs.mean(axis=0, keepdims=True)))))


def _entropy(p: np.ndarray) -> np.ndarray:
    return 0.0 - np.sum(p * np.log(p + EPS), axis=-1)  # avoids -0.0 for a sure judge


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.sum(p * (np.log(p + EPS) - np.log(q + EPS)), axis=-1)


def _probabilities(probs: ArrayLike) -> np.ndarray:
    probs = np.asarray(probs, np.float64)
    if probs.ndim != 2 or not len(probs):
        raise ValueError(f"probabilities must be (N, C) with N > 0, got {probs.shape}")
    # A float32 softmax sums to 1 within about 1e-6; logits do not.
    if not (np.all(probs >= 0) and np.allclose(probs.sum(axis=1), 1, rtol=0, atol=1e-3)):
        raise ValueError("rows must be probabilities: none negative, each summing to 1")
    return probs


def _labels(labels: ArrayLike, num_classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be (N,) integers, got {labels.dtype} {labels.shape}")
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(
            f"labels must lie in [0, {num_classes}), got {labels.min()} to {labels.max()}"
        )
    return labels
