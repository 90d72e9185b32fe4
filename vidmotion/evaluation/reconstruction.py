"""How well an autoencoder gives clips back, in VidTok's conventions (spec metrics.md, sections 2, 3 and 12).

Beside it stands the trivial answer: every frame of a clip replaced by the mean of its frames.
"""

import jax
import numpy as np

from vidmotion.evaluation.transfer import transfer
from vidmotion.metrics import pixel
from vidmotion.metrics.accumulate import Mean
from vidmotion.record import Result


def evaluate(run, vars, companion) -> list[Result]:
    """PSNR, SSIM and LPIPS of reconstructions of the eval split, and the numbers kept of a clip.

    ``config.eval``: `clips` of the split (0: all), `batch` at a time. LPIPS needs the weights that the system trains
    with and otherwise says so.
    """
    source, settings = run.source("eval"), run.config.eval
    count = min(settings.clips or len(source), len(source))
    clips = _Videos(source, count)
    means: dict[str, Mean] = {}
    distance = jax.jit(run.system.perceptual_distance) if "lpips" in vars.consts else None

    def take(name: str, values) -> None:
        means[name] = means.get(name, Mean()).update(np.asarray(values))

    done = 0
    for outputs in transfer(run, vars, clips, clips, settings.batch, "reconstructing"):
        made = outputs["video"]
        truth = np.stack([clips[i] for i in range(done, done + len(made))]) / np.float32(255.0)
        mean = np.broadcast_to(truth.mean(axis=1, keepdims=True), truth.shape)
        for name, video in (("reconstruction", made), ("mean_frame", mean)):
            take(f"psnr/{name}", pixel.psnr(video, truth, "vidtok"))
            take(f"ssim/{name}", pixel.ssim(video, truth, "vidtok"))
            if distance is not None:
                take(f"lpips/{name}", distance(vars, video, truth))
        done += len(made)
    resolution = f"{clips[0].shape[1]}x{clips[0].shape[2]}"
    weights = run.networks.get("lpips", "none")[:12]
    conventions = {
        "psnr": ("vidtok: per frame, 1e-8 added to the MSE", "none"),
        "ssim": ("vidtok: pooled by round(side / 256)", "none"),
        "lpips": ("VGG v0.1 on [-1, 1], mean of frames", weights),
    }
    results = [
        Result(name, mean.compute(), *conventions[name.split("/")[0]], resolution, count)
        for name, mean in sorted(means.items())
    ]
    if distance is None:
        why = "not computed: needs config.system.perceptual.weights"
        results.append(Result("lpips/reconstruction", None, why, "none", resolution, 0))
    rate = 100.0 * run.system.net.rate
    what = "percent: numbers of both latents over those of the clip"
    results.append(Result("rate", rate, what, "none", resolution, count))
    return results


class _Videos:
    """The first `count` clips of a source, decoded when they are asked for."""

    def __init__(self, source, count: int):
        self._source, self._count = source, count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return self._source[int(index)]["video"]
