"""Evaluates motion generation: cross-entropy on held-out codes, the histogram of generated codes, and rendered clips.

The paper gives no numbers for generation. These measures are the spec's (section 8): validation cross-entropy and
perplexity per codebook, and the distance between the code histograms of real and generated motion.
"""

import dataclasses
import logging

import jax
import numpy as np

from vidmotion import media, paths
from vidmotion.data import encoded
from vidmotion.errors import ConfigError
from vidmotion.evaluation.evaluator import Evaluator
from vidmotion.evaluation.transfer import as_pictures, clip_of, to_uint8
from vidmotion.metrics import codebook
from vidmotion.metrics.accumulate import Mean
from vidmotion.metrics.result import MetricResult
from vidmotion.open_run import open_run
from vidmotion.systems.bcd import BCD

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionGeneration(Evaluator):
    """Scores a motion generator on held-out codes, compares its codes with real ones, and renders clips.

    Attributes:
      batch: the number of clips at a time.
      clips: the number of clips to render.
      frames: the number of frames in a rendered clip.
      temperature: the temperature of sampling; 0: always the likeliest code.
      top_k: the number of likeliest codes to sample from; 0: all.
      bcd: the workdir of the BCD run that the codes come from; "": nothing is rendered, and the log says so.
    """

    batch: int
    clips: int
    frames: int
    temperature: float
    top_k: int
    bcd: str = ""

    def check(self, run) -> None:
        """See `Evaluator.check`."""
        run.source("eval")
        if self.bcd:
            _open_bcd(run, self.bcd)

    def evaluate(self, run, vars) -> list[MetricResult]:
        """Score the eval split, generate as many sequences as it has, and render `clips` clips with the BCD run `bcd`.

        Raises:
          ConfigError: `bcd` is not the run that the codes come from, or a setting is out of range.
        """
        system, source = run.system, run.source("eval")
        rows = run.rows(self.batch)
        score = run.jit(system.score)
        generate = self._generator(run, system.frames)
        mean, real, made = Mean(), [], []
        for start in range(0, len(source), rows):
            picked = np.minimum(np.arange(start, start + rows), len(source) - 1)
            elements = [source[int(i)] for i in picked]
            batch = {name: np.stack([e[name] for e in elements]) for name in ("content", "ids")}
            kept = min(rows, len(source) - start)
            placed = run.put_rows(batch)
            mean = mean.update(np.asarray(score(vars, placed))[:kept])
            key = jax.random.fold_in(jax.random.key(run.config.seed), start)
            made.append(np.asarray(generate(vars, placed, key)["ids"])[:kept])
            real.append(batch["ids"][:kept])
        real, made = np.concatenate(real), np.concatenate(made)

        def histogram(ids):
            counts = codebook.usage_counts(ids, system.entries)
            return counts / counts.sum(axis=1, keepdims=True)

        distance = 0.5 * np.abs(histogram(real) - histogram(made)).sum(axis=1).mean()
        changes = [np.mean(ids[:, 1:] != ids[:, :-1]) for ids in (real, made)]
        sampled = f"temperature {self.temperature}" if self.temperature else "greedy"
        self.render(run, vars)
        results = [
            (
                "cross_entropy",
                mean.compute(),
                f"nats per code; ln {system.entries} = {system.uniform_loss:.3f}",
            ),
            ("perplexity", float(np.exp(mean.compute())), f"per codebook, of {system.entries}"),
            (
                "histogram_distance",
                float(distance),
                f"total variation per codebook, 0 to 1; {sampled}",
            ),
            (
                "change_rate/real",
                float(changes[0]),
                "share of codes that differ from the frame before",
            ),
            ("change_rate/generated", float(changes[1]), f"the same; {sampled}"),
        ]
        return [
            MetricResult(name, value, note, "none", "codes", len(real))
            for name, value, note in results
        ]

    def _generator(self, run, frames: int):
        return run.jit_sample(frames=frames, temperature=self.temperature, top_k=self.top_k or None)

    def render(self, run, vars) -> None:
        """Write ``samples/generated.{mp4,gif,png}``: content pictures moved by generated motion.

        The content codes are those of the first `clips` records of the eval split. Beside each result stands the first
        picture of the clip that the record was encoded from.

        Raises:
          ConfigError: as `evaluate`.
        """
        if not self.bcd:
            log.info("nothing is rendered: config.evals.motion_generation.bcd names no BCD run")
            return
        bcd, bcd_vars = _open_bcd(run, self.bcd)
        source, pictures = run.source("eval"), bcd.source("eval")
        clips = min(self.clips, len(source))
        picked = [min(i, clips - 1) for i in range(run.rows(clips))]
        content = np.stack([source[i]["content"] for i in picked])
        key = jax.random.key(run.config.seed)
        generate = self._generator(run, self.frames)
        ids = np.asarray(generate(vars, run.put_rows({"content": content}), key)["ids"])
        paint = bcd.jit(bcd.system.render)
        moving = paint(bcd_vars, bcd.put_rows({"content": content, "ids": ids}), key)
        result = to_uint8(np.asarray(moving)[:clips])
        first = [clip_of(pictures[i])[:1] for i in range(clips)]
        still = np.stack(as_pictures(bcd, bcd_vars, first))
        sheet = np.concatenate([still.repeat(result.shape[1], axis=1), result], axis=3)
        if jax.process_index() == 0:
            folder = run.workdir / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            moving_sheet = media.grid(sheet, cols=1)
            media.write_mp4(folder / "generated.mp4", moving_sheet, fps=bcd.config.sample.fps)
            media.write_gif(folder / "generated.gif", moving_sheet, fps=bcd.config.sample.fps)
            strips = [media.strip(clip, 8) for clip in sheet]
            media.write_png(folder / "generated.png", np.concatenate(strips))
            log.info("pictures: %s", folder / "generated.png")


def _open_bcd(run, workdir: str):
    """Open the BCD run in a workdir; return the run and its variables.

    Raises:
      ConfigError: the workdir holds another system, or not the run or checkpoint that wrote the codes.
    """
    system, bcd = run.system, open_run(workdir)
    if not isinstance(bcd.system, BCD):
        raise ConfigError(
            f"config.evals.motion_generation.bcd={workdir!r} holds a {bcd.config.system.name}, which cannot render "
            "motion"
        )
    bcd_vars = bcd.trained_vars()
    theirs = paths.flatten(bcd_vars.params["model"]["quantizer"])
    ours = encoded.CodesSource.read_attached(system.codes)
    if theirs.keys() != ours.keys() or any(
        not np.array_equal(ours[path], theirs[path]) for path in ours
    ):
        raise ConfigError(
            f"config.evals.motion_generation.bcd={workdir!r} is not the run, or not the checkpoint, that wrote the "
            f"codes {system.codes!r}: its codebooks differ"
        )
    return bcd, bcd_vars
