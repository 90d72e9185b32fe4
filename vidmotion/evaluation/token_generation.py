"""Evaluation of token generation: perplexity on held-out motion tokens, statistics of generated ones, and pictures.

The paper gives no numbers for this. Perplexities are given together with the number of entries and with the perplexity
of a unigram model, which knows only how often each entry occurs. Whether a sequence generated for an emotion shows that
emotion is decided by a linear reader: ridge regression of the emotion on the mean code of a sequence, fitted to the
train split. The reader's accuracy on held-out sequences is the best that generation can reach.
"""

import dataclasses

import jax
import numpy as np

from vidmotion import animate
from vidmotion.data import encoded
from vidmotion.evaluation.evaluator import Evaluator
from vidmotion.evaluation.motion_tokens import open_xnemo, write_sheet
from vidmotion.metrics import codebook
from vidmotion.metrics.accumulate import Mean
from vidmotion.metrics.result import MetricResult

RIDGE = 1e-2  # relative to the mean variance of the standardised mean codes


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenGeneration(Evaluator):
    """Scores a token generator on held-out tokens, compares generated tokens with real ones, and renders clips.

    Attributes:
      batch: the number of clips at a time.
      clips: the number of clips to render.
      prefix: the number of tokens of each sequence that are given to the generator.
      count: the number of tokens to generate after the given ones.
      xnemo: the workdir of the X-NeMo run that the codes come from; "": nothing is rendered, and the log says so.
    """

    batch: int
    clips: int
    prefix: int
    count: int
    xnemo: str = ""

    def check(self, run) -> None:
        """See `Evaluator.check`."""
        run.source("eval")
        open_xnemo(self.xnemo, run.system.codes, encoded.MotionTokensSource)

    def evaluate(self, run, vars) -> list[MetricResult]:
        """Score the eval split, continue the first `prefix` tokens of each sequence by `count`, and render the results.

        If the system is conditioned on emotions, each sequence is generated with its own emotion.

        Raises:
          ConfigError: `xnemo` is not the run that the codes come from.
        """
        system, source = run.system, run.source("eval")
        xnemo = open_xnemo(self.xnemo, system.codes, encoded.MotionTokensSource)
        real = {name: _all(source, name) for name in run.batch}
        train_ids = _all(run.source("train", length=0), "ids")
        entries, given = system.net.entries, min(self.prefix, system.length)
        score = run.jit(system.score)
        perplexity = _perplexity(run, self.batch, lambda batch, key: score(vars, batch), real)
        rows = [
            ("perplexity", perplexity, f"per token; of {entries} entries"),
            ("perplexity/unigram", _unigram(train_ids, real["ids"], entries), "of the train split"),
        ]
        if system.conditions:
            unsaid = {**real, "condition": np.full_like(real["condition"], system.conditions)}
            value = _perplexity(run, self.batch, lambda batch, key: score(vars, batch), unsaid)
            rows.append(("perplexity/no_emotion", value, "the emotion is not told"))
        sample = run.jit_sample(count=self.count)
        asked = {**real, "ids": real["ids"][:, :given]}
        made = _batched(run, self.batch, lambda batch, key: sample(vars, batch, key), asked)

        def histogram(ids):
            counts = codebook.usage_counts(ids[..., None], entries)[0]
            return counts / counts.sum()

        distance = 0.5 * np.abs(histogram(real["ids"]) - histogram(made["ids"])).sum()
        again = [np.mean(ids[:, 1:] == ids[:, :-1]) for ids in (real["ids"], made["ids"])]
        decode = run.jit(system.motion)
        nothing = np.zeros((len(source), 0), np.int32)
        truth = _batched(
            run,
            self.batch,
            lambda b, key: decode(vars, b["none"], b["ids"]),
            {"none": nothing, **real},
        )
        speed = [np.mean(np.abs(np.diff(x, axis=1))) for x in (truth, made["motion"])]
        rows += [
            ("histogram_distance", float(distance), "total variation of the tokens made, 0 to 1"),
            ("repeats/real", float(again[0]), "share of tokens like the one before"),
            ("repeats/generated", float(again[1]), "the same"),
            ("speed/real", float(speed[0]), "mean change of a decoded code from frame to frame"),
            ("speed/generated", float(speed[1]), "the same"),
        ]
        if system.conditions:
            rows += _emotions(
                run, self.batch, vars, decode, truth, made["motion"], real["condition"]
            )
        if xnemo is not None:
            first = [{name: x[: self.clips] for name, x in part.items()} for part in (real, made)]
            _show(run, vars, xnemo, given, *first, decode)
        return [
            MetricResult(name, value, note, "none", "tokens", len(source))
            for name, value, note in rows
        ]


