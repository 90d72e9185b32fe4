"""Protocols: each joins a system, a dataset and metrics, and returns rows of results."""

import importlib
from collections.abc import Callable

from vidmotion.data.records import DatasetError
from vidmotion.errors import ConfigError
from vidmotion.evaluation.driven import keeping
from vidmotion.evaluation.pictures import grid, pictures
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
    "asked",
    "check",
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
    sheets = importlib.import_module("vidmotion.evaluation.sheets")
    asked = tuple(run.config.sample.get("analyses", ()))
    sheets.draw(run, vars, tuple(name for name in asked if name in sheets.SHEETS))
    asked = tuple(name for name in asked if name not in sheets.SHEETS)
    if not asked:
        return
    name = run.config.system.name
    if name not in ANALYSES:
        raise ConfigError(
            f"config.sample.analyses: there is no {asked[0]!r} for {name}, only {', '.join(sheets.SHEETS)}"
        )
    importlib.import_module(ANALYSES[name]).analyse(run, vars, asked)


def evaluators(system) -> tuple[str, ...]:
    """Names of what makes sense for a system: its own evaluators, and the protocols."""
    own = system.evaluators()
    return (*own, *(name for name, needs in PROTOCOLS.items() if needs in own and name not in own))


def asked(config) -> tuple[str, ...]:
    """Names of the evaluators, or of the one protocol, that a config asks for."""
    protocol = config.eval.get("protocol", "")
    return (protocol,) if protocol else tuple(config.eval.run)


def check(run) -> None:
    """Refuse now what pictures and evaluations would refuse after hours of training.

    Args:
      run: a `vidmotion.run.Run` that is about to be trained.

    Raises:
      ConfigError, DatasetError: as `evaluate` and `pictures`; says how to train without.
    """
    names = asked(run.config)
    if not names and not run.config.sample.rows:
        return
    try:
        if run.config.sample.rows:
            grid(run, run.source("eval"))
        for name in names:
            _known(name, run)
            if name in PROTOCOLS:
                module = importlib.import_module("vidmotion.evaluation.protocols")
                module.check(name, run)
                continue
            module = importlib.import_module(EVALUATORS[name])
            getattr(module, "check", lambda run: run.source("eval"))(run)
    except (ConfigError, DatasetError) as error:
        raise type(error)(
            f"{error}. To train without it: --config.sample.rows=0 --config.eval.run='()' --config.eval.protocol=''"
        ) from error


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
    _known(name, run)
    if name in PROTOCOLS:
        protocols = importlib.import_module("vidmotion.evaluation.protocols")
        return protocols.evaluate(name, run, vars, companion)
    return importlib.import_module(EVALUATORS[name]).evaluate(run, vars, companion)


def _known(name: str, run) -> None:
    """Refuse an evaluator that makes no sense for the system of `run`."""
    known = evaluators(run.system)
    if name not in known:
        raise ConfigError(
            f"config.eval asks for {name!r}; {run.config.system.name} can be evaluated by "
            f"{', '.join(known) or 'nothing yet'}"
        )
