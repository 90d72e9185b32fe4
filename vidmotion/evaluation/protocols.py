"""Runs the papers' evaluation protocols, one command each, over a prepared dataset on any number of devices and hosts.

    python -m vidmotion.main --config=... --workdir=RUN --mode=eval --evals=self_reenactment

A protocol consists of a `Work`, which makes batches of clips together with the clips that they are compared with, and
a list of measures. Every process works on its own clips; batches are sharded over the devices. Accumulators are saved
in ``<workdir>/eval/<protocol>/``, each file under a temporary name that is then renamed, so the same command resumes
where it was stopped and gives, bit for bit, the results of an uninterrupted run. The results are written to
``<workdir>/eval/<protocol>.json`` and ``.md``.
"""

import abc
import dataclasses
import fnmatch
import functools
import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from vidmotion import files, run_record
from vidmotion.data import encoded
from vidmotion.data.clip_source import Renders
from vidmotion.data.videos import VideoSource
from vidmotion.errors import ConfigError
from vidmotion.evaluation import class_generation, feature_networks, measures
from vidmotion.evaluation.evaluator import Evaluator
from vidmotion.evaluation.measured import Measured, keep_pictures
from vidmotion.evaluation.measures import Batch, Measure
from vidmotion.evaluation.transfer import boxes_of, derangement, face_views
from vidmotion.metrics import resize, result
from vidmotion.metrics.result import MetricResult
from vidmotion.progress import watched

log = logging.getLogger(__name__)

