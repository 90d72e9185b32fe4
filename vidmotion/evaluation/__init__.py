"""Evaluators: each joins a system, a dataset and metrics, and returns rows of results."""

import importlib
from collections.abc import Callable

from vidmotion.data.records import DatasetError
from vidmotion.errors import ConfigError
from vidmotion.evaluation.driven import keeping
from vidmotion.evaluation.evaluator import Evaluator
from vidmotion.evaluation.pictures import grid, pictures
from vidmotion.metrics.result import MetricResult

EVALUATORS = {
    "class_generation": "class_generation:ClassGeneration",
    "codec": "codec:Codec",
    "cross_reenactment": "protocols:CrossReenactment",
    "denoising": "denoising:Denoising",
    "drivers": "drivers:Drivers",
    "generation": "protocols:Generation",
    "heads_reader": "heads_reader:HeadsReading",
    "leakage": "leakage:Leakage",
    "motion_generation": "motion_generation:MotionGeneration",
    "motion_tokens": "motion_tokens:TokenizerErrors",
    "motion_transfer": "protocols:MotionTransfer",
    "reading": "reading:Reading",
    "reconstruction": "protocols:Reconstruction",
    "self_reenactment": "protocols:SelfReenactment",
    "sprites_judge": "sprites_judge:JudgeAccuracy",
    "sprites_transfer": "sprites_transfer:SpritesTransfer",
    "swap": "swap:Swap",
    "token_generation": "token_generation:TokenGeneration",
}

# The papers' protocols, and which other evaluator makes sense for the same systems.
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
    "Evaluator",
    "analyse",
    "asked",
    "build",
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
            build(name, run).check(run)
    except (ConfigError, DatasetError) as error:
        raise type(error)(
            f"{error}. To train without it: --config.sample.rows=0 --config.eval.run='()' --config.eval.protocol=''"
        ) from error


def evaluate(name: str, run, vars, companion: Callable) -> list[MetricResult]:
    """Run one evaluator.

    Args:
      name: one of `evaluators` of the run's system.
      run, vars, companion: as of `Evaluator.evaluate`.

    Raises:
      ConfigError: as of `build` and of the evaluator.
    """
    return build(name, run).evaluate(run, vars, companion)


def build(name: str, run) -> Evaluator:
    """The evaluator of that name, with its fields of the run's ``config.eval``.

    Raises:
      ConfigError: there is none, it makes no sense for the run's system, or its fields do not.
    """
    known = evaluators(run.system)
    if name not in known:
        raise ConfigError(
            f"config.eval asks for {name!r}; {run.config.system.name} can be evaluated by "
            f"{', '.join(known) or 'nothing yet'}"
        )
    module, _, attribute = EVALUATORS[name].partition(":")
    found = importlib.import_module(f"vidmotion.evaluation.{module}")
    return vars(found)[attribute].of(run.config.eval)
