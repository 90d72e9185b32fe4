"""The measures that a protocol takes: each has an accumulator, an update from a batch of clips, and rows of results.

    state = measure.start
    state = measure.update(state, batch)          # any number of times, on any number of hosts
    rows = measure.rows(merge(state, others))

The accumulators come from `vidmotion.metrics`: their results do not depend on how the clips are split into batches or
hosts, and their size does not depend on the number of clips. Definitions and conventions follow the spec metrics.md;
each function names its section.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from vidmotion.errors import ConfigError
from vidmotion.evaluation.feature_networks import FeatureNetwork
from vidmotion.metrics import (
    expression,
    frechet,
    identity,
    pixel,
    resize,
    stability,
)
from vidmotion.metrics.accumulate import Mean
from vidmotion.metrics.paired import PairedScore
from vidmotion.metrics.result import MetricResult, not_computed

State = Mapping[str, Any]

# Where a face box (eyebrows to chin) is placed in ArcFace's picture of 112 pixels: the centre x, y and the side, chosen
# to fit the eyes and mouth of its template. EMONET_SCALE is the side of EmoNet's crop over that of the box (section 8).
ARCFACE_PLACE, ARCFACE_SIDE = (56.0, 75.0), 74.0
EMONET_SCALE = 1.82
BOX_CONVENTION = "arcface_box"
_BOXES = "boxes of the faces (heads have them; of videos, python -m vidmotion.data.prepare videos --crop=tube)"


@dataclasses.dataclass(frozen=True)
class Batch:
    """Clips that a system made, with everything that they are compared with; n clips of T frames.

    Attributes:
      made: the clips that the system made, float32 (n, T, H, W, 3) in [0, 1].
      driving: uint8, same shape: the clips that the motion comes from; as a set, also the real clips that the made
        ones should resemble.
      reference: uint8 (n, H, W, 3), pictures of the person to show; None if there are none.
      truth: uint8, same shape as `driving`, the true answers; None if they are not known.
      baselines: trivial answers by name, each like `made`.
      boxes: (n, T, 4), the boxes of the faces in `driving`, which should also be their place in `made`; None if not
        known.
      reference_boxes: (n, 4), the boxes of the faces in `reference`; None if not known.
      real: (n,) booleans: False where the clip in `driving` is only padding; None if all are real.
      consecutive: whether the frames follow one another without gaps.
    """

    made: np.ndarray
    driving: np.ndarray
    reference: np.ndarray | None = None
    truth: np.ndarray | None = None
    baselines: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    boxes: np.ndarray | None = None
    reference_boxes: np.ndarray | None = None
    real: np.ndarray | None = None
    consecutive: bool = True

    def __post_init__(self):
        """Raises: ConfigError: shapes, dtypes or value ranges that do not fit; the message says which."""
        shape = self.made.shape
        if self.made.ndim != 5 or not np.issubdtype(self.made.dtype, np.floating):
            raise ConfigError(
                f"the generated clips must be floats (n, T, H, W, 3), got {self.made.dtype} {shape}"
            )
        low, high = float(self.made.min()), float(self.made.max())
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise ConfigError(
                f"the generated clips must lie in [0, 1], but span {low} to {high}: either the network "
                "diverged, or it returns another range"
            )
        for name in ("driving", "truth"):
            there = getattr(self, name)
            if there is None:
                continue
            if there.dtype != np.uint8:
                raise ConfigError(f"the {name} clips must be uint8, got {there.dtype}")
            if there.shape != shape:
                raise ConfigError(
                    f"{name} has {_size(there)}, but the system made {_size(self.made)}: "
                    "number, frames and size must be equal"
                )
        if self.reference is not None and self.reference.shape[1:3] != shape[2:4]:
            raise ConfigError(
                f"the reference is {self.reference.shape[1:3]} pixels, but the generated clips are {shape[2:4]}"
            )

    def at(self, side: int) -> "Batch":
        """Returns the batch resized to `side` x `side` pixels by Pillow's antialiased bicubic, its boxes scaled too."""
        old = self.made.shape[2:4]

        def resized(x: np.ndarray | None) -> np.ndarray | None:
            if x is None:
                return None
            flat = x.reshape(-1, *x.shape[-3:])
            made = np.asarray(resize.resize(flat, "pil_bicubic", (side, side)))
            if x.dtype == np.uint8:
                made = np.clip(np.rint(made), 0, 255).astype(np.uint8)
            else:
                made = np.clip(made, 0, 1)
            return made.reshape(*x.shape[:-3], side, side, x.shape[-1])

        def moved(boxes: np.ndarray | None) -> np.ndarray | None:
            return None if boxes is None else boxes * (side / np.tile(old[::-1], 2))

        return dataclasses.replace(
            self,
            **{
                name: resized(getattr(self, name))
                for name in ("made", "driving", "reference", "truth")
            },
            baselines={name: resized(x) for name, x in self.baselines.items()},
            boxes=moved(self.boxes),
            reference_boxes=moved(self.reference_boxes),
        )

    @functools.cached_property
    def exact(self) -> np.ndarray:
        """`truth` as float32 in [0, 1]."""
        return self.truth.astype(np.float32) / np.float32(255)

    @functools.cached_property
    def quantised(self) -> np.ndarray:
        """`made` as uint8, as it would be stored."""
        return np.rint(self.made * 255).astype(np.uint8)

    @property
    def answers(self) -> dict[str, np.ndarray]:
        """The answers to compare with the truth, by name: ``""`` is the system's, then come the baselines."""
        return {"": self.made, **self.baselines}


