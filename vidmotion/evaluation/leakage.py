"""Leakage between the content code and the motion code, measured by held-out probes where the true factors are known.

For each clip, the content code and the motion code are computed as for a transfer and used whole: the content code as
it is, the motion codes of all frames concatenated. Probes read both kinds of factors from both codes. Reading identity
from motion, or motion from content, is leakage and should be at chance. Reading identity from content, and motion from
motion, shows what the codes contain and how well the same probes can read it. A motion factor that varies within a
clip is read as its course over the frames.

Probes are fitted, tuned and tested on clips of different identities. Chance is the score of the best constant. The
score after shuffling the factors among the clips is also given: it is the chance level of this very procedure.
"""

import dataclasses
from typing import Any

import numpy as np

from vidmotion.data.clip_source import Boxes, Renders
from vidmotion.errors import ConfigError
from vidmotion.evaluation.evaluator import Evaluator
from vidmotion.evaluation.transfer import face_views
from vidmotion.metrics import probe
from vidmotion.metrics.result import MetricResult
from vidmotion.progress import watched

READINGS = {  # (factors, code): the desired result
    ("identity", "motion"): "leakage: wanted at chance",
    ("motion", "content"): "leakage: wanted at chance",
    ("identity", "content"): "wanted high",
    ("motion", "motion"): "wanted high",
}


def _clips(run, wanted: int) -> tuple[Any, np.ndarray]:
    """Return the eval split, and the identities of the clips to use; `wanted` is their number, 0: all."""
    drawn = wanted and "clips" in run.config.data.eval
    source = run.source("eval", **({"clips": wanted} if drawn else {}))
    if not isinstance(source, Renders):
        raise ConfigError(
            f"config.evals asks for 'leakage', but for data of kind {run.config.data.kind!r} the factors "
            "of the clips are not known; they are for heads and sprites"
        )
    count = min(wanted or len(source), len(source))
    groups = np.array([source.identity_id(i) for i in range(count)])
    if len(np.unique(groups)) < 5:
        raise ConfigError(
            f"{count} clips of {len(np.unique(groups))} identities: probes are fitted and tested on different "
            "identities and need at least five; raise config.evals.leakage.probe_clips, or give the eval split more "
            "clips"
        )
    return source, groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leakage(Evaluator):
    """Measures how much the content code reveals about motion, and the motion code about identity.

    Attributes:
      batch: the number of clips at a time.
      probe_clips: the number of clips; 0: all of the eval split. A procedural source can draw any number.
    """

    batch: int
    probe_clips: int = 0

    def check(self, run) -> None:
        """See `Evaluator.check`."""
        _clips(run, self.probe_clips)

    def evaluate(self, run, vars) -> list[MetricResult]:
        """Return R^2 of continuous factors and accuracy of classes, with intervals, for every reading and probe.

        A row ``probe/<factors>_from_<code>/<probe>/<score>`` is the mean over the factors. Rows ``.../low`` and
        ``.../high`` are the ends of its 95 % interval; accuracies also have a row ``.../chance``.

        Raises:
          ConfigError: the factors of the data are not known, the system has no codes, or there are too few clips.
        """
        source, groups = _clips(run, self.probe_clips)
        count = len(groups)
        made_of = [source.factors(i) for i in range(count)]
        factors = {
            f"{kind}/{name}": np.array([clip[kind][name] for clip in made_of])
            for kind in ("identity", "motion")
            for name in made_of[0][kind]
        }
        parts = probe.split(groups, run.config.seed)
        order = np.random.default_rng(run.config.seed).permutation(count)
        everything = factors | {f"shuffled/{key}": value[order] for key, value in factors.items()}
        codes, resolution = _codes(run, vars, source, count, self.batch)

        results = []
        for code, values in codes.items():
            for reader in probe.PROBES:
                readings = probe.read(reader, values, everything, parts, groups)
                for (kind, of), meaning in READINGS.items():
                    if of == code:
                        name = f"probe/{kind}_from_{code}/{reader}"
                        names = [key for key in factors if key.startswith(f"{kind}/")]
                        rows = _rows(name, names, factors, readings, meaning)
                        for metric, value, convention, *note in rows:
                            of_row = (
                                metric,
                                value,
                                convention,
                                "none",
                                resolution,
                                len(parts.test),
                            )
                            results.append(MetricResult(*of_row, *note))
        return results


def _codes(run, vars, source, count: int, batch: int) -> tuple[dict[str, np.ndarray], str]:
    """Return codes ``{"content": (N, Dc), "motion": (N, T * Dm)}`` of the first `count` clips, and the resolution."""
    read = run.jit(run.system.read_codes)
    rows = run.rows(batch)
    parts = []
    for start in watched(range(0, count, rows), "reading codes"):
        clips = [source[i]["video"] for i in range(start, min(start + rows, count))]
        video = np.stack(clips + [clips[-1]] * (rows - len(clips)))
        inputs = {"content": video, "motion": video}
        if run.system.face_side and isinstance(source, Boxes):
            side, last = run.system.face_side, start + len(clips) - 1
            boxes = [source.boxes(min(start + i, last)) for i in range(rows)]
            views = [face_views(side, x, box, x, box) for x, box in zip(video, boxes)]
            inputs |= {name: np.stack([view[name] for view in views]) for name in views[0]}
        outputs = read(vars, run.put_rows(inputs))
        parts.append({name: np.asarray(value)[: len(clips)] for name, value in outputs.items()})
    codes = {name: np.concatenate([part[name] for part in parts]) for name in ("content", "motion")}
    size = f"{video.shape[2]}x{video.shape[3]}"
    return {name: code.astype(np.float32).reshape(count, -1) for name, code in codes.items()}, size


def _rows(name: str, names: list[str], factors, readings, meaning: str):
    """Yield rows (metric, value, convention[, note]) about the factors `names`, for each kind of score they have."""
    classes = [key for key in names if np.issubdtype(factors[key].dtype, np.integer)]
    for score, keys in (
        ("r2", [key for key in names if key not in classes]),
        ("accuracy", classes),
    ):
        if not keys:
            continue
        metric = f"{name}/{score}"
        varying = [key for key in keys if not np.isnan(readings[key].value)]
        if not varying:
            yield (
                metric,
                None,
                meaning,
                "not computed: no factor varies in both the fitting and the test part",
            )
            continue
        whole = probe.estimate([readings[key] for key in varying])
        shuffled = [readings[f"shuffled/{key}"].value for key in varying]
        best = max(varying, key=lambda key: readings[key].value - readings[key].chance)
        yield (
            metric,
            whole.value,
            f"{meaning}; mean of {len(varying)} factors, chance {whole.chance:.3f}, shuffled "
            f"{np.nanmean(shuffled):.3f}; most above chance: {best.split('/')[1]} {readings[best].value:.3f}",
        )
        for end in ("low", "high"):
            yield (
                f"{metric}/{end}",
                getattr(whole, end),
                "95 % bootstrap interval over test identities",
            )
        if score == "accuracy":  # the chance level of R^2 is always 0
            yield f"{metric}/chance", whole.chance, "always the commonest class of the fitting part"
