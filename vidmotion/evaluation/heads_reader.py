"""Evaluates the reader of Heads on held-out true renders, and lets other evaluators read the clips that a system made.

The reader is a small-scale counterpart of AED, APD and CSIM. Those use networks trained on photographs; the reader is
a network that was trained on the very factors that heads are drawn from.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vidmotion.data import heads
from vidmotion.evaluation.evaluator import Evaluator
from vidmotion.evaluation.transfer import through
from vidmotion.metrics.result import MetricResult
from vidmotion.systems.heads_reader import CLASSES, MOTION, NUMBERS

# The groups of motion factors: the place and turn of the head, its tilt, and the movements of the face.
GROUPS = {
    "motion/place": ("yaw", "x", "y", "scale"),
    "motion/tilt": ("roll", "pitch"),
    "motion/face": (
        *("mouth_open", "smile", "lid_left", "lid_right"),
        *("gaze_x", "gaze_y", "brow_left", "brow_right"),
    ),
    "identity/numbers": NUMBERS,
    "identity/classes": tuple(CLASSES),
}


class Score(NamedTuple):
    """How well one factor or group is read.

    Attributes:
      value: R^2 or the accuracy; None if the factor does not vary.
      n: the number of frames, or of factors in a group, behind the value.
    """

    value: float | None
    n: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadsReading(Evaluator):
    """Measures how well a reader reads held-out true renders."""

    def evaluate(self, run, vars) -> list[MetricResult]:
        """Return R^2 of each motion factor and identity number, accuracy of each identity class, and means of groups.

        Each is taken over the frames of the eval split in which the factor has a visible effect.
        """
        source = run.source("eval")
        clips = range(len(source))
        read = read_clips(run, vars, [source.video(i) for i in clips])
        known = scores(read, [(source.identity(i), source.motion(i)) for i in clips])
        side = f"{run.system.size}x{run.system.size}"
        return [row(name, score, "this run", side) for name, score in known.items()]


def row(name: str, score: Score, weights: str, resolution: str, note: str = "") -> MetricResult:
    """Return the row ``read/<name>`` for one of the results of `scores`; other arguments are as in `MetricResult`."""
    if score.value is None:
        note = "not computed: it is the same, or hidden, in all frames"
    return MetricResult(
        f"read/{name}", score.value, _convention(name), weights, resolution, score.n, note
    )


def _convention(name: str) -> str:
    if name in GROUPS:
        kind = "accuracies" if name == "identity/classes" else "R^2"
        return f"mean {kind} of {', '.join(GROUPS[name])}"
    factor = name.split("/")[1]
    if factor in CLASSES:
        return f"accuracy of single frames, {CLASSES[factor]} classes"
    return "R^2 of single frames"


def read_clips(run, vars, videos: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Read the factors in each frame of clips (T, H, W, 3), uint8 or float in [0, 1].

    Returns:
      the outputs of `HeadsReader.sample` by factor: (N, T) or (N, T, classes).
    """
    return through(run, run.jit_sample(), vars, videos, 32)


def scores(
    read: Mapping[str, np.ndarray], drawn: Iterable[tuple[heads.Identity, np.ndarray]]
) -> dict[str, Score]:
    """Score the reading of clips against the factors that the clips were drawn from.

    Args:
      read: the result of `read_clips`.
      drawn: the identity and motion (T, 14) that each clip was drawn from.

    Returns:
      ``{"motion/yaw": Score, ..., "identity/skin": Score, ...}``, then the groups of `GROUPS`. Numbers are scored by
      R^2 about their mean, classes by accuracy; both over the frames in which the factor is visible.
    """
    identities, motions = zip(*drawn)
    shown = np.stack([heads.seen(*pair) for pair in zip(identities, motions)])
    found: dict[str, Score] = {}
    for k, name in enumerate(heads.FACTORS):
        if name in MOTION:
            truth, prefix = np.stack([motion[:, k] for motion in motions]), "motion"
        else:
            values = np.array([who[name] for who in identities])
            truth, prefix = np.broadcast_to(values[:, None], shown.shape[:2]), "identity"
        mask = shown[..., k]
        score = _accuracy if name in CLASSES else _r_squared
        found[f"{prefix}/{name}"] = Score(score(read[name][mask], truth[mask]), int(mask.sum()))
    for group, names in GROUPS.items():
        values = [found[f"{group.split('/')[0]}/{name}"].value for name in names]
        whole = None if None in values else float(np.mean(values))
        found[group] = Score(whole, len(names))
    return found


def _r_squared(read_n: np.ndarray, truth_n: np.ndarray) -> float | None:
    truth_n = truth_n.astype(np.float64)
    spread = np.sum((truth_n - truth_n.mean()) ** 2) if len(truth_n) else 0.0
    return float(1.0 - np.sum((read_n - truth_n) ** 2) / spread) if spread > 1e-12 else None


def _accuracy(read_nc: np.ndarray, truth_n: np.ndarray) -> float | None:
    return float(np.mean(np.argmax(read_nc, axis=-1) == truth_n)) if len(truth_n) else None