def _size(video: np.ndarray) -> str:
    return f"{video.shape[0]} clips of {video.shape[1]} frames of {video.shape[2]}x{video.shape[3]}"


@dataclasses.dataclass(frozen=True)
class Measure:
    """One measure of a protocol: accumulators that become one or more rows of results.

    Attributes:
      name: the name of the measure, unique in a protocol.
      start: the empty accumulators by name; each has a method `merge`.
      update: a function (state, batch) -> state that adds a batch.
      rows: a function (state, resolution, number of clips) -> rows of results.
      weights: the text that identifies the network whose outputs are accumulated; "none" without a network.
    """

    name: str
    start: State
    update: Callable[[State, Batch], State]
    rows: Callable[[State, str, int], list[MetricResult]]
    weights: str = "none"


def merge(first: State, second: State) -> dict[str, Any]:
    """Merges the accumulators of two sets of clips."""
    return {name: part.merge(second[name]) for name, part in first.items()}


def missing(name: str, rows: Callable[[str, int], list[MetricResult]]) -> Measure:
    """Returns a measure that cannot be taken; `rows`, a function (resolution, clips) -> rows, says why."""
    return Measure(name, {}, lambda state, batch: state, lambda state, *where: rows(*where))


# --- Against the truth ----------------------------------------------------------------------------


def pixels(metric: str, convention: str, baselines: Sequence[str] = (), label: str = "") -> Measure:
    """Measures L1, PSNR or SSIM (section 2): the mean over frames, then over clips.

    Args:
      metric: "l1", "psnr" or "ssim".
      convention: a convention of `metrics.pixel`; "" for L1.
      baselines: names of the entries of `Batch.baselines` that are scored in the same way.
      label: a name for the clips that were made, such as "reconstruction"; appended to the name of the metric.
    """
    function = {"l1": pixel.l1, "psnr": pixel.psnr, "ssim": pixel.ssim}[metric]
    compare = jax.jit(
        functools.partial(function, convention=convention) if convention else function
    )
    kind = convention or "mean_absolute"
    return _against_truth(metric, kind, "none", compare, baselines, label)


