"""A whole evaluator: the error of the predicted brightness, beside the error of an answer that needs no model."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from vidmotion.evaluation.evaluator import Evaluator
from vidmotion.evaluation.transfer import through
from vidmotion.metrics.result import MetricResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextFrame(Evaluator):
    """Measures the mean absolute error of the predicted brightness.

    Attributes:
      batch: the number of clips that are predicted at a time.
    """

    batch: int

    def evaluate(self, run, vars) -> list[MetricResult]:
        """Returns the error of the model, and the error of the answer that nothing changes."""
        source = run.source("eval")
        clips = [source[i]["video"] for i in range(len(source))]
        mean_nt = np.stack(clips).mean((2, 3, 4)) / 255.0

        def predict(vars, batch, key):
            mean_bt = batch["video"].astype(jnp.float32).mean((2, 3, 4)) / 255.0
            return {"brightness": mean_bt[:, :-1] @ vars.params["model"]["weight"]}

        predicted = through(run, run.jit(predict), vars, clips, self.batch)["brightness"]
        answers = {"predicted": predicted, "unchanged": mean_nt[:, -2]}
        size = f"{clips[0].shape[1]}x{clips[0].shape[2]}"
        return [
            MetricResult(
                f"brightness/{name}",
                float(np.abs(answer - mean_nt[:, -1]).mean()),
                "mean absolute error, white is 1",
                "none",
                size,
                len(clips),
            )
            for name, answer in answers.items()
        ]
