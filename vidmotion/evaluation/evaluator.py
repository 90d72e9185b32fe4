"""What an evaluator is."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self

from vidmotion.config_schema import from_config
from vidmotion.metrics.result import MetricResult


@dataclasses.dataclass(frozen=True)
class Evaluator(abc.ABC):
    """One question that is put to a trained system.

    A subclass is a frozen dataclass whose fields are those of ``config.eval`` that it reads, and has a line in
    `vidmotion.evaluation.EVALUATORS`.
    """

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Self:
        """The evaluator that ``config.eval`` describes; fields of the section that it lacks belong to others.

        Raises:
          ConfigError: a field is missing, or a value makes no sense.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        return from_config(cls, {name: section[name] for name in names if name in section}, "eval")

    def check(self, run) -> None:
        """Refuse before training what `evaluate` would refuse after it.

        Raises:
          ConfigError, DatasetError: settings, weights or data that do not fit.
        """
        run.source("eval")

    @abc.abstractmethod
    def evaluate(self, run, vars, companion: Callable) -> list[MetricResult]:
        """Rows of results.

        Args:
          run: a `vidmotion.run.Run`.
          vars: the system's variables.
          companion: trains a second run that is needed (a judge), unless it is trained already, and returns it.

        Raises:
          ConfigError, DatasetError: settings, weights or data that do not fit.
        """
