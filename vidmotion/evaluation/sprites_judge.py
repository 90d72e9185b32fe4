"""How well the Sprites judge reads real test clips."""

import dataclasses
import logging
from collections.abc import Callable

import numpy as np

from vidmotion.evaluation.evaluator import Evaluator
from vidmotion.evaluation.transfer import through
from vidmotion.metrics import judge as metrics
from vidmotion.metrics.result import MetricResult
from vidmotion.open_run import load_config
from vidmotion.run import Run
from vidmotion.systems.sprites_judge import LABELS, labels_of

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeAccuracy(Evaluator):
    """How well the Sprites judge reads real test clips."""

    def evaluate(self, run, vars, companion) -> list[MetricResult]:
        """Accuracy of each label on every clip of the eval split."""
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
    """Probabilities ``{label: (N, classes)}`` of the judge `run`, and the clips' own labels (N,)."""
    probabilities = through(run, run.jit_sample(), vars, [clip["video"] for clip in clips], 64)
    stacked = {name: np.stack([clip[name] for clip in clips]) for name in ("action", "attributes")}
    return probabilities, labels_of(stacked)


def trained_judge(
    name: str, workdir: str, companion: Callable, sheets_dir: str
) -> tuple[Run, tuple, str]:
    """A judge: (its run, variables, identity).

    Args:
      name: of the judge's config.
      workdir: where it lies, or is trained.
      companion: as of `Evaluator.evaluate`.
      sheets_dir: the sheets that it learns from.
    """
    config = load_config(name)
    config.data.common.sheets_dir = sheets_dir
    log.info("judge: %s in %s", name, workdir)
    judge_run = companion(Run(config, workdir))
    return judge_run, judge_run.trained_vars(), f"{name} trained here"
