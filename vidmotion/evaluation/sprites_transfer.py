"""Cross-driven attribute accuracy on Sprites (BCD Table A1), with the judge of C-DSVAE.

Content clip A and motion clip B are from the test split; the result must show B's action and A's attributes. The paper
does not give the pairing; this evaluator uses a fixed random derangement (seed 0).
"""

import dataclasses

import numpy as np

from vidmotion.data import sprites
from vidmotion.evaluation.evaluator import Evaluator
from vidmotion.evaluation.sprites_judge import NEEDS, judge_clips, trained_judge
from vidmotion.evaluation.transfer import derangement, to_uint8, transfer
from vidmotion.metrics import codebook, judge, pixel
from vidmotion.metrics.accumulate import Mean
from vidmotion.metrics.result import MetricResult, not_computed
from vidmotion.systems.sprites_judge import LABELS


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpritesTransfer(Evaluator):
    """Measures cross-driven attribute accuracy on Sprites, with the judge of C-DSVAE.

    Attributes:
      pairs: the number of test clips to pair; 0: all 2,664.
      batch: the number of pairs at a time.
      judge: the name of a shipped judge, or the workdir of a run of configs/sprites_judge.py; "": there is no judge,
        and a row says so.
    """

    pairs: int
    batch: int
    judge: str = ""

    def check(self, run) -> None:
        """See `Evaluator.check`."""
        run.source("eval")
        trained_judge(self.judge, "sprites_transfer.judge")

    def evaluate(self, run, vars) -> list[MetricResult]:
        """Return the five accuracies with chance, IS, H(y|x), H(y), bits per frame, and PSNR to the true sprite."""
        source = run.source("eval")
        count = min(self.pairs or len(source), len(source))
        clips = [source[i] for i in range(count)]
        paired = derangement(count)
        truth, ids, usage = [], [], []
        contents = [clip["video"] for clip in clips]
        motions = [contents[j] for j in paired]
        psnr = Mean()
        for outputs in transfer(run, vars, contents, motions, self.batch, "transferring"):
            part = range(len(truth), len(truth) + len(outputs["video"]))
            expected = np.stack(
                [source.render(clips[i]["character"], clips[paired[i]]["action"]) for i in part]
            )
            psnr = psnr.update(
                np.asarray(
                    pixel.psnr(outputs["video"], expected.astype(np.float32) / 255, "common")
                )
            )
            for i, video in zip(part, to_uint8(outputs["video"])):
                truth.append(
                    {
                        "video": video,
                        "action": clips[paired[i]]["action"],
                        "attributes": clips[i]["attributes"],
                    }
                )
            ids.append(outputs["ids"])
            usage.append(outputs["soft_usage"])

        size = f"{sprites.CELL}x{sprites.CELL}"
        results = self._judged(clips, truth, size)

        def add(metric, value, convention):
            results.append(MetricResult(metric, value, convention, "none", size, count))

        add("psnr/true_sprite", psnr.compute(), "common, mean of per-frame dB")
        counts = codebook.usage_counts(np.concatenate(ids), run.system.quantizer.entries)
        add("bits_per_frame/hard", codebook.bits_per_frame(counts), "entropy of the code histogram")
        soft = codebook.bits_per_frame(np.concatenate(usage).mean(axis=0))
        add("bits_per_frame/soft", soft, "entropy of the mean soft assignment")
        return results

    def _judged(self, clips: list[dict], truth: list[dict], size: str) -> list[MetricResult]:
        """Return the judge's rows.

        Args:
          clips: the real clips, on which the judge's own accuracy is measured.
          truth: the clips that were made, each with the labels it should have.
          size: height and width of the frames, "64x64".
        """
        found, count = trained_judge(self.judge, "sprites_transfer.judge"), len(truth)
        if found is None:
            needs = NEEDS.format("config.evals.sprites_transfer.judge")
            return [not_computed("cross_driven/action", "judged", needs, size, count)]
        judge_run, judge_vars, name = found
        real, labels = judge_clips(judge_run, judge_vars, clips)
        probabilities, wanted = judge_clips(judge_run, judge_vars, truth)
        results = []

        def add(metric, value, convention, note=""):
            results.append(MetricResult(metric, value, convention, name, size, count, note))

        for label, classes in LABELS:
            add(
                f"cross_driven/{label}",
                judge.accuracy(probabilities[label], wanted[label]),
                f"chance {1 / classes:.3f}; judge on the real clips "
                f"{judge.accuracy(real[label], labels[label]):.4f}",
            )
        of_actions = (
            ("inception_score", judge.inception_score, "9 actions, class-balanced; at most 9"),
            ("H(y|x)", judge.conditional_entropy, "nats, class-balanced; lower is better"),
            ("H(y)", judge.marginal_entropy, "nats, class-balanced; at most ln 9 = 2.197"),
        )
        every = len(np.unique(wanted["action"])) == sprites.CLASSES
        for metric, function, convention in of_actions:
            if every:
                balanced = judge.balanced(wanted["action"], sprites.CLASSES)
                add(metric, function(probabilities["action"][balanced]), convention)
            else:
                why = "not computed: not every action is among these pairs"
                add(metric, None, convention, why)
        return results
