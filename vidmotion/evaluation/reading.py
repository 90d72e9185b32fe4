"""Scores swaps of Heads by a trained reader: the driver's motion and the source's identity, factor by factor.

This is a small-scale counterpart of AED, APD and CSIM, which are for photographs. Every number is given together with
the same reader's score on the true renders of the same swaps, which is the best that can be expected. This evaluation
is not from any paper.
"""

import dataclasses

from vidmotion.data.heads import HeadsSource
from vidmotion.errors import ConfigError
from vidmotion.evaluation import heads_reader
from vidmotion.evaluation.driven import OnPairs, renderer
from vidmotion.evaluation.trained import Trained, trained
from vidmotion.metrics.result import MetricResult, not_computed
from vidmotion.systems.heads_reader import HeadsReader

NEEDS = "config.evals.reading.reader, the shipped one or a run of configs/heads_reader.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading(OnPairs):
    """Scores swaps by the factors that a trained reader of Heads reads in them.

    Attributes:
      reader: the name of a shipped reader, or the workdir of one; "": there is none.
    """

    reader: str = ""

    def check(self, run) -> None:
        """See `Evaluator.check`."""
        source, _ = renderer(run, self.pairs)
        if not isinstance(source, HeadsSource):
            raise ConfigError(
                f"config.evals asks for 'reading', but data of kind {run.config.data.kind!r} are not drawn from "
                "factors that a reader knows; heads are"
            )
        trained_reader(self.reader, source[0]["video"].shape[1])

    def evaluate(self, run, vars) -> list[MetricResult]:
        """Return how well the driver's motion and the source's identity can be read in the swaps.

        The rows give R^2 for motion factors and for the numbers of the identity, accuracy for its classes, and means
        of groups. Without a reader there is a single row, which says what is missing.

        Raises:
          ConfigError: the data were not drawn from factors, or the reader does not fit.
        """
        self.check(run)
        made = self.driven(run, vars)
        source, side = made.source, made.clips[0].shape[1]
        found = trained_reader(self.reader, side)
        if found is None:
            text = "R^2 and accuracies of single frames"
            return [not_computed("read/swap", text, NEEDS, made.resolution, made.count)]
        drawn = [(source.identity(i), source.motion(int(j))) for i, j in enumerate(made.paired)]
        best, ours = (
            heads_reader.scores(heads_reader.read_clips(found.run, found.vars, videos), drawn)
            for videos in (made.truth, made.true.videos)
        )
        return [
            heads_reader.row(
                name, score, found.identity, made.resolution, f"true renders {_text(best[name])}"
            )
            for name, score in ours.items()
        ]


def trained_reader(where: str, side: int) -> Trained | None:
    """Load a trained reader; None if `where` is empty.

    Args:
      where: the name of a shipped reader, or the workdir of a run of configs/heads_reader.py.
      side: the side in pixels of the pictures to read.

    Raises:
      ConfigError: there is no such run, it is of another system, its training is not finished, or it reads pictures of
        another size.
      CheckpointError: the workdir holds no checkpoint.
    """
    field = "config.evals.reading.reader"
    reader = trained(where, field, HeadsReader, "configs/heads_reader.py")
    if reader and (reads := reader.run.system.size) != side:
        raise ConfigError(
            f"{field}={where!r} reads pictures of {reads} pixels, but the clips have {side}: train a reader with "
            f"--config.system.size={side} --config.data.common.size={side}"
        )
    return reader


def _text(score: heads_reader.Score) -> str:
    return "not computed" if score.value is None else f"{score.value:.4f}"
