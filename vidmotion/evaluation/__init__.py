"""Evaluators: each measures a system on a dataset and returns rows of results."""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from vidmotion.config_schema import from_config
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

# The papers' protocols, each with the evaluator that a system must support for the protocol to make sense.
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
    "sections_of",
]


def analyse(run, vars) -> None:
    """Write the analyses listed in ``config.sample.analyses`` into ``<workdir>/samples``.

    Raises:
      ConfigError: an unknown analysis, or one that does not apply to this system.
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
    """Return the names of the evaluators that apply to a system: its own, and the protocols."""
    own = system.evaluators()
    return (*own, *(name for name, needs in PROTOCOLS.items() if needs in own and name not in own))


def asked(config, chosen: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the names of the evaluators that run after training.

    These are the names in `chosen`; if that is None, the sections of ``config.evals`` whose `Evaluator.every` is
    not -1.
    """
    if chosen is not None:
        return tuple(chosen)
    return tuple(name for name, section in config.evals.items() if section.get("every", 0) >= 0)


def check(run, names: Sequence[str]) -> None:
    """Raise now the errors that pictures and evaluations would otherwise raise after hours of training.

    Args:
      run: a `vidmotion.run.Run` that is about to be trained.
      names: the names of its evaluators, see `asked`.

    Raises:
      ConfigError, DatasetError: as `evaluate` and `pictures`; the message says how to train without them.
    """
    if not names and not run.config.sample.rows:
        return
    try:
        if run.config.sample.rows:
            source = run.source("eval")
            grid(run, source)
            run.check_size(source)
        for name in names:
            build(name, run).check(run)
    except (ConfigError, DatasetError) as error:
        raise type(error)(
            f"{error}. To train without samples and evaluation: --config.sample.rows=0 --evals=none"
        ) from error


def evaluate(name: str, run, vars) -> list[MetricResult]:
    """Run the evaluator called `name` on a trained system and return its rows of results.

    Args:
      name: one of the names that `evaluators` returns for the run's system.
      run, vars: see `Evaluator.evaluate`.

    Raises:
      ConfigError: see `build` and the evaluator.
    """
    return build(name, run).evaluate(run, vars)


def build(name: str, run) -> Evaluator:
    """Build the evaluator that the section ``config.evals.<name>`` of a run describes.

    Raises:
      ConfigError: there is no such evaluator or section, it does not apply to the run's system, or its fields are not
        valid.
    """
    known = evaluators(run.system)
    if name not in known:
        raise ConfigError(
            f"config.evals asks for {name!r}; {run.config.system.name} can be evaluated by "
            f"{', '.join(known) or 'nothing yet'}"
        )
    if name not in run.config.evals:
        raise ConfigError(
            f"config.evals has no section {name!r}; it has {', '.join(run.config.evals) or 'none'}"
        )
    return from_config(_class(name), run.config.evals[name], f"evals.{name}")


def _class(name: str) -> type[Evaluator]:
    module, _, attribute = EVALUATORS[name].partition(":")
    return vars(importlib.import_module(f"vidmotion.evaluation.{module}"))[attribute]


def sections_of(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the ``config.evals`` of an old run, whose config had one section ``eval`` shared by all evaluators.

    Args:
      flat: the old section ``eval``.
    """
    weights = dict(flat.get("weights", {}))
    old = {**flat, "weights": weights, "reader": weights.pop("heads_reader", "")}
    old["split"] = flat.get("drivers", {}).get("split", "eval")
    old["judge"] = flat.get("judge_workdir", "")
    protocol = flat.get("protocol", "")
    run = (protocol,) if protocol else flat.get("run", ())
    sections = {}
    for name in EVALUATORS:
        fields = [field for field in dataclasses.fields(_class(name)) if field.name != "every"]
        if all(field.name in old or field.default is not dataclasses.MISSING for field in fields):
            sections[name] = {f.name: old[f.name] for f in fields if f.name in old}
            sections[name]["every"] = flat.get("every", 0) if name in run else -1
    return sections