def _all(source, name: str) -> np.ndarray:
    return np.stack([source[i][name] for i in range(len(source))])


def _batched(run, batch_size: int, function, arrays):
    """Apply `function`, of a batch and a key, to all rows of `arrays` batch by batch, and concatenate the results."""
    total, rows = len(arrays["ids"]), run.rows(batch_size)
    parts = []
    for start in range(0, total, rows):
        picked = np.minimum(np.arange(start, start + rows), total - 1)
        batch = run.put_rows({name: array[picked] for name, array in arrays.items()})
        key = jax.random.fold_in(jax.random.key(run.config.seed), start)
        parts.append(jax.tree.map(np.asarray, function(batch, key)))
    return jax.tree.map(lambda *x: np.concatenate(x)[:total], *parts)


def _perplexity(run, batch_size: int, score, arrays) -> float:
    return float(np.exp(Mean().update(_batched(run, batch_size, score, arrays)).compute()))


def _unigram(train: np.ndarray, held_out: np.ndarray, entries: int) -> float:
    """Return the perplexity of held-out tokens under their frequencies in training, with one added to each count."""
    counts = codebook.usage_counts(train[..., None], entries)[0] + 1
    return float(np.exp(-np.mean(np.log(counts / counts.sum())[held_out])))


def _emotions(
    run, batch_size: int, vars, decode, truth, made, labels
) -> list[tuple[str, float, str]]:
    source = run.source("train", length=0)
    ids = _all(source, "ids")[:, : run.system.length]
    known = {"ids": ids, "none": ids[:, :0]}
    codes = _batched(run, batch_size, lambda b, key: decode(vars, b["none"], b["ids"]), known)
    read = reader(codes.mean(axis=1), _all(source, "condition"), run.system.conditions)
    commonest = float(np.max(np.bincount(labels)) / len(labels))
    return [
        (
            "emotion/generated",
            float(np.mean(read(made.mean(axis=1)) == labels)),
            f"share with the emotion asked for; commonest {commonest:.3f}",
        ),
        (
            "emotion/real",
            float(np.mean(read(truth.mean(axis=1)) == labels)),
            "held-out tokens: what generation can reach",
        ),
    ]


def reader(x_nd: np.ndarray, labels: np.ndarray, classes: int):
    """Fit a ridge regression of class indicators on `x_nd`, and return the classifier, a function (N, D) -> (N,)."""
    mean, scale = x_nd.mean(axis=0), x_nd.std(axis=0) + 1e-6

    def features(x):
        return np.concatenate([(x - mean) / scale, np.ones((len(x), 1))], axis=1)

    known = features(x_nd.astype(np.float64))
    gram = known.T @ known + RIDGE * len(known) * np.eye(known.shape[1])
    weights = np.linalg.solve(gram, known.T @ np.eye(classes)[labels])
    return lambda x: np.argmax(features(x.astype(np.float64)) @ weights, axis=1)


def _show(run, vars, xnemo, given: int, real, made, decode) -> None:
    """Render the first clips and write their generated codes.

    Writes ``samples/generated.*``: the portrait, the motion of the clip's real tokens, and the motion of the given
    tokens followed by the generated ones. The codes of the last are written to
    ``samples/generated-<clip>.safetensors``, for ``reenact --codes``.
    """
    system, count = run.system, len(real["ids"])
    rows = run.rows(count)
    picked = np.minimum(np.arange(rows), count - 1)
    whole = np.concatenate([real["ids"][:, :given], made["ids"]], axis=1)[:, : system.length]
    nothing = np.zeros((rows, 0), np.int32)
    truth, drawn = (
        np.asarray(decode(vars, *run.put_rows((nothing, ids[picked]))))[:count]
        for ids in (real["ids"], whole)
    )
    frames = min(truth.shape[1], drawn.shape[1])
    there = encoded.MotionTokensSource.read_provenance(system.codes)
    codes = np.stack([truth[:, :frames], drawn[:, :frames]], axis=1)
    write_sheet(run, xnemo, "generated", codes, there["fps"])
    if jax.process_index() == 0:
        for i, motion in enumerate(drawn):
            path = run.workdir / "samples" / f"generated-{i}.safetensors"
            animate.write_codes(path, motion, there["encoder"], there["fps"])