def perceptual(
    network: FeatureNetwork | None, trunk: str, baselines: Sequence[str] = (), label: str = ""
) -> Measure:
    """Measures LPIPS (section 3) with `trunk` "alex" or "vgg": the mean over frames, then over clips.

    The other arguments are as for `pixels`.
    """
    convention = f"{trunk}_v0.1"
    name = _joined(f"lpips_{trunk}", label)
    if network is None:
        needs = f"weights.lpips_{trunk} (python -m vidmotion.convert lpips_{trunk})"
        return missing(
            name, lambda resolution, n: [not_computed(name, convention, needs, resolution, n)]
        )

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        flat = [v.reshape(-1, *v.shape[2:]) for v in (x, y)]
        return network(*flat).reshape(x.shape[:2])

    known = (f"lpips_{trunk}", convention, network.weights)
    return _against_truth(*known, distance, baselines, label, network.least)


def _joined(metric: str, what: str) -> str:
    return f"{metric}/{what}" if what else metric


def _against_truth(
    metric: str,
    convention: str,
    weights: str,
    compare: Callable[[np.ndarray, np.ndarray], ArrayLike],
    baselines: Sequence[str],
    label: str,
    least: int = 1,
) -> Measure:
    """Measures the mean over clips of `compare`, a value per frame (n, T), for the system and for the baselines."""

    def update(state: State, batch: Batch) -> State:
        if batch.truth is None or min(batch.made.shape[2:4]) < least:
            return state
        return {
            name: mean.update(np.asarray(compare(batch.answers[name], batch.exact)).mean(axis=1))
            for name, mean in state.items()
        }

    def rows(state: State, resolution: str, n: int) -> list[MetricResult]:
        if not state[""].count:
            side = min(map(int, resolution.split("x")))
            needs = f"frames of {least} pixels or more" if side < least else "a known true answer"
            return [not_computed(_joined(metric, label), convention, needs, resolution, n, weights)]
        return [
            MetricResult(
                _joined(metric, name or label),
                mean.compute(),
                convention,
                weights,
                resolution,
                mean.count,
            )
            for name, mean in state.items()
        ]

    start = {name: Mean() for name in ("", *baselines)}
    return Measure(_joined(metric, label), start, update, rows, weights)


# --- Sets of frames and of clips ------------------------------------------------------------------


def fid(network: FeatureNetwork | None, convention: str, resolution: str) -> Measure:
    """Measures FID (section 4) of the made frames, rounded to uint8 as they would be stored, against driving frames."""
    if network is None:
        return missing("fid", lambda r, n: [frechet.without_weights("fid", convention, r, n)])
    empty = frechet.FeatureSet.empty(
        "fid", convention, network.weights, resolution, dim=network.dim
    )

    def update(state: State, batch: Batch) -> State:
        made = batch.quantised.reshape(-1, *batch.made.shape[2:])
        real = _real(batch).reshape(-1, *batch.made.shape[2:])
        collected = functools.partial(frechet.collect, network, rows=network.batch)
        return {
            "real": collected(real, state["real"]),
            "made": collected(made, state["made"]),
        }

    return Measure(
        "fid",
        {"real": empty, "made": empty},
        update,
        lambda state, *_: [frechet.compare(state["real"], state["made"])],
        network.weights,
    )


