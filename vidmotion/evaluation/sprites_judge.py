"""How well the Sprites judge reads real test clips."""

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
    """How well the Sprites judge reads real test clips."""

    def evaluate(self, run, vars) -> list[MetricResult]:
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


def trained_judge(workdir: str, field: str) -> tuple[Run, Vars, str] | None:
    """A judge, its variables, and the beginning of their fingerprint; None where `workdir` is empty.

    Args:
      workdir: the folder of a run of configs/sprites_judge.py.
      field: the field of the config that names it, for messages.

    Raises:
      ConfigError: no such run, another system's, or a training that has not come to its end.
      CheckpointError: it holds no checkpoint.
    """
    if not workdir:
        return None
    judge, field = open_run(workdir), f"config.evals.{field}={workdir!r}"
    if not isinstance(judge.system, SpritesJudge):
        raise ConfigError(
            f"{field} holds a run of {judge.config.system.name!r}; needed is one of configs/sprites_judge.py"
        )
    with Checkpointer(workdir, read_only=True) as checkpointer:
        done = max(checkpointer.steps(), default=0)
    if done < judge.config.steps:
        raise ConfigError(
            f"{field} has been trained for {done} of {judge.config.steps} steps: let its training come to the end"
        )
    vars = judge.trained_vars()
    return judge, vars, fingerprint(vars.params)[:12]
