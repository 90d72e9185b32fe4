"""How well the Sprites judge reads real test clips."""

import logging
from collections.abc import Callable

import numpy as np

from vidmotion.evaluation.transfer import through
from vidmotion.metrics import judge as metrics
from vidmotion.metrics.result import MetricResult
from vidmotion.open_run import load_config
from vidmotion.run import Run
from vidmotion.systems.sprites_judge import LABELS, labels_of

log = logging.getLogger(__name__)


def evaluate(run, vars, companion) -> list[MetricResult]:
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


def trained_judge(run, companion: Callable, sheets_dir: str) -> tuple[Run, tuple, str]:
    """The judge that ``config.eval`` of another run names: (its run, variables, identity).

    ``config.eval``: `judge` the judge's config, `judge_workdir` where it lies or is trained (default
    ``<workdir>/judge``). It learns from the sheets in `sheets_dir`.
    """
    settings = run.config.eval
    config = load_config(settings.judge)
    config.data.common.sheets_dir = sheets_dir
    workdir = settings.judge_workdir or str(run.workdir / "judge")
    log.info("judge: configs/%s in %s", settings.judge, workdir)
    judge_run = companion(Run(config, workdir))
    return judge_run, judge_run.trained_vars(), f"{settings.judge} trained here"
