"""What an evaluator is."""

import abc
import dataclasses

from vidmotion.metrics.result import MetricResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator(abc.ABC):
    """One question that is put to a trained system.

    A subclass is a frozen dataclass of the fields of its section, ``config.evals.<name>``, and has a line in
    `vidmotion.evaluation.EVALUATORS`.

    Attributes:
      every: steps of a training from one evaluation to the next; 0: only after training; -1: only where it is asked for
        by name.
    """

    every: int = 0

    def check(self, run) -> None:
        """Refuse before training what `evaluate` would refuse after it.

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
