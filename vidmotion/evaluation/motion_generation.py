"""Motion generation: cross-entropy on held-out codes, the histogram of generated ones, and rendered clips.

The paper gives no number for generation; these are the spec's (section 8): validation cross-entropy and perplexity per
codebook, and the distance between the code histograms of real and generated motion.
"""

import logging

import jax
import numpy as np

from vidmotion import media
from vidmotion.errors import ConfigError
from vidmotion.evaluation.transfer import to_uint8
from vidmotion.metrics import codebook
from vidmotion.metrics.accumulate import Mean
from vidmotion.record import Result
from vidmotion.run import open_run

log = logging.getLogger(__name__)


def evaluate(run, vars, companion) -> list[Result]:
    """Score the eval split, generate as many sequences, and render `clips` of them with the BCD run `bcd`.

    ``config.eval``: `batch`, `frames`, `temperature`, `top_k`, and `bcd`, the workdir of the BCD whose codes
    these are; without it nothing is rendered, and the log says so.
    """
    settings, system = run.config.eval, run.system
    rows = run.rows(settings.batch)
    score = jax.jit(system.score)
    generate = run.jit_sample(
        frames=system.frames, temperature=settings.temperature, top_k=settings.top_k or None
    )
    mean, real, made = Mean(), [], []
    with run.loader("eval", rows) as loader:
        for number, batch in enumerate(loader.one_pass()):
            mask = batch["mask"]
            placed = run.put(batch)
            mean = mean.update(np.asarray(score(vars, placed)), mask)
            key = jax.random.fold_in(jax.random.key(run.config.seed), number)
            made.append(np.asarray(generate(vars, placed, key)["ids"])[mask])
            real.append(batch["ids"][mask])
    real, made = np.concatenate(real), np.concatenate(made)
    count = len(real)

    def histogram(ids):
        counts = codebook.usage_counts(ids, system.entries)
        return counts / counts.sum(axis=1, keepdims=True)

    distance = 0.5 * np.abs(histogram(real) - histogram(made)).sum(axis=1).mean()
    changes = [np.mean(ids[:, 1:] != ids[:, :-1]) for ids in (real, made)]
    sampled = "greedy" if not settings.temperature else f"temperature {settings.temperature}"
    rows = [
        (
            "cross_entropy",
            mean.compute(),
            f"nats per code; ln {system.entries} = {system.uniform_loss:.3f}",
        ),
        ("perplexity", float(np.exp(mean.compute())), f"per codebook, of {system.entries}"),
        ("histogram_distance", float(distance), f"total variation per codebook, 0 to 1; {sampled}"),
        ("change_rate/real", float(changes[0]), "share of codes that differ from the frame before"),
        ("change_rate/generated", float(changes[1]), f"the same; {sampled}"),
    ]
    render(run, vars)
    return [Result(name, value, note, "none", "codes", count) for name, value, note in rows]


def render(run, vars) -> None:
    """Write ``samples/generated.{mp4,gif,png}``: content pictures moved by generated motion."""
    settings, system = run.config.eval, run.system
    if not settings.bcd:
        log.info("nothing is rendered: config.eval.bcd names no BCD run")
        return
    bcd = open_run(settings.bcd)
    if not hasattr(bcd.system, "render"):
        raise ConfigError(f"config.eval.bcd={settings.bcd!r} is not a BCD run")
    bcd_vars, source = bcd.trained_vars(), bcd.source("eval")
    clips = run.rows(settings.clips)
    video = np.stack([source[i % len(source)]["video"] for i in range(clips)])
    read = jax.jit(bcd.system.read)(bcd_vars, {"content": video, "motion": video})
    want = (system.content_tokens, system.content_width)
    if read["content"].shape[1:] != want or read["ids"].shape[2] != system.books:
        raise ConfigError(
            f"config.eval.bcd={settings.bcd!r} has content {read['content'].shape[1:]} and "
            f"{read['ids'].shape[2]} codebooks; these codes have {want} and {system.books}"
        )
    generate = run.jit_sample(
        frames=settings.frames, temperature=settings.temperature, top_k=settings.top_k or None
    )
    key = jax.random.key(run.config.seed)
    ids = generate(vars, {"content": read["content"]}, key)["ids"]
    moving = jax.jit(bcd.system.render)(bcd_vars, {"content": read["content"], "ids": ids}, key)
    result = to_uint8(np.asarray(moving))[: settings.clips]
    still = np.repeat(video[: settings.clips, :1], result.shape[1], axis=1)
    sheet = np.stack([np.concatenate(pair, axis=2) for pair in zip(still, result)])
    if jax.process_index() == 0:
        folder = run.workdir / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        moving_sheet = media.grid(sheet, cols=1)
        media.write_mp4(folder / "generated.mp4", moving_sheet, fps=bcd.config.sample.fps)
        media.write_gif(folder / "generated.gif", moving_sheet, fps=bcd.config.sample.fps)
        strips = [media.strip(clip, 8) for clip in result]
        media.write_png(folder / "generated.png", np.concatenate(strips))
        log.info("pictures: %s", folder / "generated.png")
