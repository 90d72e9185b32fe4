"""The base class of evaluators."""

import abc
import dataclasses

from vidmotion.metrics.result import MetricResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator(abc.ABC):
    """Base class of evaluators, each of which measures one aspect of a trained system.

    A subclass is a frozen dataclass whose fields are those of its config section, ``config.evals.<name>``, and is
    registered in `vidmotion.evaluation.EVALUATORS`.

    Attributes:
      every: the number of training steps from one evaluation to the next; 0: only after training; -1: only when
        requested by name.
    """

    every: int = 0

    def check(self, run) -> None:
        """Raise now, before training, the errors that `evaluate` would raise after it.

        Raises:
          ConfigError, DatasetError: settings, weights or data that do not fit.
        """
        run.source("eval")

    @abc.abstractmethod
    def evaluate(self, run, vars) -> list[MetricResult]:
        """Measure the system and return rows of results.

        Args:
          run: a `vidmotion.run.Run`.
          vars: the system's variables.

        Raises:
          ConfigError, DatasetError: settings, weights or data that do not fit.
        """
