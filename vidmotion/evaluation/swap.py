"""Motion transfer where the true answer can be rendered: the identity of clip A moving as clip B.

Two trivial answers stand beside every number: copying the content clip and copying the motion clip. A clip driven by
itself (``self``) tells what the same network loses without any transfer.
"""

import jax
import numpy as np

from vidmotion.errors import ConfigError
from vidmotion.evaluation.transfer import derangement, transfer
from vidmotion.metrics import codebook, pixel
from vidmotion.metrics.accumulate import Mean
from vidmotion.metrics.result import MetricResult

METRICS = {
    "psnr": ("common", pixel.psnr, "common, mean of per-frame dB"),
    "ssim": ("wang", pixel.ssim, "wang, mean of frames"),
}


def evaluate(run, vars, companion) -> list[MetricResult]:
    """PSNR and SSIM of the swap, of its two baselines and of clips driven by themselves, and what the motion code
    costs: its numbers, and the bits that a quantised one spends.

    ``config.eval``: `pairs` clips (0: all), paired by a seeded derangement; `batch` pairs at a time.

    Raises:
      ConfigError: data that cannot render a swap.
    """
    source = run.source("eval")
    if not hasattr(source, "swap"):
        raise ConfigError(
            f"config.eval asks for 'swap', and data of kind {run.config.data.kind!r} cannot render the true answer; "
            "heads and sprites can"
        )
    count = min(run.config.eval.pairs or len(source), len(source))
    paired = derangement(count)
    clips = [source[i]["video"] for i in range(count)]
    motions = [clips[j] for j in paired]
    placed = [source.boxes(i) if hasattr(source, "boxes") else None for i in range(count)]
    boxes = placed, [placed[j] for j in paired]
    means: dict[str, Mean] = {}
    ids = []

    def take(name: str, video: np.ndarray, truth: np.ndarray) -> None:
        for metric, (convention, function, _) in METRICS.items():
            values = np.asarray(function(video, truth, convention))
            means[f"{metric}/{name}"] = means.get(f"{metric}/{name}", Mean()).update(values)

    done = 0
    for outputs in transfer(run, vars, clips, motions, run.config.eval.batch, "swapping", boxes):
        part = range(done, done + len(outputs["video"]))
        truth = _unit(np.stack([source.swap(i, int(paired[i])) for i in part]))
        take("swap", outputs["video"], truth)
        take("copy_content", _unit(np.stack([clips[i] for i in part])), truth)
        take("copy_motion", _unit(np.stack([motions[i] for i in part])), truth)
        if "ids" in outputs:
            ids.append(outputs["ids"])
        done = part.stop
    done, own = 0, (placed, placed)
    for outputs in transfer(run, vars, clips, clips, run.config.eval.batch, "self-driving", own):
        part = slice(done, done + len(outputs["video"]))
        take("self", outputs["video"], _unit(np.stack(clips[part])))
        done = part.stop
    resolution = f"{clips[0].shape[1]}x{clips[0].shape[2]}"
    results = [
        MetricResult(
            name, mean.compute(), METRICS[name.split("/")[0]][2], "none", resolution, count
        )
        for name, mean in sorted(means.items())
    ]
    if ids:
        whole = np.concatenate(ids)
        bits = codebook.bits_per_frame(codebook.usage_counts(whole, run.system.quantizer.entries))
        what = "entropy of the code histogram, summed over codebooks"
        results.append(MetricResult("bits_per_frame/hard", bits, what, "none", resolution, count))
        numbers, what = whole.shape[-1], "indices"
    else:
        numbers, what = _motion_width(run, vars, clips[0]), "real numbers"
    results.append(
        MetricResult("numbers_per_frame/motion", float(numbers), what, "none", resolution, 1)
    )
    return results


def _motion_width(run, vars, clip: np.ndarray) -> int:
    """Numbers that the motion code of a frame has."""
    shape = (1, *clip.shape)
    inputs = {name: jax.ShapeDtypeStruct(shape, clip.dtype) for name in ("content", "motion")}
    return jax.eval_shape(run.system.read_codes, vars, inputs)["motion"].shape[-1]


def _unit(video: np.ndarray) -> np.ndarray:
    return video.astype(np.float32) / 255.0
