"""Motion transfer scored against rendered true answers: the identity of clip A moving as clip B.

Every score is given for two trivial answers as well: copying the content clip and copying the motion clip. A clip
driven by itself (``self``) shows what the same network loses without any transfer.
"""

import dataclasses

import jax
import numpy as np

from vidmotion.evaluation.driven import METRICS, OnPairs
from vidmotion.metrics import codebook
from vidmotion.metrics.result import MetricResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swap(OnPairs):
    """Scores motion transfer, and two trivial answers, against the true answer."""

    def evaluate(self, run, vars) -> list[MetricResult]:
        """Return PSNR, SSIM and sharpness of the swap, of its two baselines and of clips driven by themselves.

        Further rows give the size of the motion code: its numbers per frame and, for a quantised code, its bits per
        frame; and how much the code of a system that returns it differs between drivers. A system may follow the
        position of its driver's face, which it is told, while its code says nothing.

        Raises:
          ConfigError: the data cannot render a swap.
        """
        made = self.driven(run, vars)
        copies = made.copies()
        answers = {
            "swap": made.true.means,
            "copy_content": copies["content"],
            "copy_motion": copies["motion"],
            "self": made.itself[0],
        }

        def row(name: str, value: float, convention: str, count: int = made.count) -> MetricResult:
            return MetricResult(name, value, convention, "none", made.resolution, count)

        results = [
            row(f"{metric}/{name}", answers[name][metric], text)
            for metric, (_, text) in sorted(METRICS.items())
            for name in sorted(answers)
        ]
        ids = made.true.ids
        if ids is not None:
            counts = codebook.usage_counts(ids, run.system.quantizer.entries)
            what = "entropy of the code histogram, summed over codebooks"
            results.append(row("bits_per_frame/hard", codebook.bits_per_frame(counts), what))
            numbers, what = ids.shape[-1], "indices"
        else:
            numbers, what = _motion_width(run, vars, made.clips[0]), "real numbers"
        results.append(row("numbers_per_frame/motion", float(numbers), what, 1))
        if (codes := made.true.codes) is not None:
            what = "deviation over clips and frames, over the root mean square; 0: all drivers have one code"
            results.append(row("code_spread", _spread(codes), what))
        return results


def _spread(codes: np.ndarray) -> float:
    """Return the standard deviation of codes (N, T, D) over clips and frames, as a share of their root mean square."""
    flat = codes.reshape(-1, codes.shape[-1]).astype(np.float64)
    size = np.sqrt(np.mean(flat**2))
    return float(np.sqrt(flat.var(axis=0).mean()) / size) if size else 0.0


def _motion_width(run, vars, clip: np.ndarray) -> int:
    """Return how many numbers the motion code of a frame has."""
    shape = (1, *clip.shape)
    inputs = {name: jax.ShapeDtypeStruct(shape, clip.dtype) for name in ("content", "motion")}
    return jax.eval_shape(run.system.read_codes, vars, inputs)["motion"].shape[-1]
