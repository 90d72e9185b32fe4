"""Metrics from measurements of other programs: MediaPipe, Deep3DFaceRecon, OpenFace and fits of a head model.

The networks of these programs are not converted (spec metrics.md, sections 7, 9, 10). If its field ``keep_clips`` is
set, a protocol writes every clip as pictures,
``<workdir>/eval/<protocol>/clips/<number>/{made,driving,reference}/<frame>.png``. Measurements of these pictures are
read from the folder in the field ``measured``, as ``<number>/made.npz`` and ``<number>/driving.npz``; running the same
command again adds the rows. A file holds any of these arrays:

    blendshapes  (T, 51), or 52 with _neutral first   MediaPipe Face Landmarker
    matrices     (T, 4, 4) or (T, 3, 3)               its facial transformation matrices
    deep3d       (T, 257)                             coefficients of Deep3DFaceRecon
    seen         (T,) bool                            whether a face was found; if absent, it was in all frames
    beta, psi, euler, trans                           fits of ``head_model``; also in reference.npz

The folders may also hold ``made.csv`` and ``driving.csv`` as OpenFace 2 writes them.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from etils import epath

from vidmotion import media
from vidmotion.errors import ConfigError
from vidmotion.evaluation.measures import Batch
from vidmotion.metrics import expression, head_model, head_pose
from vidmotion.metrics.paired import PairedScore
from vidmotion.metrics.result import MetricResult


def keep_pictures(folder: epath.Path, first: int, batch: Batch) -> None:
    """Write the clips of a batch as pictures; `first` is the number of the first clip."""
    for i in range(len(batch.made)):
        sides = {"made": batch.quantised[i], "driving": batch.driving[i]}
        if batch.reference is not None:
            sides["reference"] = batch.reference[i][None]
        for side, video in sides.items():
            place = folder / f"{first + i:06d}" / side
            place.mkdir(parents=True, exist_ok=True)
            for t, picture in enumerate(video):
                media.write_png(place / f"{t:05d}.png", picture)


@contextlib.contextmanager
def _of(path: Path) -> Iterator[None]:
    """Turn errors about arrays into errors that name `path`."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Measured:
    """Rows of results from a folder of measurements.

    Attributes:
      folder: the folder of measurements, laid out as the module says; "": there is none, and the rows say what they
        need.
      clips: the number of clips, which are numbered from 0.
      resolution: height and width of the frames, "64x64".
    """

    folder: str
    clips: int
    resolution: str

    def rows(self, metrics: Sequence[tuple[str, str]]) -> list[MetricResult]:
        """Return the rows of metrics, given as (name, convention) pairs, which are keys of `expression.NEEDS`.

        Raises:
          ConfigError: the folder does not exist, some clips lack measurements that others have, or a file does not
            fit.
        """
        if self.folder and not Path(self.folder).is_dir():
            raise ConfigError(f"measured={self.folder!r}: no such folder")
        makers: dict[tuple[str, str], Callable[[], list[MetricResult]]] = {
            ("aed", "mediapipe_51"): self._blendshapes,
            ("apd", "mediapipe_degrees"): functools.partial(self._angles, "apd"),
            ("ard", "euler_degrees"): functools.partial(self._angles, "ard"),
            ("aed_mean", "3dmm"): self._face_model,
            ("auh_count", "openface"): self._action_units,
        }
        made: dict[tuple[str, str], MetricResult] = {}
        for key in metrics:
            found = makers[key]() if self.folder and key in makers else []
            made |= {(row.metric, row.convention): row for row in found}
            if key not in made:
                made[key] = expression.without(*key, self.resolution, self.clips)
        return list(made.values())

    def mesh_rows(self, head: str) -> list[MetricResult]:
        """Return the rows of Shape, Motion and Cross error (section 9), with the head model in the file `head`.

        If `head` or the folder of measurements is "", the rows say what is missing.

        Raises:
          ConfigError: a file is missing or does not fit.
        """
        if not (self.folder and head):
            return head_model.without_files(self.resolution, self.clips)
        model = head_model.LinearHead.load(Path(head))
        errors = head_model.MeshErrors(model.name, model.unit)
        for i in range(self.clips):
            files = [self._path(i, f"{side}.npz") for side in ("reference", "driving", "made")]
            with _of(files[-1]):
                errors = errors.update(model, *map(head_model.HeadMotion.load, files))
        return errors.rows(self.resolution)

    def _blendshapes(self) -> list[MetricResult]:
        score = PairedScore()
        for path, driving, made in self._pairs("blendshapes"):
            with _of(path):
                pair = (driving["blendshapes"], made["blendshapes"])
                values = expression.blendshape_distance(*pair)
                score = score.update(values, _seen(driving, made, len(values)))
        row = functools.partial(score.row, "aed", "mediapipe_51", "mediapipe", self.resolution)
        return [row()] if score.pairs else []

    def _angles(self, metric: str) -> list[MetricResult]:
        score = PairedScore()
        for path, driving, made in self._pairs("matrices"):
            with _of(path):
                turned = (head_pose.angles(side["matrices"]) for side in (driving, made))
                values = head_pose.angle_distance(*turned)
                score = score.update(values, _seen(driving, made, len(values)))
        convention = "mediapipe_degrees" if metric == "apd" else "euler_degrees"
        row = functools.partial(score.row, metric, convention, "mediapipe", self.resolution)
        return [row()] if score.pairs else []

    def _face_model(self) -> list[MetricResult]:
        score, part = expression.FaceModelMotion(), expression.DEEP3D
        for path, driving, made in self._pairs("deep3d"):
            with _of(path):
                pair = driving["deep3d"], made["deep3d"]
                for array in pair:
                    if array.ndim != 2 or array.shape[1] != part["translation"].stop:
                        raise ValueError(f"deep3d must be (T, 257), got {array.shape}")
                score = score.update(
                    *(array[:, part["expression"]] for array in pair),
                    *(array[:, part["angles"]] for array in pair),
                    _seen(driving, made, len(pair[0])),
                )
        return score.rows("deep3dfacerecon", self.resolution) if score.width else []

    def _action_units(self) -> list[MetricResult]:
        score, units = PairedScore(), len(expression.ACTION_UNITS)
        for paths in self._files("csv"):
            (driving, found), (made, also) = map(expression.read_action_units, paths)
            with _of(paths[1]):
                values = expression.action_unit_distance(driving, made)
                score = score.update(values, found & also)
        row = functools.partial(score.row, weights="openface_2", resolution=self.resolution)
        if not score.pairs:
            return []
        return [
            row("auh_count", "openface", note=f"of {units} units"),
            row("auh_fraction", "openface", times=1 / units),
        ]

    # -- files ------------------------------------------------------------------------------------

    def _path(self, i: int, name: str) -> Path:
        return Path(self.folder) / f"{i:06d}" / name

    def _files(self, kind: str) -> list[tuple[Path, Path]]:
        """Return the paths of the driving and the made file of each clip; an empty list if no clip has such files."""
        pairs = [
            (self._path(i, f"driving.{kind}"), self._path(i, f"made.{kind}"))
            for i in range(self.clips)
        ]
        missing = [path for paths in pairs for path in paths if not path.is_file()]
        if len(missing) == 2 * self.clips:
            return []
        if missing:
            raise ConfigError(
                f"measured: {len(missing)} of {2 * self.clips} .{kind} files are missing, for example "
                f"{missing[0]}: a mean needs the files of all clips"
            )
        return pairs

    def _pairs(self, array: str) -> Iterator[tuple[Path, dict, dict]]:
        """Yield the folder, the driving arrays and the made arrays of each clip; nothing if the first lacks `array`."""
        for i, paths in enumerate(self._files("npz")):
            sides = [_arrays(path, (array, "seen")) for path in paths]
            lacking = [path for path, side in zip(paths, sides) if array not in side]
            if lacking and i == 0 and len(lacking) == 2:
                return
            if lacking:
                raise ConfigError(f"{lacking[0]}: lacks {array}, which other files have")
            yield paths[0].parent, *sides


def _arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names if name in file}
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise ConfigError(f"{path}: not an .npz file of arrays: {error}") from error


def _seen(driving: dict, made: dict, frames: int) -> np.ndarray:
    both = np.ones(frames, bool)
    for side in (driving, made):
        both &= np.asarray(side.get("seen", both), bool)
    return both
