"""Evaluates the Sprites judge on real test clips, and loads and applies a trained judge for other evaluators."""

import dataclasses

import numpy as np

from vidmotion.checkpoint import Checkpointer
from vidmotion.errors import ConfigError
from vidmotion.evaluation.evaluator import Evaluator
from vidmotion.evaluation.transfer import through
from vidmotion.metrics import judge as metrics
from vidmotion.metrics.result import MetricResult
from vidmotion.open_run import open_run
from vidmotion.run import Run
from vidmotion.system import Vars, fingerprint
from vidmotion.systems.sprites_judge import LABELS, SpritesJudge, labels_of

NEEDS = "{}, the workdir of a run of configs/sprites_judge.py"


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


def trained_judge(workdir: str, field: str) -> tuple[Run, Vars, str] | None:
    """Load a trained judge: return its run, its variables, and the start of their fingerprint.

    The result is None if `workdir` is empty.

    Args:
      workdir: the workdir of a run of configs/sprites_judge.py.
      field: the config field that `workdir` was read from, for error messages.

    Raises:
      ConfigError: there is no such run, it is of another system, or its training is not finished.
      CheckpointError: the workdir holds no checkpoint.
    """
    if not workdir:
        return None
    judge, field = open_run(workdir), f"config.evals.{field}={workdir!r}"
    if not isinstance(judge.system, SpritesJudge):
        raise ConfigError(
            f"{field} holds a run of {judge.config.system.name!r}; expected a run of configs/sprites_judge.py"
        )
    with Checkpointer(workdir, read_only=True) as checkpointer:
        done = max(checkpointer.steps(), default=0)
    if done < judge.config.steps:
        raise ConfigError(
            f"{field} has been trained for {done} of {judge.config.steps} steps: finish its training first"
        )
    vars = judge.trained_vars()
    return judge, vars, fingerprint(vars.params)[:12]
