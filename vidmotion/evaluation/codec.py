"""Evaluation of an image autoencoder: reconstruction of held-out pictures, and the statistics of its latents."""

import dataclasses

import jax
import numpy as np

from vidmotion import media
from vidmotion.evaluation.evaluator import Evaluator
from vidmotion.evaluation.transfer import through, to_uint8
from vidmotion.metrics import pixel
from vidmotion.metrics.result import MetricResult

SHOWN = 8  # pictures in the strip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codec(Evaluator):
    """Measures how well an image autoencoder rebuilds held-out pictures.

    Attributes:
      batch: the number of clips at a time.
    """

    batch: int

    def evaluate(self, run, vars) -> list[MetricResult]:
        """Return mean PSNR and SSIM over the pictures of the eval split, and mean and deviation of each latent channel.

        Also writes ``<workdir>/samples/codec.png``: true pictures above, rebuilt ones below. The latents' mean and
        deviation are the values of ``mean`` and ``std`` in the ``config.system.codec`` of a recipe that uses this
        autoencoder.
        """
        source = run.source("eval")
        clips = [source[i]["video"] for i in range(len(source))]
        made = through(run, run.jit_sample(), vars, clips, self.batch)
        rebuilt, latent = made["video"], made["latent"]
        truth = np.stack(clips).astype(np.float32) / 255.0
        if jax.process_index() == 0:
            _strip(run, clips, rebuilt)
        size, count = f"{truth.shape[2]}x{truth.shape[3]}", truth.shape[0] * truth.shape[1]
        flat = latent.reshape(-1, latent.shape[-1])

        def row(name, value, convention):
            return MetricResult(name, float(value), convention, "this run", size, count)

        return [
            row("psnr/codec", np.mean(pixel.psnr(rebuilt, truth, "common")), "common, mean of dB"),
            row("ssim/codec", np.mean(pixel.ssim(rebuilt, truth, "wang")), "wang, mean of frames"),
            *(
                row(f"latent_{name}/{channel}", value, "of the posterior's mean")
                for name, values in (("mean", flat.mean(axis=0)), ("std", flat.std(axis=0)))
                for channel, value in enumerate(values)
            ),
        ]


def _strip(run, clips, rebuilt) -> None:
    picked = range(min(SHOWN, len(clips)))
    cells = [clips[i][:1] for i in picked] + [to_uint8(rebuilt[i][:1]) for i in picked]
    folder = run.workdir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    scale = max(1, -(-128 // cells[0].shape[1]))
    media.write_png(folder / "codec.png", media.grid(cells, cols=len(picked), scale=scale)[0])
