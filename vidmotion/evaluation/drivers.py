"""Whether a system uses its driver and its source: the swap with the true ones, and with wrong ones.

PSNR is always against the same pictures, the identity of clip A moving as clip B. A system that follows its driver
gets clearly worse when it is given none (A itself) or the motion of a third clip, one that reads its source when it
is given a third clip's. Where nothing gets worse, it was not looked at. Not in any paper.
"""

import dataclasses
from collections.abc import Mapping

from vidmotion.evaluation.driven import METRICS, OnPairs
from vidmotion.metrics.result import MetricResult, not_computed


@dataclasses.dataclass(frozen=True)
class Drivers(OnPairs):
    """The four-driver test.

    Attributes:
      drivers: `split` ``train`` asks of the clips that were learnt, for a system that is to know a few by heart.
    """

    drivers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def split(self) -> str:
        """As of `OnPairs`."""
        return self.drivers.get("split", "eval")

    def evaluate(self, run, vars, companion) -> list[MetricResult]:
        """PSNR with the true driver, without one, with a wrong one and with a wrong source; what each wrong answer
        loses; and three trivial answers: the mean picture of these clips, and copying source or driver.

        Raises:
          ConfigError: data that cannot render a swap.
        """
        split = self.split
        made, convention = self.driven(run, vars), f"{METRICS['psnr'][2]}; {split} clips"
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
