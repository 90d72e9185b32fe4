"""Motion transfer on procedural heads, against the exact render of (identity A, motion B).

Two trivial answers stand beside every number: copying the content clip and copying the motion clip.
"""

import numpy as np

from vidmotion.data.heads import render_swap
from vidmotion.evaluation.transfer import derangement, transfer
from vidmotion.metrics import codebook, pixel
from vidmotion.metrics.accumulate import Mean
from vidmotion.record import Result


def evaluate(run, vars, companion) -> list[Result]:
    """PSNR and SSIM of the swap and of its two baselines, and the bits the motion code spends.

    ``config.eval``: `pairs` clips, paired by a seeded derangement; `batch` pairs at a time.
    """
    source = run.source("eval")
    count = min(run.config.eval.pairs or len(source), len(source))
    paired = derangement(count)
    clips = [source[i]["video"] for i in range(count)]
    motions = [clips[j] for j in paired]
    placed = [source.boxes(i) for i in range(count)]
    boxes = placed, [placed[j] for j in paired]
    means: dict[str, Mean] = {}
    ids = []

    def take(name: str, video: np.ndarray, truth: np.ndarray) -> None:
        for metric, convention, function in (
            ("psnr", "common", pixel.psnr),
            ("ssim", "wang", pixel.ssim),
        ):
            values = np.asarray(function(video, truth, convention))
            means[f"{metric}/{name}"] = means.get(f"{metric}/{name}", Mean()).update(values)

    done = 0
    for outputs in transfer(run, vars, clips, motions, run.config.eval.batch, "swapping", boxes):
        part = range(done, done + len(outputs["video"]))
        truth = _unit(np.stack([render_swap(source, i, int(paired[i])) for i in part]))
        take("swap", outputs["video"], truth)
        take("copy_content", _unit(np.stack([clips[i] for i in part])), truth)
        take("copy_motion", _unit(np.stack([motions[i] for i in part])), truth)
        if "ids" in outputs:
            ids.append(outputs["ids"])
        done = part.stop
    resolution = f"{clips[0].shape[1]}x{clips[0].shape[2]}"
    conventions = {"psnr": "common, mean of per-frame dB", "ssim": "wang, mean of frames"}
    results = [
        Result(name, mean.compute(), conventions[name.split("/")[0]], "none", resolution, count)
        for name, mean in sorted(means.items())
    ]
    if ids:
        counts = codebook.usage_counts(np.concatenate(ids), run.system.quantizer.entries)
        results.append(
            Result(
                "bits_per_frame/hard",
                codebook.bits_per_frame(counts),
                "entropy of the code histogram, summed over codebooks",
                "none",
                resolution,
                count,
            )
        )
    return results


def _unit(video: np.ndarray) -> np.ndarray:
    return video.astype(np.float32) / 255.0
