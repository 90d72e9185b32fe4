"""What an image autoencoder loses of held-out pictures, and how its latents are spread."""

import jax
import numpy as np

from vidmotion import media
from vidmotion.evaluation.transfer import to_uint8
from vidmotion.metrics import pixel
from vidmotion.metrics.result import MetricResult

SHOWN = 8  # pictures on the strip


def evaluate(run, vars, companion) -> list[MetricResult]:
    """PSNR and SSIM of every picture of the eval split, and each channel of its latents: mean and deviation.

    Writes ``<workdir>/samples/codec.png``: true pictures above, rebuilt ones below. The latents' figures are what
    ``config.system.codec`` of a recipe that stands on this autoencoder has as ``mean`` and ``std``.
    """
    source = run.source("eval")
    clips = [source[i]["video"] for i in range(len(source))]
    rows = run.rows(run.config.eval.batch)
    sample = run.jit_sample()
    made, latents = [], []
    for start in range(0, len(clips), rows):
        picked = np.minimum(np.arange(start, start + rows), len(clips) - 1)
        batch = run.put_rows({"video": np.stack([clips[i] for i in picked])})
        outputs = jax.tree.map(np.asarray, sample(vars, batch, jax.random.key(0)))
        kept = min(rows, len(clips) - start)
        made.append(outputs["video"][:kept])
        latents.append(outputs["latent"][:kept])
    rebuilt, latent = np.concatenate(made), np.concatenate(latents)
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
        *(row(f"latent_mean/{c}", value, "of the posterior's mean") for c, value in _each(flat, 0)),
        *(row(f"latent_std/{c}", value, "of the posterior's mean") for c, value in _each(flat, 1)),
    ]


def _each(flat: np.ndarray, moment: int):
    return enumerate(flat.std(axis=0) if moment else flat.mean(axis=0))


def _strip(run, clips, rebuilt) -> None:
    picked = range(min(SHOWN, len(clips)))
    cells = [clips[i][:1] for i in picked] + [to_uint8(rebuilt[i][:1]) for i in picked]
    folder = run.workdir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    scale = max(1, -(-128 // cells[0].shape[1]))
    media.write_png(folder / "codec.png", media.grid(cells, cols=len(picked), scale=scale)[0])
