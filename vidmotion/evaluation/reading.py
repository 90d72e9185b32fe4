"""What the reader of Heads reads in swaps: the driver's motion and the source's identity, factor by factor.

The miniature of what AED, APD and CSIM ask of photographs. Beside every number stands what the same reader reads in the
true renders of the same swaps, which is the most that can be asked. Not in any paper.
"""

import dataclasses

from vidmotion.data.heads import HeadsSource
from vidmotion.errors import ConfigError
from vidmotion.evaluation import heads_reader
from vidmotion.evaluation.driven import OnPairs, renderer
from vidmotion.metrics.result import MetricResult, not_computed
from vidmotion.open_run import open_run
from vidmotion.run import Run
from vidmotion.system import Vars, fingerprint
from vidmotion.systems.heads_reader import HeadsReader

NEEDS = "config.evals.reading.reader, the shipped one or a run of configs/heads_reader.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading(OnPairs):
    """What a trained reader of Heads reads in swaps.

    Attributes:
      reader: workdir of the reader, or the name of a shipped one; "": there is none.
    """

    reader: str = ""

    def check(self, run) -> None:
        """See `Evaluator.check`."""
        source, _ = renderer(run, self.pairs)
        if not isinstance(source, HeadsSource):
            raise ConfigError(
                f"config.evals asks for 'reading', and data of kind {run.config.data.kind!r} are not drawn from "
                "factors that a reader knows; heads are"
            )
        trained_reader(self.reader, source[0]["video"].shape[1])

    def evaluate(self, run, vars) -> list[MetricResult]:
        """R^2 of the driver's motion factors and of the numbers of the source's identity, accuracy of its classes, and
        their means; one row that says what is missing, where there is no reader.

        Raises:
          ConfigError: data that were not drawn from factors, or a reader that does not fit.
        """
        self.check(run)
        made = self.driven(run, vars)
        source, side = made.source, made.clips[0].shape[1]
        found = trained_reader(self.reader, side)
        if found is None:
            text = "R^2 and accuracies of single frames"
            return [not_computed("read/swap", text, NEEDS, made.resolution, made.count)]
        reader, reader_vars = found
        drawn = [(source.identity(i), source.motion(int(j))) for i, j in enumerate(made.paired)]
        best, ours = (
            heads_reader.scores(heads_reader.read_clips(reader, reader_vars, videos), drawn)
            for videos in (made.truth, made.true.videos)
        )
        weights = fingerprint(reader_vars.params)[:12]
        return [
            heads_reader.row(
                name, score, weights, made.resolution, f"true renders {_text(best[name])}"
            )
            for name, score in ours.items()
        ]


def trained_reader(workdir: str, side: int) -> tuple[Run, Vars] | None:
    """The reader in a workdir, or a shipped one, for pictures of that side; None where `workdir` is empty.

    Raises:
      ConfigError: no such run, another system's, or of pictures of another size.
      CheckpointError: it holds no checkpoint.
    """
    if not workdir:
        return None
    reader, field = open_run(workdir), f"config.evals.reading.reader={workdir!r}"
    if not isinstance(reader.system, HeadsReader):
        raise ConfigError(
            f"{field} holds a run of {reader.config.system.name!r}; needed is one of configs/heads_reader.py"
        )
    if reader.system.size != side:
        raise ConfigError(
            f"{field} reads pictures of {reader.system.size} pixels, the clips have {side}: train a reader with "
            f"--config.system.size={side} --config.data.common.size={side}"
        )
    return reader, reader.trained_vars()


def _text(score: heads_reader.Score) -> str:
    return "not computed" if score.value is None else f"{score.value:.4f}"
