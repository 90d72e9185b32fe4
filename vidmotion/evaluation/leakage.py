"""What each code says of the other's business, read by held-out probes where the true factors are known.

Of every clip the content code and the motion code are taken as in a transfer, whole: the content code as it is, the
motion code frame after frame. From both, both kinds of factors are read: identity from motion and motion from content
leak and are wanted at chance; identity from content and motion from motion show what the codes hold and what
the same probes can read of it. A motion factor that varies within a clip is read as its course over the frames.

Probes are fitted, tuned and tested on clips of different identities. Chance is the best constant; beside it stands
the same reading after the factors have been shuffled among the clips, which is chance as this very procedure has it.
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

READINGS = {  # factors and code: what is wanted
    ("identity", "motion"): "leakage: wanted at chance",
    ("motion", "content"): "leakage: wanted at chance",
    ("identity", "content"): "wanted high",
    ("motion", "motion"): "wanted high",
}


def _clips(run, wanted: int) -> tuple[Any, np.ndarray]:
    """The eval split, and the identity of each of its clips that are asked for."""
    drawn = wanted and "clips" in run.config.data.eval
    source = run.source("eval", **({"clips": wanted} if drawn else {}))
    if not isinstance(source, Renders):
        raise ConfigError(
            f"config.evals asks for 'leakage', and data of kind {run.config.data.kind!r} do not know what "
            "their clips were made of; heads and sprites do"
        )
    count = min(wanted or len(source), len(source))
    groups = np.array([source.identity_id(i) for i in range(count)])
    if len(np.unique(groups)) < 5:
        raise ConfigError(
            f"{count} clips of {len(np.unique(groups))} identities: probes are fitted and tested on different "
            "ones and need five or more; raise config.evals.leakage.probe_clips, or give the eval split more clips"
        )
    return source, groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leakage(Evaluator):
    """How much the content code tells about motion, and the motion code about identity.

    Attributes:
      batch: clips at a time.
      probe_clips: how many clips; 0: all of the eval split. A procedural source draws any number.
    """

    batch: int
    probe_clips: int = 0

    def check(self, run) -> None:
        """See `Evaluator.check`."""
        _clips(run, self.probe_clips)

    def evaluate(self, run, vars) -> list[MetricResult]:
        """R^2 of continuous factors and accuracy of classes, each with its interval, for every reading and probe.

        Rows ``probe/<factors>_from_<code>/<probe>/<score>`` are means over the factors, beside
        ``.../low`` and ``.../high``, the ends of their 95 % interval, and of accuracies ``.../chance``.

        Raises:
          ConfigError: data that do not know their factors, a system without codes, or too few clips.
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
    """``{"content": (N, Dc), "motion": (N, T * Dm)}`` of the first `count` clips, and their resolution."""
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
    """(metric, value, convention[, note]) of the factors `names`: some for each kind of score that they have."""
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
        if score == "accuracy":  # of r2 it is 0
            yield f"{metric}/chance", whole.chance, "always the commonest class of the fitting part"