def fvd(
    network: FeatureNetwork | None,
    convention: str,
    resolution: str,
    frames: int,
    name: str = "fvd",
) -> Measure:
    """Measures FVD (section 5) of the clips made against the driving clips.

    Args:
      network: the feature network, I3D; None gives a row that says what is needed.
      convention: a key of `metrics.resize.CLIP_CONVENTIONS`.
      resolution: height and width of the frames, "64x64".
      frames: the length of the clips. Clips of 16 frames or more are cut into pieces of 16 that do not overlap; frames
        left over at the end are not used.
      name: the name of the row; "gfvd" for class-conditional generation.
    """

    def named(row: MetricResult) -> list[MetricResult]:
        return [dataclasses.replace(row, metric=name)]

    if network is None:
        return missing(name, lambda r, n: named(frechet.without_weights("fvd", convention, r, n)))
    length = min(frames, frechet.FVD_FRAMES)
    if length < network.least:
        needs = f"clips of {network.least} consecutive frames or more, these have {frames}"
        return missing(
            name, lambda r, n: [not_computed(name, convention, needs, r, n, network.weights)]
        )
    empty = frechet.FeatureSet.empty(
        "fvd", convention, network.weights, resolution, frames=length, dim=network.dim
    )

    def pieces(video: np.ndarray) -> np.ndarray:
        count = video.shape[1] // length
        return video[:, : count * length].reshape(-1, length, *video.shape[2:])

    def update(state: State, batch: Batch) -> State:
        collected = functools.partial(frechet.collect, network, rows=network.batch)
        return {
            "real": collected(pieces(_real(batch)), state["real"]),
            "made": collected(pieces(batch.quantised), state["made"]),
        }

    return Measure(
        name,
        {"real": empty, "made": empty},
        update,
        lambda state, *_: named(frechet.compare(state["real"], state["made"])),
        network.weights,
    )


def _real(batch: Batch) -> np.ndarray:
    return batch.driving if batch.real is None else batch.driving[batch.real]


# --- Faces ----------------------------------------------------------------------------------------


