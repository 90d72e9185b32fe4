"""Evaluates the Sprites judge on real test clips, and applies a trained judge for other evaluators."""

import dataclasses

import numpy as np

from vidmotion.evaluation.evaluator import Evaluator
from vidmotion.evaluation.trained import Trained, trained
from vidmotion.evaluation.transfer import through
from vidmotion.metrics import judge as metrics
from vidmotion.metrics.result import MetricResult
from vidmotion.systems.sprites_judge import LABELS, SpritesJudge, labels_of

NEEDS = "{}, the shipped judge or a run of configs/sprites_judge.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeAccuracy(Evaluator):
    """Measures how well the Sprites judge classifies real test clips."""

    def evaluate(self, run, vars) -> list[MetricResult]:
        """Return the accuracy of each label over all clips of the eval split."""
        source = run.source("eval")
        probabilities, labels = judge_clips(run, vars, [source[i] for i in range(len(source))])
        return [
            MetricResult(
                f"judge/{name}",
                metrics.accuracy(probabilities[name], labels[name]),
                "share of real test clips",
                "this run",
                f"{run.system.size}x{run.system.size}",
                len(source),
            )
            for name, _ in LABELS
        ]


def judge_clips(
    run, vars, clips: list[dict]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the probabilities ``{label: (N, classes)}`` from the judge `run`, and the clips' true labels (N,)."""
    probabilities = through(run, run.jit_sample(), vars, [clip["video"] for clip in clips], 64)
    stacked = {name: np.stack([clip[name] for clip in clips]) for name in ("action", "attributes")}
    return probabilities, labels_of(stacked)


def trained_judge(where: str, field: str) -> Trained | None:
    """Load a trained judge; None if `where` is empty.

    Args:
      where: the name of a shipped judge, or the workdir of a run of configs/sprites_judge.py.
      field: the field of ``config.evals`` that `where` was read from, for messages.

    Raises:
      ConfigError: there is no such run, it is of another system, or its training is not finished.
      CheckpointError: the workdir holds no checkpoint.
    """
    return trained(where, f"config.evals.{field}", SpritesJudge, "configs/sprites_judge.py")
