"""A row of results: one measured number with everything needed to compare it, or the reason why there is none.

MetricResult("fid", 12.3, "pytorch_fid", weights="1f3a...", resolution="256x256", n=2000)
not_computed("fid", "pytorch_fid", "pt_inception-2015-12-05-6726825d.pth", "256x256", 2000)
markdown([first, second])
"""

import dataclasses
import math
from collections.abc import Sequence

COLUMNS = ("metric", "value", "convention", "weights", "resolution", "n", "note")


@dataclasses.dataclass(frozen=True)
class MetricResult:
    """A row of a table of results.

    Attributes:
      metric: the name of the metric, "fid".
      value: the number; None if it was not computed, and the note then says why.
      convention: the definition of the metric that was used, "pytorch_fid".
      weights: a text that identifies the feature network's weights, or "none" if there is no network.
      resolution: height and width of the frames that were compared, in pixels, "256x256".
      n: the number of samples (pairs, images or clips) behind the number.
      note: anything else that a reader must know, such as "not computed: needs X".

    Raises:
      ValueError: a value that is not finite, no value and no note, or a negative n.
    """

    metric: str
    value: float | None
    convention: str
    weights: str
    resolution: str
    n: int
    note: str = ""

    def __post_init__(self):
        if self.value is None and not self.note:
            raise ValueError(f"{self.metric}: without a value the note must say why")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(
                f"{self.metric}: {self.value} is not a result; give None and a note that says why"
            )
        if self.n < 0:
            raise ValueError(f"{self.metric}: n={self.n} must not be negative")

    def to_dict(self) -> dict[str, str | float | int | None]:
        """Returns the row for a JSON file, with keys as in `COLUMNS`; a value that was not computed is None."""
        return dataclasses.asdict(self)

    def markdown_row(self, digits: int = 4) -> str:
        """Returns the row as a line of the table that `markdown` makes, with `digits` digits after the point."""
        cells = self.to_dict()
        cells["value"] = "not computed" if self.value is None else f"{self.value:.{digits}f}"
        # An unescaped bar would end the cell.
        return "| " + " | ".join(str(cells[c]).replace("|", r"\|") for c in COLUMNS) + " |"


def not_computed(
    metric: str, convention: str, needs: str, resolution: str, n: int, weights: str = "none"
) -> MetricResult:
    """Returns the row of a metric that could not be computed because something is missing.

    Args:
      metric, convention, resolution, n, weights: see `MetricResult`.
      needs: what is missing, and where it is published or how it is made.
    """
    return MetricResult(
        metric, None, convention, weights, resolution, n, f"not computed: needs {needs}"
    )


def markdown(results: Sequence[MetricResult], digits: int = 4) -> str:
    """Returns rows as a Markdown table with a heading, without a final newline."""
    heading = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    return "\n".join([*heading, *(result.markdown_row(digits) for result in results)])