def csim(network: FeatureNetwork | None, against: str) -> Measure:
    """Measures CSIM (section 6): whether made frames show the same person as the ``reference`` or ``driving`` frames.

    Faces are cut out by their boxes, because the five landmarks of each face are not known. No public convention does
    so: the numbers compare only with each other. No face detector is run on the made frames.
    """
    if network is None:
        return missing("csim", lambda r, n: [identity.without_weights(r, n)])

    def embed(frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        side = 112
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        scale = ARCFACE_SIDE / (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
        shift = np.array(ARCFACE_PLACE)[None] - scale[:, None] * centre
        linear = scale[:, None, None] * np.eye(2)[None]
        moved = np.concatenate([linear, shift[..., None]], axis=2)
        faces = identity.warp(frames.astype(np.float32) / np.float32(255), moved, side)
        return network(2 * np.asarray(faces) - 1)

    def update(state: State, batch: Batch) -> State:
        boxes = _flat(batch.boxes)
        if boxes is None or (against == "reference" and batch.reference_boxes is None):
            return state
        score, frames = state["score"], batch.made.shape[1]
        made = embed(_flat(batch.quantised), boxes)
        if against == "driving":
            real = embed(_flat(batch.driving), boxes)
        else:
            real = np.repeat(embed(batch.reference, batch.reference_boxes), frames, axis=0)
        return {"score": identity.update(score, real, made)}

    def rows(state: State, resolution: str, n: int) -> list[MetricResult]:
        if not state["score"].pairs:
            return [
                not_computed("csim", BOX_CONVENTION, _BOXES, resolution, n, network.weights),
            ]
        note = f"{against} against generated frames, faces cut out by their boxes"
        row = state["score"].row("csim", BOX_CONVENTION, network.weights, resolution)
        return [dataclasses.replace(row, note=f"{note}; {row.note}" if row.value is None else note)]

    return Measure("csim", {"score": PairedScore()}, update, rows, network.weights)


def emo_sim(network: FeatureNetwork | None) -> Measure:
    """Measures EMO-SIM (section 8): how well valence and arousal follow the driving face.

    Faces are square crops around their boxes.
    """
    convention = "pooled_frames"
    if network is None:
        return missing("emo_sim", lambda r, n: [expression.without("emo_sim", convention, r, n)])
    size = 256

    def read(frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        side = EMONET_SCALE * (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
        scale = size / side
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        # Pixel centres have whole coordinates, in the frame and in the crop.
        shift = (size - 1) / 2 - scale[:, None] * (centre - 0.5)
        moved = np.concatenate([scale[:, None, None] * np.eye(2)[None], shift[..., None]], axis=2)
        return network(np.asarray(identity.warp(frames.astype(np.float32) / 255, moved, size)))

    def update(state: State, batch: Batch) -> State:
        if batch.boxes is None:
            return state
        similarity = state["similarity"]
        boxes, length = _flat(batch.boxes), batch.made.shape[1]
        driving, made = (read(_flat(v), boxes) for v in (batch.driving, batch.quantised))
        for start in range(0, len(boxes), length):
            part = slice(start, start + length)
            similarity = similarity.update(driving[part], made[part])
        return {"similarity": similarity}

    def rows(state: State, resolution: str, n: int) -> list[MetricResult]:
        if not state["similarity"].moments.count:
            return [not_computed("emo_sim", convention, _BOXES, resolution, n, network.weights)]
        return state["similarity"].rows(network.weights, resolution)

    start = {"similarity": expression.EmotionSimilarity()}
    return Measure("emo_sim", start, update, rows, network.weights)


def _flat(clips: np.ndarray | None) -> np.ndarray | None:
    """Folds time into the batch, (n, T, ...) -> (n T, ...)."""
    return None if clips is None else clips.reshape(-1, *clips.shape[2:])


# --- Over time ------------------------------------------------------------------------------------


def steadiness() -> Measure:
    """Measures the flicker of the made clips and of the driving clips, and the change error against the truth.

    Neither measure is from a paper; see `metrics.stability`.
    """
    flicker, change = jax.jit(stability.flicker), jax.jit(stability.change_error)

    def update(state: State, batch: Batch) -> State:
        if not batch.consecutive:
            return state
        taken, length = dict(state), batch.made.shape[1]
        real = _real(batch)
        if length >= 3:
            taken["flicker"] = state["flicker"].update(np.asarray(flicker(batch.made)))
            if len(real):
                values = np.asarray(flicker(real))
                taken["flicker/driving"] = state["flicker/driving"].update(values)
        if length >= 2 and batch.truth is not None:
            values = np.asarray(change(batch.exact, batch.made))
            taken["change_error"] = state["change_error"].update(values)
        return taken

    meaning = {
        "flicker": "second_difference",
        "flicker/driving": "second_difference",
        "change_error": "first_difference",
    }
    needs = {"change_error": "consecutive frames, two or more, and a known true answer"}

    def rows(state: State, resolution: str, n: int) -> list[MetricResult]:
        return [
            MetricResult(name, state[name].compute(), convention, "none", resolution, mean.count)
            if (mean := state[name]).count
            else not_computed(
                name, convention, needs.get(name, "three consecutive frames"), resolution, n
            )
            for name, convention in meaning.items()
        ]

    return Measure("steadiness", {name: Mean() for name in meaning}, update, rows)


def seams(window: int, overlap: int) -> Measure:
    """Measures `metrics.stability.seam` on clips longer than a window.

    The value is the ratio of the change error at the borders of windows to the change error elsewhere.
    """
    find = jax.jit(functools.partial(stability.seam, window=window, overlap=overlap))

    def update(state: State, batch: Batch) -> State:
        if batch.truth is None or not batch.consecutive or batch.made.shape[1] <= window:
            return state
        found = find(batch.exact, batch.made)
        return {name: state[name].update(np.asarray(x)) for name, x in zip(state, found)}

    def rows(state: State, resolution: str, n: int) -> list[MetricResult]:
        at, elsewhere = state.values()
        convention = f"windows_of_{window}_sharing_{overlap}"
        if not at.count:
            needs = f"clips of more than {window} frames"
            return [not_computed("seam", convention, needs, resolution, n)]
        ratio = at.compute() / max(elsewhere.compute(), 1e-12)
        return [MetricResult("seam", ratio, convention, "none", resolution, at.count)]

    return Measure("seams", {"at": Mean(), "elsewhere": Mean()}, update, rows)


def constant(metric: str, value: float, convention: str) -> Measure:
    """Returns a measure whose value does not depend on the clips."""
    return Measure(
        metric,
        {},
        lambda state, batch: state,
        lambda state, resolution, n: [
            MetricResult(metric, float(value), convention, "none", resolution, n)
        ],
    )