IDENTITY = "identity.json"
NO_MATTER = {
    *("every", "data", "save_every", "measured", "head_model", "weights"),
    *("autoencoder", "judge"),
}
States = dict[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperProtocol(Evaluator):
    """An evaluation protocol of a paper: which clips are made, and what is measured on them.

    Attributes:
      name: the name of the protocol, and of its files in ``<workdir>/eval``.
      kind: the kind of transfer that makes the clips; see `Transfers`.
      outside: (metric, convention) pairs that other programs measure.
      data: a folder of clips written by ``python -m vidmotion.data.prepare videos``, whose test split is evaluated;
        "": the split of ``config.data.eval`` is evaluated instead.
      frames: the number of frames to read from each clip in `data`; 0: all.
      decimate: every `decimate`-th frame of the clips in `data` is read.
      clips: the number of clips of the split to evaluate; 0: all.
      batch: the number of clips at a time, over all processes; rounded up to a number that the mesh divides.
      save_every: the number of batches from one saving of the accumulators to the next; 0: saved only at the end.
      targets: the number of frames to make per clip. They are drawn at random: in self-reenactment from the frames
        more than `gap` seconds after the first, in cross-reenactment from all frames of the driver. 0: all frames in
        order (in self-reenactment, all after the first).
      gap: the least distance in seconds of a target from the first frame in self-reenactment; used where `targets` is
        not 0.
      size: the side in pixels at which clips are measured, whatever size the system works at (X-NeMo: 256); 0: the
        system's own size.
      keep_clips: whether to write all clips as pictures, for other programs to measure.
      measured: the folder of measurements from those programs, see `vidmotion.evaluation.measured`; "": none.
      head_model: the .npz file of the head model that was fitted to the clips; "": none.
      fid, fvd: the conventions for FID and FVD, keys of the tables in `metrics.resize`.
      weights: for each feature network, the folder that ``python -m vidmotion.convert`` wrote; "": none.
    """

    data: str
    frames: int
    decimate: int
    clips: int
    batch: int
    save_every: int
    targets: int
    gap: float
    size: int = 0  # has a default because config sections of earlier versions lack it
    keep_clips: bool
    measured: str
    head_model: str
    fid: str
    fvd: str
    weights: Mapping[str, str]
    name: ClassVar[str]
    kind: ClassVar[str]
    outside: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __post_init__(self):
        counts = {"frames": self.frames, "clips": self.clips, "save_every": self.save_every}
        counts |= {"targets": self.targets, "gap": self.gap, "size": self.size}
        for name, value in counts.items():
            if value < 0:
                raise ConfigError(f"config.evals.{self.name}.{name}={value}: it cannot be negative")
        if self.batch < 1:
            raise ConfigError(f"config.evals.{self.name}.batch={self.batch}: it must be at least 1")
        for name, value, known in (
            ("fid", self.fid, resize.IMAGE_CONVENTIONS),
            ("fvd", self.fvd, resize.CLIP_CONVENTIONS),
        ):
            if value not in known:
                raise ConfigError(
                    f"config.evals.{self.name}.{name}={value!r}: choose one of {', '.join(known)}"
                )

    def work(self, run, vars) -> "Work":
        """Returns the object that makes the clips of this protocol."""
        return Transfers(run, vars, self, self.kind)

    @abc.abstractmethod
    def measures(self, run, work: "Work") -> list[Measure]:
        """Returns the measures to take on the clips that `work` makes."""

    def more(self, run, vars, outside: Measured) -> list[MetricResult]:
        """Returns further rows of results that only this protocol has."""
        return []

    def check(self, run) -> None:
        """See `Evaluator.check`."""
        work = self.work(run, None)
        Measured(self.measured, work.clips, work.resolution).rows(())

    def evaluate(self, run, vars) -> list[MetricResult]:
        """Makes and measures the clips (after an interruption, the remaining ones), and writes the results."""
        work = self.work(run, vars)
        found = self.measures(run, work)
        folder, identity = run.workdir / "eval" / self.name, _identity(run, vars, work, found, self)
        states = measure(work, found, folder, identity, self)
        rows = [
            row
            for each in found
            for row in each.rows(states[each.name], work.resolution, work.clips)
        ]
        outside = Measured(self.measured, work.clips, work.resolution)
        rows += outside.rows(self.outside)
        rows += self.more(run, vars, outside)
        write(run, self.name, work.clips, rows)
        return rows


class Work(Protocol):
    """Makes the clips of a protocol, batch by batch.

    Attributes:
      clips: the number of clips.
      rows: the number of rows in a batch, over all processes.
      frames: the number of frames made per clip.
      resolution: height and width of the measured frames, "64x64".
      fingerprint: hex text that identifies the clips of the dataset, and what decodes them.
    """

    clips: int
    rows: int
    frames: int
    resolution: str
    fingerprint: str

    def make(self, first: int, process: int, processes: int) -> Batch | None:
        """Makes the share of `process` of the clips from `first` to ``first + rows``; None if its share is empty.

        All processes must call this together, with the same `first`.
        """


# --- Which clips go together ----------------------------------------------------------------------


def partners(names: Sequence[str], seed: int = 0) -> np.ndarray:
    """Pairs each clip with a driver: clip i is moved by clip result[i], which is from another video.

    If more than half of the clips are from one video, some clips take their motion from their own video; a warning
    says so.

    Args:
      names: the name of the video that each clip is from.
      seed: the seed of the pairing.

    Raises:
      ConfigError: fewer than two clips.
    """
    if len(names) < 2:
        raise ConfigError(
            f"moving clips like others needs at least two clips, but the eval split has {len(names)}"
        )
    order = derangement(len(names), seed)
    index = {name: i for i, name in enumerate(dict.fromkeys(names[i] for i in order))}
    groups = np.array([index[name] for name in names])
    sizes = np.bincount(groups)
    if 2 * sizes.max() > len(names):
        log.warning(
            "most clips are from one video, so some take their motion from their own video"
            if len(sizes) > 1
            else "all clips are from one video, so each takes its motion from its own video"
        )
        return order
    # With the clips sorted by video, a step as long as the largest group always leads to another video.
    sorted_clips = order[np.argsort(groups[order], kind="stable")]
    paired = np.empty(len(names), np.int64)
    paired[sorted_clips] = np.roll(sorted_clips, -sizes.max())
    return paired


# --- Work -----------------------------------------------------------------------------------------


def _source(run, settings: PaperProtocol):
    if not settings.data:
        return run.source("eval")
    return VideoSource(settings.data, "test", settings.frames or None, settings.decimate)


class _Pair(NamedTuple):
    """The inputs of `System.sample` for one clip, and the face boxes (T, 4) in content and in motion, if known."""

    inputs: dict[str, np.ndarray]
    boxes: tuple[np.ndarray, np.ndarray] | None


@dataclasses.dataclass(frozen=True)
class _Rows:
    """A batch of lazy rows: a process reads only the rows that its own devices hold, wherever the mesh places them."""

    shape: tuple[int, ...]
    row: Callable[[int], np.ndarray]

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        rows = np.stack([self.row(i) for i in range(self.shape[0])[index[0]]])
        return rows[(slice(None), *index[1:])]


class Transfers:
    """The `Work` of protocols that move one clip by another, or a clip by itself.

    Args:
      run, vars: see `Evaluator.evaluate`.
      settings: the fields of the protocol.
      kind: "self": the first frame of a clip is moved by the rest of the same clip; "cross": the first frame of a clip
        is moved by another clip; "transfer": a whole clip is moved by another; "reconstruction": a whole clip is
        moved by itself.

    Raises:
      ConfigError: the eval split holds no pictures, or too few clips or frames.
    """

    def __init__(self, run, vars, settings: PaperProtocol, kind: str):
        self._run, self._vars, self._kind, self._settings = run, vars, kind, settings
        self._source = source = _source(run, settings)
        self.clips = min(settings.clips or len(source), len(source))
        if not self.clips:
            raise ConfigError("config.data.eval: the split has no clips to evaluate")
        first = source[0]
        if "video" not in first:
            raise ConfigError(
                f"protocols compare pictures, but data of kind {run.config.data.kind!r} hold "
                f"{', '.join(sorted(first))}: give the prepared clips with --config.data.kind=videos"
            )
        self._shape = first["video"].shape
        sides = [settings.size] * 2 if settings.size else self._shape[1:3]
        self.resolution = "x".join(map(str, sides))
        self.rows = run.rows(settings.batch)
        self.rendered = kind in ("cross", "transfer") and isinstance(source, Renders)
        self._partners = np.arange(self.clips)
        if kind in ("cross", "transfer"):
            origins = [source.origin(i) for i in range(self.clips)]
            self._partners = partners(origins, run.config.seed)
        if kind == "self" and len(first["video"]) < 2:
            raise ConfigError("self-reenactment needs clips of two frames or more")
        self.frames = len(self._targets(0, first))
        self.fingerprint = source.fingerprint
        self._sample = run.jit_sample()
        self._key = jax.random.key(run.config.seed)

    def make(self, first: int, process: int, processes: int) -> Batch | None:
        """See `Work.make`."""
        picked = np.minimum(np.arange(first, first + self.rows), self.clips - 1).tolist()
        read = functools.lru_cache(maxsize=self.rows)(self._pair)
        share = self.rows // processes
        own = [
            i for i in range(first, first + self.rows)[process * share :][:share] if i < self.clips
        ]
        like = read(picked[process * share])
        inputs = {
            name: _Rows(
                (self.rows, *x.shape), lambda row, name=name: read(picked[row]).inputs[name]
            )
            for name, x in like.inputs.items()
        }
        outputs = self._sample(
            self._vars, self._run.put_rows(inputs), jax.random.fold_in(self._key, first)
        )
        if not own:
            return None
        pairs = [read(i) for i in own]
        driving = np.stack([pair.inputs["motion"] for pair in pairs])
        still = np.stack([pair.inputs["content"][:1] for pair in pairs])
        truth = None
        if self.rendered:
            truth = np.stack([self._swap(i) for i in own])
        elif self._kind in ("self", "reconstruction"):
            truth = driving
        boxes = None
        if like.boxes is not None:
            boxes = [np.stack([pair.boxes[side] for pair in pairs]) for side in (0, 1)]
        batch = Batch(
            made=np.asarray(outputs["video"])[process * share :][: len(own)],
            driving=driving,
            reference=still[:, 0],
            truth=truth,
            baselines={} if truth is None else self._trivial(still, driving),
            boxes=boxes and boxes[1],
            reference_boxes=boxes and boxes[0][:, 0],
            consecutive=self._consecutive,
        )
        side = self._settings.size
        return batch.at(side) if side and (side, side) != self._shape[1:3] else batch

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the trivial answers that are scored beside the system's."""
        if self._kind == "self":
            return ("copy_reference",)
        if self._kind == "reconstruction":
            return ("mean_frame",)
        return ("copy_reference", "copy_driving") if self.rendered else ()

    def _trivial(self, still: np.ndarray, driving: np.ndarray) -> dict[str, np.ndarray]:
        trivial = {
            "copy_reference": lambda: np.broadcast_to(still, driving.shape),
            "copy_driving": lambda: driving,
            "mean_frame": lambda: np.broadcast_to(
                driving.mean(axis=1, keepdims=True, dtype=np.float64), driving.shape
            ),
        }
        return {
            name: trivial[name]().astype(np.float32) / np.float32(255) for name in self.baselines
        }

    def _pair(self, i: int) -> "_Pair":
        """Reads the inputs and the face boxes of clip i."""
        element = self._element(i)
        own, boxes = element["video"], boxes_of(self._source, i, element)
        other, placed, j = own, boxes, int(self._partners[i])
        if j != i:
            element = self._element(j)
            other, placed = element["video"], boxes_of(self._source, j, element)
        targets = self._targets(i, element)
        other, placed = other[targets], None if placed is None else placed[targets]
        if self._kind in ("self", "cross"):
            own, boxes = own[:1], None if boxes is None else boxes[:1]
        inputs, both = {"content": own, "motion": other}, None
        if boxes is not None and placed is not None:
            both = boxes, placed
            if side := self._run.system.face_side:
                inputs |= face_views(side, own, boxes, other, placed)
        return _Pair(inputs, both)

    @property
    def _consecutive(self) -> bool:
        return self._kind not in ("self", "cross") or not self._settings.targets

    def _swap(self, i: int) -> np.ndarray:
        """Renders the true answer for clip i; only for sources that can."""
        j = int(self._partners[i])
        return self._source.swap(i, j)[self._targets(i, {})]

    def _targets(self, i: int, element) -> np.ndarray:
        """Returns the indices of the driver's frames that are made for clip i.

        In self-reenactment, `element` is the clip itself; its frame rate is used if it has one.
        """
        count, length = self._settings.targets, self._shape[0]
        if self._consecutive:
            return np.arange(self._kind == "self", length)
        earliest, where = 0, ""
        if self._kind == "self":
            common = self._run.config.data.get("common", {})
            fps = float(element.get("fps", common.get("fps", 25.0)))
            earliest = int(np.floor(self._settings.gap * fps + 1e-6)) + 1
            where = f" that lie more than {self._settings.gap:g} s after the first"
        if earliest + count > length:
            raise ConfigError(
                f"config.evals.{self._settings.name}.targets={count}: clips of {length} frames have only "
                f"{max(length - earliest, 0)}{where}"
            )
        chosen = np.random.default_rng([self._run.config.seed, i]).choice(
            np.arange(earliest, length), count, replace=False
        )
        return np.sort(chosen)

    def _element(self, i: int) -> Mapping[str, np.ndarray]:
        element = self._source[i]
        if element["video"].shape != self._shape:
            raise ConfigError(
                f"clip {i} of the eval split has shape {element['video'].shape}, but the first has {self._shape}: "
                "frames and size must be equal; give --config.data.eval.frames, or prepare clips of one length"
            )
        return element


class Generated:
    """The `Work` of a generator: it makes clips of every class in turn, to be compared with held-out clips.

    Raises:
      ConfigError: no autoencoder is given to decode the latents; also as `class_generation.decoder`.
    """

    def __init__(self, run, vars, settings: "Generation"):
        self._run, self._vars, self._batch = run, vars, settings.batch
        if not settings.autoencoder:
            raise ConfigError(
                "config.evals.generation.autoencoder names no VidTwin run, and one is needed to decode "
                "the generated latents"
            )
        classes = encoded.VidTwinLatentsSource.read_provenance(run.system.latents)["classes"]
        self._labels = np.tile(np.arange(len(classes), dtype=np.int32), settings.per_class)
        self.clips, self.rows = len(self._labels), run.rows(settings.batch)
        if not self.clips:
            raise ConfigError("config.evals.generation.per_class=0: it must be at least 1")
        autoencoder, self._decode = class_generation.decoder(
            run, settings.autoencoder, settings.batch
        )
        self._real = autoencoder.source("eval")
        shape = self._real[0]["video"].shape
        self.frames, self.resolution = shape[0], f"{shape[1]}x{shape[2]}"
        self.fingerprint = _short([self._real.fingerprint, autoencoder.weights_digest()])

    def make(self, first: int, process: int, processes: int) -> Batch | None:
        """See `Work.make`."""
        labels = self._labels[np.minimum(np.arange(first, first + self.rows), self.clips - 1)]
        latents = class_generation.generate(self._run, self._vars, labels, self._batch, first)
        share = self.rows // processes
        own = np.arange(first + process * share, first + (process + 1) * share)
        own = own[own < self.clips]
        made = self._decode(latents)[process * share :][: len(own)]
        if not len(own):
            return None
        last = len(self._real) - 1
        return Batch(
            made=made.astype(np.float32) / np.float32(255),
            driving=np.stack([self._real[int(i)]["video"] for i in np.minimum(own, last)]),
            real=own <= last,
        )


# --- The protocols --------------------------------------------------------------------------------


def _network(name: str, settings: PaperProtocol, default: str = ""):
    path = settings.weights.get(name, "") or default
    conventions = {"fid_inception": settings.fid, "i3d": settings.fvd}
    field = f"config.evals.{settings.name}.weights"
    return feature_networks.load(name, path, conventions.get(name, ""), field) if path else None


def _compared(work, settings: PaperProtocol) -> list[Measure]:
    """Returns the measures against the true answer, frame by frame, as in the tables of X-NeMo and WarpFace."""
    beside = work.baselines
    return [
        measures.pixels("l1", "", beside),
        measures.pixels("psnr", "common", beside),
        measures.pixels("ssim", "wang", beside),
        *(
            measures.perceptual(_network(f"lpips_{trunk}", settings), trunk, beside)
            for trunk in ("alex", "vgg")
        ),
    ]


def _sets(work, settings: PaperProtocol) -> list[Measure]:
    inception, i3d = (_network(name, settings) for name in ("fid_inception", "i3d"))
    frames = 0 if settings.targets else work.frames
    return [
        measures.fid(inception, settings.fid, work.resolution),
        measures.fvd(i3d, settings.fvd, work.resolution, frames),
    ]


# X-NeMo and WarpFace report AED and APD; BCD reports ARD and AUH.
FACE_MOTION = (
    ("aed", "mediapipe_51"),
    ("apd", "mediapipe_degrees"),
    ("aed_mean", "3dmm"),
    ("aed_l1sum", "3dmm"),
    ("apd_rad_mean", "3dmm"),
    ("apd_deg_mean", "3dmm"),
)
HEAD_MOTION = (
    ("ard", "euler_degrees"),
    ("auh_count", "openface"),
    ("auh_fraction", "openface"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfReenactment(PaperProtocol):
    """Self-reenactment: the first frame of a clip is moved by the rest of the same clip."""

    name, kind = "self_reenactment", "self"
    outside = FACE_MOTION

    def measures(self, run, work) -> list[Measure]:
        """See `PaperProtocol.measures`."""
        return [*_compared(work, self), *_reenactment(work, self, "driving")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossReenactment(PaperProtocol):
    """Cross-reenactment: the first frame of a clip is moved by a clip of another person."""

    name, kind = "cross_reenactment", "cross"
    outside = FACE_MOTION

    def measures(self, run, work) -> list[Measure]:
        """See `PaperProtocol.measures`."""
        compared = _compared(work, self) if work.rendered else ()
        return [*compared, *_reenactment(work, self, "reference")]


def _reenactment(work, settings: PaperProtocol, against: str) -> list[Measure]:
    return [
        *_sets(work, settings),
        measures.csim(_network("arcface", settings), against),
        measures.emo_sim(_network("emonet", settings)),
        measures.steadiness(),
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionTransfer(PaperProtocol):
    """Motion transfer: a whole clip is moved by a clip of another person."""

    name, kind = "motion_transfer", "transfer"
    outside = HEAD_MOTION

    def measures(self, run, work) -> list[Measure]:
        """See `PaperProtocol.measures`."""
        return [
            *(_compared(work, self) if work.rendered else ()),
            *_sets(work, self),
            measures.csim(_network("arcface", self), "reference"),
            measures.steadiness(),
        ]

    def more(self, run, vars, outside: Measured) -> list[MetricResult]:
        """Returns the rows of head-mesh errors."""
        return outside.mesh_rows(self.head_model)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction(PaperProtocol):
    """Reconstruction: each clip is encoded and rebuilt."""

    name, kind = "reconstruction", "reconstruction"

    def measures(self, run, work) -> list[Measure]:
        """See `PaperProtocol.measures`."""
        beside, label = work.baselines, "reconstruction"
        trained_with = run.config.system.get("perceptual", {}).get("weights", "")
        found = [
            measures.pixels("psnr", "vidtok", beside, label),
            measures.pixels("ssim", "vidtok", beside, label),
            measures.perceptual(_network("lpips_vgg", self, trained_with), "vgg", beside, label),
            *_sets(work, self)[1:],
            measures.steadiness(),
        ]
        if run.system.share_kept is not None:
            if run.system.window:
                found.append(measures.seams(run.system.window, run.system.overlap))
            kept = 100.0 * run.system.share_kept
            found.append(measures.constant("rate", kept, "percent_of_clip"))
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation(PaperProtocol):
    """Class-conditional generation: clips of every class are generated; with a judge, `class_generation` runs too.

    Attributes:
      per_class, autoencoder, judge: see `class_generation.ClassGeneration`.
    """

    name = "generation"
    per_class: int
    autoencoder: str = ""
    judge: str = ""

    def work(self, run, vars) -> Work:
        """See `PaperProtocol.work`."""
        return Generated(run, vars, self)

    def measures(self, run, work) -> list[Measure]:
        """See `PaperProtocol.measures`."""
        i3d = _network("i3d", self)
        return [
            measures.fvd(i3d, self.fvd, work.resolution, work.frames, "gfvd"),
            measures.steadiness(),
        ]

    def more(self, run, vars, outside: Measured) -> list[MetricResult]:
        """Returns the rows of `class_generation`, if there is a judge."""
        if not self.judge:
            return []
        names = [field.name for field in dataclasses.fields(class_generation.ClassGeneration)]
        judged = {name: getattr(self, name) for name in names}
        return class_generation.ClassGeneration(**judged).evaluate(run, vars)


def write(run, name: str, clips: int, rows: Sequence[MetricResult]) -> None:
    """Writes the results to ``<workdir>/eval/<name>.json`` and ``.md``; only the first process writes."""
    if jax.process_index() != 0:
        return
    content = {
        **run_record.environment(),
        "protocol": name,
        "clips": clips,
        "config": run_record.without_places(run.config.to_dict()),
        "results": [row.to_dict() for row in rows],
    }
    folder = run.workdir / "eval"
    run_record.write(folder / f"{name}.json", content)
    files.atomic_write(folder / f"{name}.md", f"# {name}\n\n{result.markdown(rows)}\n")
    log.info("results: %s", folder / f"{name}.md")


# --- Measuring, with interruptions ----------------------------------------------------------------


def measure(
    work: Work,
    found: Sequence[Measure],
    folder: epath.Path,
    identity: Mapping[str, str],
    settings: PaperProtocol,
) -> States:
    """Makes and measures all clips and returns the accumulators; batches already counted in `folder` are skipped.

    Args:
      work: makes the clips.
      found: the measures to take.
      folder: the folder of saved accumulators, in the workdir that all processes share.
      identity: the facts that the accumulators depend on; saved accumulators with other weights, settings or data are
        discarded.
      settings: says when to save, and whether to keep the clips.
    """
    process, processes = jax.process_index(), jax.process_count()
    start = {each.name: each.start for each in found}
    kept = Kept(folder, identity, process, processes)
    total = -(-work.clips // work.rows)
    done, states = kept.resume(start)
    if done:
        log.info("%s: %d of %d batches are already done", folder, done, total)
    for batch in watched(range(done, total), folder.name):
        made = work.make(batch * work.rows, process, processes)
        if made is not None:
            states = {each.name: each.update(states[each.name], made) for each in found}
            if settings.keep_clips:
                first = batch * work.rows + process * (work.rows // processes)
                keep_pictures(folder / "clips", first, made)
        every = settings.save_every
        if batch + 1 == total or (every and (batch + 1) % every == 0):
            kept.save(batch + 1, states)
    return kept.merged(total, start)


class Kept:
    """Accumulators saved in a folder, one file per process, named after the number of batches counted in it.

    Unless the folder is new, there is always some number of batches for which every process has a file.
    """

    def __init__(
        self, folder: epath.Path, identity: Mapping[str, str], process: int, processes: int
    ):
        self._folder, self._process, self._processes = folder, process, processes
        self._identity = {**identity, "processes": str(processes)}

    def resume(self, start: States) -> tuple[int, States]:
        """Returns the number of batches already done, and this process's accumulators over them.

        Accumulators with another identity are removed, and the log says what differs.
        """
        there = self._read_identity()
        if there != self._identity:
            if there:
                differing = [
                    f"{name} was {there.get(name, 'absent')} and is now {self._identity.get(name, 'absent')}"
                    for name in sorted(there.keys() | self._identity.keys())
                    if there.get(name) != self._identity.get(name)
                ]
                log.warning(
                    "%s was measured under other conditions and starts again: %s",
                    self._folder,
                    "; ".join(differing),
                )
            _together("vidmotion protocol looked")
            if self._process == 0:
                self._folder.mkdir(parents=True, exist_ok=True)
                for path in self._files("*.npz"):
                    path.unlink()
                run_record.write(self._folder / IDENTITY, self._identity)
            _together("vidmotion protocol begun")
        done = self._done()
        _together("vidmotion protocol resumed")
        return done, self._read(done, self._process, start) if done else start

    def save(self, batches: int, states: States) -> None:
        """Saves the accumulators of the first `batches` batches; older files are deleted once all processes saved."""
        path, buffer = self._path(batches, self._process), io.BytesIO()
        np.savez(buffer, **_pack(states))
        files.atomic_write(path, buffer.getvalue())
        _together(f"vidmotion protocol saved {batches}")
        for old in self._files(f"*.{self._process}of{self._processes}.npz"):
            if old.name != path.name:
                old.unlink()

    def merged(self, batches: int, start: States) -> States:
        """Returns the accumulators of all processes over `batches` batches, merged in the order of the processes."""
        states = start
        for process in range(self._processes):
            other = self._read(batches, process, start)
            states = {name: measures.merge(states[name], other[name]) for name in states}
        return states

    def _done(self) -> int:
        counts = [
            {int(path.name.split(".")[0]) for path in self._files(f"*.{p}of*.npz")}
            for p in range(self._processes)
        ]
        return max(set.intersection(*counts), default=0)

    def _files(self, pattern: str) -> list[epath.Path]:
        """Returns the files whose names match `pattern`.

        `epath.Path.glob` is not used because it would read brackets in the folder's own name as part of the pattern.
        """
        if not self._folder.exists():
            return []
        return [path for path in self._folder.iterdir() if fnmatch.fnmatchcase(path.name, pattern)]

    def _path(self, batches: int, process: int) -> epath.Path:
        return self._folder / f"{batches:07d}.{process}of{self._processes}.npz"

    def _read(self, batches: int, process: int, like: States) -> States:
        with np.load(
            io.BytesIO(self._path(batches, process).read_bytes()), allow_pickle=False
        ) as file:
            return _unpack(like, dict(file))

    def _read_identity(self) -> dict[str, str]:
        try:
            return json.loads((self._folder / IDENTITY).read_text())
        except (OSError, ValueError, RecursionError):
            return {}


def _together(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _pack(value: Any, name: str = "") -> dict[str, np.ndarray]:
    """Flattens nested mappings and dataclasses into arrays, keyed by their path, as `np.savez` stores them."""
    parts = _parts(value)
    if parts is None:
        return {name: np.asarray(value)}
    packed = {}
    for key, part in parts.items():
        packed |= _pack(part, f"{name}|{key}")
    return packed


def _unpack(like: Any, packed: Mapping[str, np.ndarray], name: str = "") -> Any:
    """Restores a value with the structure of `like` from the result of `_pack`."""
    parts = _parts(like)
    if parts is None:
        value = packed[name]
        return value if isinstance(like, np.ndarray) else type(like)(value.item())
    made = {key: _unpack(part, packed, f"{name}|{key}") for key, part in parts.items()}
    return dataclasses.replace(like, **made) if dataclasses.is_dataclass(like) else made


def _parts(value: Any) -> dict[str, Any] | None:
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return dict(value) if isinstance(value, Mapping) else None


def _identity(run, vars, work, found: Sequence[Measure], settings: PaperProtocol) -> dict[str, str]:
    """Returns everything that the accumulators depend on, as text."""
    config = run.config.to_dict()
    # Paths, and fields that do not affect the accumulators, are left out.
    own = {k: v for k, v in dataclasses.asdict(settings).items() if k not in NO_MATTER}
    return {
        "checkpoint": digest(vars),
        "config.evals": _short({**own, "batch": work.rows}),
        "config.system": _short(config.get("system", {})),
        "config.seed": str(config.get("seed", 0)),
        "clips": f"{work.clips} of {work.fingerprint[:12]}",
        **{f"network of {m.name}": m.weights for m in found if m.weights != "none"},
    }


def _short(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def digest(tree: Any) -> str:
    """Returns a hex digest of all numbers in a tree of arrays; it does not depend on how the arrays are sharded."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        return "none"
    sums = np.asarray(
        jax.jit(lambda leaves: jnp.stack([*map(_checksum, leaves)]))([x for _, x in leaves])
    )
    named = [
        f"{jax.tree_util.keystr(path)} {np.shape(leaf)} {total}"
        for (path, leaf), total in zip(leaves, sums)
    ]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()[:12]


def _checksum(leaf: jax.Array) -> jax.Array:
    """Returns a () uint32: the sum of the bits of all numbers, each weighted by its position."""
    leaf = jnp.asarray(leaf)
    bits = leaf
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    weight = jnp.ones(leaf.shape, jnp.uint32)
    for axis, prime in zip(
        range(leaf.ndim), (2654435761, 2246822519, 3266489917, 668265263, 374761393)
    ):
        weight += jnp.uint32(prime) * jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    return jnp.sum(bits.astype(jnp.uint32) * (2 * weight + 1), dtype=jnp.uint32)
