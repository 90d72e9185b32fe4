"""Motion transfer on data whose true answers can be rendered, sampled once and shared by all evaluators.

Clip i gives the content. Its driver is clip ``paired[i]``, the next clip on a cycle through all clips. Three passes of
the sampler serve all scores:

    pass      content i with motion of    scored against
    true      paired[i]                   the true answer of the pair
    itself    i                           the clip itself; the true answer of the pair (no driver)
    wrong     paired[paired[i]]           the true answer of the pair (wrong driver), and of the pair of paired[i]
                                          (wrong source)
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

# metric -> its function of made and true pictures, and its convention
METRICS = {
    "psnr": (
        functools.partial(pixel.psnr, convention="common"),
        "common, mean of per-frame dB",
    ),
    "sharpness": (pixel.sharpness, "gradient energy, made over true; mean of frames"),
    "ssim": (functools.partial(pixel.ssim, convention="wang"), "wang, mean of frames"),
}

_kept: contextvars.ContextVar[list["Driven"] | None] = contextvars.ContextVar("kept", default=None)


class Pass(NamedTuple):
    """The samples with the true drivers, and their scores.

    Attributes:
      videos: uint8 (N, T, H, W, 3).
      ids: int (N, T, books), the codes of a quantised motion; None if the motion is not quantised.
      codes: float (N, T, D), the motion codes of a system that returns them as ``code``; None for other systems.
      means: the mean of each metric against the true answers.
    """

    videos: np.ndarray
    ids: np.ndarray | None
    codes: np.ndarray | None
    means: dict[str, float]


class Driven:
    """The first clips of a split, and a system's samples for pairs of them; each pass is sampled on first access.

    Args:
      run, vars: see `Evaluator.evaluate`.
      pairs: the number of clips, and of pairs; 0: all.
      batch: the number of pairs to sample at a time.
      split: ``eval`` or ``train``.

    Attributes:
      source: the source of the clips.
      count: N, the number of clips and of pairs.
      clips: the clips, uint8 (T, H, W, 3) each.
      paired: int (N,): clip i takes the motion of clip ``paired[i]``.

    Raises:
      ConfigError: the data cannot render the true answers, or there are fewer than two clips.
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
        """The pass with the true drivers."""
        videos, found = [], {"ids": [], "code": []}
        score = _Score()
        for part, outputs in self._drive(self.paired, "swapping"):
            score.take(outputs["video"], [self.truth[i] for i in part])
            videos.append(to_uint8(outputs["video"]))
            for name, batches in found.items():
                if name in outputs:
                    batches.append(outputs[name])
        ids, codes = (np.concatenate(batches) if batches else None for batches in found.values())
        return Pass(np.concatenate(videos), ids, codes, score.means(METRICS))

    @functools.cached_property
    def itself(self) -> tuple[dict[str, float], float]:
        """Scores of clips that drive themselves.

        Two values: the mean of each metric against the clips, and the mean PSNR against the true answers of the pairs,
        which is what a system reaches without a driver.
        """
        own, pair = _Score(), _Score()
        for part, outputs in self._drive(np.arange(self.count), "self-driving"):
            own.take(outputs["video"], [self.clips[i] for i in part])
            pair.take(outputs["video"], [self.truth[i] for i in part], ("psnr",))
        return own.means(METRICS), pair.means(("psnr",))["psnr"]

    @functools.cached_property
    def wrong(self) -> tuple[float, float] | None:
        """PSNR against the true answers of the pairs with another clip's motion, and with another clip's content.

        None if there are only two clips, because a wrong driver must be a third one.
        """
        if self.count < 3:
            return None
        driver, source = _Score(), _Score()
        for part, outputs in self._drive(self.paired[self.paired], "driving with wrong drivers"):
            driver.take(outputs["video"], [self.truth[i] for i in part], ("psnr",))
            source.take(outputs["video"], [self.truth[self.paired[i]] for i in part], ("psnr",))
        return driver.means(("psnr",))["psnr"], source.means(("psnr",))["psnr"]

    def copies(self, metrics: Sequence[str] = tuple(METRICS)) -> dict[str, dict[str, float]]:
        """Score the trivial answers against the true answers of the pairs.

        Returns:
          the mean of each metric for each trivial answer: ``content`` is the clip itself, ``motion`` is its driver,
          ``mean`` is the mean picture of all the clips.
        """
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
        """Sample clip i with the motion of clip ``drivers[i]``; yield the indices and outputs of each batch."""
        motions = [self.clips[j] for j in drivers]
        boxes = self._boxes, [self._boxes[j] for j in drivers]
        done = 0
        for outputs in transfer(self.run, self.vars, self.clips, motions, self._batch, what, boxes):
            part = range(done, done + len(outputs["video"]))
            yield part, outputs
            done = part.stop


def renderer(run, pairs: int, split: str = "eval"):
    """Return the source of a split, which can render the true answers of swaps, and the number of clips to pair.

    Args:
      run: a `vidmotion.run.Run`.
      pairs: the number of clips asked for; 0: all. The result is at most the length of the source.
      split: ``eval`` or ``train``.

    Raises:
      ConfigError: the data cannot render the true answers, or there are fewer than two clips.
    """
    source = run.source(split)
    if isinstance(source, DrawnPortraitSource):  # training pairs frames of these clips
        source = source.clips
    if not isinstance(source, Renders):
        kind = run.config.data.get(split, {}).get("kind", run.config.data.kind)
        raise ConfigError(
            f"config.evals asks for swaps, but data of kind {kind!r} cannot render the true answer; "
            "heads and sprites can"
        )
    count = min(pairs or len(source), len(source))
    if count < 2:
        raise ConfigError(f"swaps need at least two clips, but config.data.{split} gives {count}")
    return source, count


class _Score:
    """Running means of `METRICS`."""

    def __init__(self):
        self._means: dict[str, Mean] = {}

    def take(self, videos: np.ndarray, truths: Sequence[np.ndarray], metrics=tuple(METRICS)):
        """Add the scores of float videos (N, T, H, W, 3) in [0, 1] against uint8 true answers."""
        wanted = _unit(np.stack(truths))
        for name in metrics:
            values = np.asarray(METRICS[name][0](videos, wanted))
            self._means[name] = self._means.get(name, Mean()).update(values)

    def means(self, metrics) -> dict[str, float]:
        return {name: self._means[name].compute() for name in metrics}


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """Let the evaluators that run inside this context share their samples, if they use the same variables."""
    token = _kept.set([])
    try:
        yield
    finally:
        _kept.reset(token)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPairs(Evaluator):
    """Base class of evaluators of motion transfer on data whose true answers can be rendered.

    Attributes:
      pairs: the number of clips, which are paired by a seeded derangement; 0: all.
      batch: the number of pairs to sample at a time.
    """

    pairs: int
    batch: int

    def check(self, run) -> None:
        """See `Evaluator.check`."""
        renderer(run, self.pairs)

    def driven(self, run, vars, split: str = "eval") -> Driven:
        """Return the pairs of a split and the system's samples for them.

        Within `keeping`, the result is shared with other evaluators of the same pairs.

        Raises:
          ConfigError: the data cannot render the true answers, or there are fewer than two clips.
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
