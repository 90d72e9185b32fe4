"""Whether a system uses its driver and its source: the swap with the true ones, and with wrong ones.

PSNR is always against the same pictures, the identity of clip A moving as clip B. A system that follows its driver
gets clearly worse when it is given none (A itself) or the motion of a third clip, one that reads its source when it
is given a third clip's. Where nothing gets worse, it was not looked at. Not in any paper.
"""

import dataclasses

from vidmotion.evaluation.driven import METRICS, OnPairs, renderer
from vidmotion.metrics.result import MetricResult, not_computed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drivers(OnPairs):
    """The four-driver test: how far a clip follows its own driver rather than others.

    Attributes:
      split: whose clips it takes: ``eval``; or ``train``, for a system that is to know a few clips by heart.
    """

    split: str = "eval"

    def check(self, run) -> None:
        """See `Evaluator.check`."""
        renderer(run, self.pairs, self.split)

    def evaluate(self, run, vars) -> list[MetricResult]:
        """PSNR with the true driver, without one, with a wrong one and with a wrong source; what each wrong answer
        loses; and three trivial answers: the mean picture of these clips, and copying source or driver.

        Raises:
          ConfigError: data that cannot render a swap.
        """
        made, convention = (
            self.driven(run, vars, self.split),
            f"{METRICS['psnr'][2]}; {self.split} clips",
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
