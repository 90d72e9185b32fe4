"""Clips moved by other clips where the true answer can be rendered: sampled once for all evaluators that ask.

Clip i gives the content; its driver is clip ``paired[i]``, the next on one cycle through all clips. Three passes over
the sampler serve every question:

    driver            content i, motion of    against the true answer of
    true              paired[i]               the pair
    itself            i                       the clip itself; the pair (no driver)
    the next but one  paired[paired[i]]       the pair (wrong driver); the pair of paired[i] (wrong source)
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vidmotion.data.clip_source import Boxes, Renders
from vidmotion.data.portraits import DrawnPortraitSource
from vidmotion.errors import ConfigError
from vidmotion.evaluation.evaluator import Evaluator
from vidmotion.evaluation.transfer import derangement, to_uint8, transfer
from vidmotion.metrics import pixel
from vidmotion.metrics.accumulate import Mean

METRICS = {
    "psnr": ("common", pixel.psnr, "common, mean of per-frame dB"),
    "ssim": ("wang", pixel.ssim, "wang, mean of frames"),
}

_kept: contextvars.ContextVar[list["Driven"] | None] = contextvars.ContextVar("kept", default=None)


class Pass(NamedTuple):
    """What the true drivers gave: uint8 videos (N, T, H, W, 3), the codes int (N, T, books) of a quantised motion
    or None, and means by metric against the true answers."""

    videos: np.ndarray
    ids: np.ndarray | None
    means: dict[str, float]


class Driven:
    """The first clips of a split and what a system makes of them, each pass when it is first asked for.

    Args:
      run, vars: see `Evaluator.evaluate`.
      pairs: how many clips; 0: all.
      batch: pairs at a time.
      split: ``eval`` or ``train``.

    Attributes:
      source: where the clips come from.
      count: N, of clips and of pairs.
      clips: uint8 (T, H, W, 3) each.
      paired: int (N,), whose motion clip i takes.

    Raises:
      ConfigError: data that cannot render the true answer, or fewer than two clips.
    """

    def __init__(self, run, vars, pairs: int, batch: int, split: str):
        self.key = run, vars, pairs, batch, split
        self.run, self.vars, self._batch = run, vars, batch
        self.source, self.count = renderer(run, pairs, split)
        source = self.source
        self.paired = derangement(self.count)
        self.clips = [source[i]["video"] for i in range(self.count)]
        self._boxes = [
            source.boxes(i) if isinstance(source, Boxes) else None for i in range(self.count)
        ]

    @property
    def resolution(self) -> str:
        """Height and width of the clips, "64x64"."""
        return f"{self.clips[0].shape[1]}x{self.clips[0].shape[2]}"

    @functools.cached_property
    def truth(self) -> list[np.ndarray]:
        """The true answer of each pair, uint8 (T, H, W, 3): the identity of clip i moving as clip ``paired[i]``."""
        return [self.source.swap(i, int(j)) for i, j in enumerate(self.paired)]

    @functools.cached_property
    def true(self) -> Pass:
        """What the true drivers gave."""
        videos, ids = [], []
        score = _Score()
        for part, outputs in self._drive(self.paired, "swapping"):
            score.take(outputs["video"], [self.truth[i] for i in part])
            videos.append(to_uint8(outputs["video"]))
            if "ids" in outputs:
                ids.append(outputs["ids"])
        return Pass(
            np.concatenate(videos), np.concatenate(ids) if ids else None, score.means(METRICS)
        )

    @functools.cached_property
    def itself(self) -> tuple[dict[str, float], float]:
        """Scores of clips that drive themselves: means by metric against the clips, and PSNR against the true answers
        of the pairs, which is what a system reaches that has no driver."""
        own, pair = _Score(), _Score()
        for part, outputs in self._drive(np.arange(self.count), "self-driving"):
            own.take(outputs["video"], [self.clips[i] for i in part])
            pair.take(outputs["video"], [self.truth[i] for i in part], ("psnr",))
        return own.means(METRICS), pair.means(("psnr",))["psnr"]

    @functools.cached_property
    def wrong(self) -> tuple[float, float] | None:
        """PSNR against the true answers of the pairs with another clip's motion, and with another clip's content.
        None of two clips, which have no third."""
        if self.count < 3:
            return None
        driver, source = _Score(), _Score()
        for part, outputs in self._drive(self.paired[self.paired], "wrongly driving"):
            driver.take(outputs["video"], [self.truth[i] for i in part], ("psnr",))
            source.take(outputs["video"], [self.truth[self.paired[i]] for i in part], ("psnr",))
        return driver.means(("psnr",))["psnr"], source.means(("psnr",))["psnr"]

    def copies(self, metrics: Sequence[str] = tuple(METRICS)) -> dict[str, dict[str, float]]:
        """Means by metric against the true answers of the pairs of the trivial answers: ``content`` and ``motion``,
        the clip itself or its driver; ``mean``, the mean picture of all these clips."""
        mean = np.mean([clip.mean(axis=0) for clip in self.clips], axis=0) / 255.0
        scores = {name: _Score() for name in ("content", "motion", "mean")}
        for i, truth in enumerate(self.truth):
            answers = {
                "content": _unit(self.clips[i]),
                "motion": _unit(self.clips[self.paired[i]]),
                "mean": np.broadcast_to(mean, truth.shape).astype(np.float32),
            }
            for name, video in answers.items():
                scores[name].take(video[None], [truth], metrics)
        return {name: score.means(metrics) for name, score in scores.items()}

    def _drive(self, drivers: np.ndarray, what: str) -> Iterator[tuple[range, dict]]:
        """Sample clip i with the motion of clip ``drivers[i]``: indices and outputs of each batch."""
        motions = [self.clips[j] for j in drivers]
        boxes = self._boxes, [self._boxes[j] for j in drivers]
        done = 0
        for outputs in transfer(self.run, self.vars, self.clips, motions, self._batch, what, boxes):
            part = range(done, done + len(outputs["video"]))
            yield part, outputs
            done = part.stop


def renderer(run, pairs: int, split: str = "eval"):
    """The source of a split, which renders the true answers of swaps, and how many of its clips make `pairs` pairs.

    Raises:
      ConfigError: data that cannot render the true answer, or fewer than two clips.
    """
    source = run.source(split)
    if isinstance(source, DrawnPortraitSource):  # training reads pairs of frames off such clips
        source = source.clips
    if not isinstance(source, Renders):
        kind = run.config.data.get(split, {}).get("kind", run.config.data.kind)
        raise ConfigError(
            f"config.evals asks for swaps, and data of kind {kind!r} cannot render the true answer; "
            "heads and sprites can"
        )
    count = min(pairs or len(source), len(source))
    if count < 2:
        raise ConfigError(f"swaps need two clips at least, and config.data.{split} gives one")
    return source, count


class _Score:
    """Running means of `METRICS`."""

    def __init__(self):
        self._means: dict[str, Mean] = {}

    def take(self, videos: np.ndarray, truths: Sequence[np.ndarray], metrics=tuple(METRICS)):
        """Videos float (N, T, H, W, 3) in [0, 1] against uint8 ones."""
        wanted = _unit(np.stack(truths))
        for name in metrics:
            kind, function, _ = METRICS[name]
            values = np.asarray(function(videos, wanted, kind))
            self._means[name] = self._means.get(name, Mean()).update(values)

    def means(self, metrics) -> dict[str, float]:
        return {name: self._means[name].compute() for name in metrics}


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """Within it, evaluators of the same variables share what the first of them sampled."""
    token = _kept.set([])
    try:
        yield
    finally:
        _kept.reset(token)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPairs(Evaluator):
    """An evaluator of clips that are moved by other clips, whose true answers can be rendered.

    Attributes:
      pairs: how many clips, paired by a seeded derangement; 0: all.
      batch: pairs at a time.
    """

    pairs: int
    batch: int

    def check(self, run) -> None:
        """See `Evaluator.check`."""
        renderer(run, self.pairs)

    def driven(self, run, vars, split: str = "eval") -> Driven:
        """What the system makes of the pairs of a split; shared with other evaluators of the same pairs within
        `keeping`.

        Raises:
          ConfigError: data that cannot render the true answer, or fewer than two clips.
        """
        key, kept = (run, vars, self.pairs, self.batch, split), _kept.get()
        for made in kept or ():
            if made.key[0] is run and made.key[1] is vars and made.key[2:] == key[2:]:
                return made
        made = Driven(*key)
        if kept is not None:
            kept.append(made)
        return made


def _unit(video: np.ndarray) -> np.ndarray:
    return video.astype(np.float32) / 255.0
