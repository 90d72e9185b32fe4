"""How well the Sprites judge reads real test clips."""

import logging
from collections.abc import Callable

import jax
import numpy as np

from vidmotion.metrics import judge as metrics
from vidmotion.metrics.result import MetricResult
from vidmotion.run import Run, load_config
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
    rows = run.rows(64)
    sample = run.jit_sample()
    parts = []
    for start in range(0, len(clips), rows):
        picked = np.minimum(np.arange(start, start + rows), len(clips) - 1)
        video = run.put_rows({"video": np.stack([clips[i]["video"] for i in picked])})
        outputs = jax.tree.map(np.asarray, sample(vars, video, jax.random.key(0)))
        parts.append({name: value[: len(clips) - start] for name, value in outputs.items()})
    probabilities = {name: np.concatenate([p[name] for p in parts]) for name, _ in LABELS}
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
