"""Evaluates an image diffusion model: how well it predicts a picture from noise in one step, and sample pictures."""

import dataclasses

import jax
import numpy as np

from vidmotion import media
from vidmotion.evaluation.evaluator import Evaluator
from vidmotion.evaluation.transfer import through, to_uint8
from vidmotion.metrics import pixel
from vidmotion.metrics.result import MetricResult

LEVELS = (1.0, 0.75, 0.5, 0.25)  # shares of the last time of the process, from the highest noise on
COLUMNS, ROWS = 8, 4  # pictures across and down the sheet of samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(Evaluator):
    """Measures how well an image diffusion model predicts a picture from noise in one step.

    Attributes:
      batch: the number of clips at a time.
    """

    batch: int

    def evaluate(self, run, vars) -> list[MetricResult]:
        """Return the PSNR of one-step predictions at four noise levels, and of the mean picture.

        Also writes ``<workdir>/samples/samples.png``, a sheet of pictures sampled from noise. At the highest noise
        level nothing of the picture is left, so the best answer is the mean of all pictures.
        """
        source = run.source("eval")
        clips = np.stack([source[i]["video"] for i in range(len(source))])
        truth = clips.astype(np.float32) / 255.0
        size, count = f"{clips.shape[2]}x{clips.shape[3]}", clips.shape[0] * clips.shape[1]

        def row(name, values, convention):
            value = float(np.mean(values))
            return MetricResult(name, value, convention, "none", size, count)

        mean = np.broadcast_to(truth.mean(axis=(0, 1)), truth.shape)
        results = [
            row("psnr/mean_picture", pixel.psnr(mean, truth, "common"), "common, of the eval split")
        ]
        for level in LEVELS:
            time = round(level * (run.system.diffusion.steps - 1))
            rebuild = run.jit(
                lambda vars, batch, key, time=time: run.system.denoised(vars, batch, key, time)
            )
            video = through(run, rebuild, vars, clips, self.batch)["video"]
            values = pixel.psnr(video, truth, "common")
            results.append(row(f"psnr/one_step_{time}", values, f"common, from time {time}"))
        _sheet(run, vars, clips)
        return results


def _sheet(run, vars, clips: np.ndarray) -> None:
    count = run.rows(-(-COLUMNS * ROWS // clips.shape[1]))
    batch = {"video": np.zeros((count, *clips.shape[1:]), np.uint8)}
    video = run.jit_sample()(vars, run.put_rows(batch), jax.random.key(run.config.seed))["video"]
    if jax.process_index() == 0:
        pictures = to_uint8(np.asarray(video)).reshape(-1, *clips.shape[2:])[: COLUMNS * ROWS]
        folder = run.workdir / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        scale = max(1, -(-128 // clips.shape[2]))
        media.write_png(folder / "samples.png", media.grid(pictures, cols=COLUMNS, scale=scale))
