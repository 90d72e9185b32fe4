"""Protocols: each joins a system, a dataset and metrics, and returns rows of results."""

import importlib
from collections.abc import Callable

from vidmotion.errors import ConfigError
from vidmotion.evaluation.driven import keeping
from vidmotion.evaluation.pictures import pictures
from vidmotion.metrics.result import MetricResult

EVALUATORS = {
    "class_generation": "vidmotion.evaluation.class_generation",
    "codec": "vidmotion.evaluation.codec",
    "denoising": "vidmotion.evaluation.denoising",
    "drivers": "vidmotion.evaluation.drivers",
    "heads_reader": "vidmotion.evaluation.heads_reader",
    "leakage": "vidmotion.evaluation.leakage",
    "motion_generation": "vidmotion.evaluation.motion_generation",
    "motion_tokens": "vidmotion.evaluation.motion_tokens",
    "reading": "vidmotion.evaluation.reading",
    "sprites_transfer": "vidmotion.evaluation.sprites_transfer",
    "sprites_judge": "vidmotion.evaluation.sprites_judge",
    "swap": "vidmotion.evaluation.swap",
    "token_generation": "vidmotion.evaluation.token_generation",
}

# Protocols of `vidmotion.evaluation.protocols`: which of the above a system must know for one to make sense.
PROTOCOLS = {
    "self_reenactment": "swap",
    "cross_reenactment": "swap",
    "motion_transfer": "swap",
    "reconstruction": "reconstruction",
    "generation": "class_generation",
}

ANALYSES = {"warpface": "vidmotion.evaluation.warpface_analysis"}  # system: its module

__all__ = [
    "ANALYSES",
    "EVALUATORS",
    "PROTOCOLS",
    "analyse",
    "evaluate",
    "evaluators",
    "keeping",
    "pictures",
]


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


def evaluators(system) -> tuple[str, ...]:
    """Names of what makes sense for a system: its own evaluators, and the protocols."""
    own = system.evaluators()
    return (*own, *(name for name, needs in PROTOCOLS.items() if needs in own and name not in own))


def evaluate(name: str, run, vars, companion: Callable) -> list[MetricResult]:
    """Run one evaluator or protocol.

    Args:
      name: one of `evaluators` of the run's system.
      run: a `vidmotion.run.Run`.
      vars: the system's variables.
      companion: gives a protocol a second, trained run that it needs (a judge).

    Raises:
      ConfigError: unknown protocol, or one that makes no sense for this system.
    """
    known = evaluators(run.system)
    if name not in known:
        raise ConfigError(
            f"config.eval asks for {name!r}; {run.config.system.name} can be evaluated by "
            f"{', '.join(known) or 'nothing yet'}"
        )
    if name in PROTOCOLS:
        protocols = importlib.import_module("vidmotion.evaluation.protocols")
        return protocols.evaluate(name, run, vars, companion)
    return importlib.import_module(EVALUATORS[name]).evaluate(run, vars, companion)
