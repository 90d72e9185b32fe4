"""Protocols: each joins a system, a dataset and metrics, and returns rows of results."""

import importlib
from collections.abc import Callable

from vidmotion.errors import ConfigError
from vidmotion.evaluation.pictures import pictures
from vidmotion.record import Result

EVALUATORS = {
    "class_generation": "vidmotion.evaluation.class_generation",
    "leakage": "vidmotion.evaluation.leakage",
    "motion_generation": "vidmotion.evaluation.motion_generation",
    "motion_tokens": "vidmotion.evaluation.motion_tokens",
    "reconstruction": "vidmotion.evaluation.reconstruction",
    "sprites_transfer": "vidmotion.evaluation.sprites_transfer",
    "sprites_judge": "vidmotion.evaluation.sprites_judge",
    "swap": "vidmotion.evaluation.swap",
    "token_generation": "vidmotion.evaluation.token_generation",
}

ANALYSES = {"warpface": "vidmotion.evaluation.warpface_analysis"}  # system: its module

__all__ = ["ANALYSES", "EVALUATORS", "analyse", "evaluate", "pictures"]


def analyse(run, vars) -> None:
    """Write what ``config.sample.analyses`` asks for into ``<workdir>/samples``.

    Raises:
      ConfigError: an unknown analysis, or one that makes no sense for this system.
    """
    asked = run.config.sample.get("analyses", ())
    if not asked:
        return
    name = run.config.system.name
    if name not in ANALYSES:
        raise ConfigError(f"config.sample.analyses: there are none for {name}")
    importlib.import_module(ANALYSES[name]).analyse(run, vars, asked)


def evaluate(name: str, run, vars, companion: Callable) -> list[Result]:
    """Run one protocol.

    Args:
      name: a key of `EVALUATORS` that the run's system lists in `evaluators`.
      run: a `vidmotion.run.Run`.
      vars: the system's variables.
      companion: gives a protocol a second, trained run that it needs (a judge).

    Raises:
      ConfigError: unknown protocol, or one that makes no sense for this system.
    """
    if name not in EVALUATORS or name not in run.system.evaluators():
        raise ConfigError(
            f"config.eval.run has {name!r}; {run.config.system.name} can be evaluated by "
            f"{', '.join(run.system.evaluators()) or 'nothing yet'}"
        )
    return importlib.import_module(EVALUATORS[name]).evaluate(run, vars, companion)
