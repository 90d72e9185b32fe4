"""Tests whether a system uses its driver and its source, by swaps with the true ones and with wrong ones.

PSNR is always measured against the same pictures: the identity of clip A moving as clip B. A system that follows its
driver gets clearly worse without one (when A drives itself) or with the motion of a third clip; a system that uses its
source gets clearly worse with the content of a third clip. If an input can be replaced without loss, the system ignores
it. This test is not from any paper.
"""

import dataclasses

from vidmotion.evaluation.driven import METRICS, OnPairs, renderer
from vidmotion.metrics.result import MetricResult, not_computed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drivers(OnPairs):
    """The four-driver test: measures how far a clip follows its own driver rather than others.

    Attributes:
      split: the split of the clips: ``eval``; or ``train``, for a system that is meant to memorise a few clips.
    """

    split: str = "eval"

    def check(self, run) -> None:
        """See `Evaluator.check`."""
        renderer(run, self.pairs, self.split)

    def evaluate(self, run, vars) -> list[MetricResult]:
        """Return PSNR with the true driver, without a driver, with a wrong driver and with a wrong source.

        Further rows give three trivial answers (the mean picture of the clips, copying the source, copying the
        driver), and how far the true driver is above each of the wrong answers and the mean picture.

        Raises:
          ConfigError: the data cannot render a swap.
        """
        made, convention = (
            self.driven(run, vars, self.split),
            f"{METRICS['psnr'][1]}; {self.split} clips",
        )
        copies = made.copies(("psnr",))
        wrong_driver, wrong_source = made.wrong or (None, None)
        values = {
            "true_driver": made.true.means["psnr"],
            "no_driver": made.itself[1],
            "wrong_driver": wrong_driver,
            "wrong_source": wrong_source,
            "mean_picture": copies["mean"]["psnr"],
            "copy_source": copies["content"]["psnr"],
            "copy_driver": copies["motion"]["psnr"],
        }
        for name in ("no_driver", "wrong_driver", "wrong_source", "mean_picture"):
            known = values[name] is not None
            values[f"true_over_{name}"] = values["true_driver"] - values[name] if known else None
        return [
            MetricResult(f"psnr/{name}", value, convention, "none", made.resolution, made.count)
            if value is not None
            else not_computed(
                f"psnr/{name}", convention, "three clips at least", made.resolution, made.count
            )
            for name, value in values.items()
        ]
