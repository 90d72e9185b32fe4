"""Shape, Motion and Cross error of head meshes (BCD, supplement C; spec metrics.md, section 9).

    head = LinearHead.load("head.npz")
    errors = MeshErrors(head.name, head.unit).update(head, content, motion, generated)
    errors.rows("256x256")

The paper's fitter and head model are not public, so its absolute numbers cannot be had; any `HeadModel`
and files of coefficients (`HeadMotion.load`) fitted with it give the same definitions. Fitting itself
is not here. Shape suffixes: v vertices, i identity, e expression, t frames.
"""

import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from vidmotion.errors import ConfigError
from vidmotion.metrics.accumulate import Mean
from vidmotion.metrics.head_pose import rotation
from vidmotion.metrics.result import MetricResult, not_computed

CONVENTION = "mse_vertices_coordinates"
NEEDS = (
    "a head model (.npz: v_template, shapedirs, exprdirs; made of BFM'09 or FLAME after registration at "
    "faces.dmi.unibas.ch or flame.is.tue.mpg.de) and coefficient files (.npz: beta, psi, euler, trans)"
)


class HeadModel(Protocol):
    """What turns coefficients into a mesh."""

    name: str
    unit: str

    def vertices(
        self,
        beta: ArrayLike | None = None,
        psi: ArrayLike | None = None,
        euler: ArrayLike | None = None,
        trans: ArrayLike | None = None,
    ) -> np.ndarray:
        """Coefficients (..., i), (..., e), (..., 3), (..., 3) -> (..., v, 3); None is all zero."""


@dataclasses.dataclass(frozen=True)
class HeadMotion:
    """Coefficients fitted to one video.

    Attributes:
      beta: (i,) float64, identity, one for the video.
      psi: (t, e) float64, expression.
      euler: (t, 3) float64, pitch, yaw and roll in radians.
      trans: (t, 3) float64, in the model's unit.

    Raises:
      ValueError: shapes that do not fit each other, or no frames.
    """

    beta: np.ndarray
    psi: np.ndarray
    euler: np.ndarray
    trans: np.ndarray

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = np.asarray(getattr(self, field.name), np.float64)
            object.__setattr__(self, field.name, value)
        frames = len(self.psi) if self.psi.ndim == 2 else 0
        if not frames or self.euler.shape != (frames, 3) or self.trans.shape != (frames, 3):
            raise ValueError(
                "a video needs psi (t, e), euler (t, 3) and trans (t, 3) of one frame or more, got "
                f"{self.psi.shape}, {self.euler.shape}, {self.trans.shape}"
            )
        if self.beta.ndim == 2 and len(self.beta) == frames:
            # Of a regressor that sees one frame at a time.
            object.__setattr__(self, "beta", self.beta.mean(axis=0))
        if self.beta.ndim != 1:
            raise ValueError(f"beta must be (i,) or ({frames}, i), got {self.beta.shape}")

    @classmethod
    def load(cls, path: Path) -> "HeadMotion":
        """Reads .npz with beta (i,) or (t, i), which is averaged, psi, euler and trans.

        Raises:
          ConfigError: the file lacks one of them, or cannot be read.
        """
        arrays = _read(path, ("beta", "psi", "euler", "trans"))
        try:
            return cls(**arrays)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class LinearHead:
    """v = (template + shape beta + expression psi) R^T + t: one rigid head, no joints.

    Attributes:
      template: (v, 3) float64.
      shape: (v, 3, i) float64.
      expression: (v, 3, e) float64.
      name: the name of the model, which rows of results give as their weights.
      unit: the unit of its coordinates, "cm".

    Raises:
      ValueError: shapes that do not fit, or values that are not finite.
    """

    template: np.ndarray
    shape: np.ndarray
    expression: np.ndarray
    name: str
    unit: str

    def __post_init__(self):
        for field in ("template", "shape", "expression"):
            object.__setattr__(self, field, np.asarray(getattr(self, field), np.float64))
        v = self.template.shape[:1]
        if (
            self.template.shape != (*v, 3)
            or self.shape.ndim != 3
            or self.expression.ndim != 3
            or self.shape.shape[:2] != (*v, 3)
            or self.expression.shape[:2] != (*v, 3)
        ):
            raise ValueError(
                "a head needs a template (v, 3), shape (v, 3, i) and expression (v, 3, e), got "
                f"{self.template.shape}, {self.shape.shape}, {self.expression.shape}"
            )
        if not all(np.isfinite(x).all() for x in (self.template, self.shape, self.expression)):
            raise ValueError("the head model has values that are not finite")

    @classmethod
    def load(cls, path: Path) -> "LinearHead":
        """Reads .npz with v_template, shapedirs, exprdirs, and optionally unit_scale_to_cm, a number.

        With the scale the head is in cm, else in an unknown "model unit".

        Raises:
          ConfigError: the file lacks one of them, cannot be read, or describes joints.
        """
        names = ("v_template", "shapedirs", "exprdirs")
        arrays = _read(path, names, ("unit_scale_to_cm", "lbs_weights"))
        if "lbs_weights" in arrays:
            raise ConfigError(
                f"{path}: has joints (lbs_weights), which a rigid head would turn otherwise; leave them "
                "out, with coefficients fitted without them"
            )
        scale = float(arrays["unit_scale_to_cm"]) if "unit_scale_to_cm" in arrays else None
        try:
            return cls(
                *((scale or 1.0) * arrays[name] for name in names),
                name=path.stem,
                unit="cm" if scale else "model unit",
            )
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error

    def vertices(
        self,
        beta: ArrayLike | None = None,
        psi: ArrayLike | None = None,
        euler: ArrayLike | None = None,
        trans: ArrayLike | None = None,
    ) -> np.ndarray:
        """The mesh.

        Args:
          beta: (..., i) or None, all zero.
          psi: (..., e), likewise.
          euler: (..., 3) pitch, yaw and roll in radians, R = Rz Ry Rx about the origin.
          trans: (..., 3) in `unit`.

        Returns:
          (..., v, 3) float64, leading axes broadcast.

        Raises:
          ValueError: another number of coefficients.
        """
        v = self.template
        for name, values, basis in (("beta", beta, self.shape), ("psi", psi, self.expression)):
            if values is None:
                continue
            values = np.asarray(values, np.float64)
            if values.shape[-1:] != basis.shape[-1:]:
                raise ValueError(
                    f"{name} has {values.shape[-1:]} coefficients, {self.name} takes "
                    f"{basis.shape[-1]}"
                )
            v = v + np.tensordot(values, basis, axes=([-1], [-1]))
        if euler is not None:
            v = v @ np.swapaxes(rotation(euler), -1, -2)
        return v if trans is None else v + np.asarray(trans, np.float64)[..., None, :]


def shape_error(head: HeadModel, content: HeadMotion, generated: HeadMotion) -> float:
    """e_s: mean squared difference of the two identities, at rest, over vertices and coordinates.

    Raises:
      ValueError: coefficients that do not fit the head.
    """
    return _mse(head.vertices(beta=content.beta), head.vertices(beta=generated.beta))


def motion_error(head: HeadModel, motion: HeadMotion, generated: HeadMotion) -> float:
    """e_m: the same of expression, pose and place, on the mean identity, averaged over frames.

    Raises:
      ValueError: other numbers of frames, or coefficients that do not fit the head.
    """
    _same_length(motion, generated)
    return float(
        np.mean([_mse(a, b) for a, b in zip(_frames(head, motion), _frames(head, generated))])
    )


def cross_error(
    head: HeadModel, content: HeadMotion, motion: HeadMotion, generated: HeadMotion
) -> float:
    """e_c: what was generated against the content's identity with the motion video's motion.

    The paper does not spell the reference mesh out; this is the natural reading.

    Raises:
      ValueError: other numbers of frames, or coefficients that do not fit the head.
    """
    _same_length(motion, generated)
    wanted = _frames(head, motion, content.beta)
    made = _frames(head, generated, generated.beta)
    return float(np.mean([_mse(a, b) for a, b in zip(wanted, made)]))


@dataclasses.dataclass(frozen=True)
class MeshErrors:
    """The three errors, averaged over videos; `update` and `merge` return new ones.

    Attributes:
      model: name of the head model.
      unit: the unit of its coordinates.
      shape, motion, cross: means over videos; the last two of means over frames.
    """

    model: str
    unit: str
    shape: Mean = dataclasses.field(default_factory=Mean)
    motion: Mean = dataclasses.field(default_factory=Mean)
    cross: Mean = dataclasses.field(default_factory=Mean)

    def update(
        self, head: HeadModel, content: HeadMotion, motion: HeadMotion, generated: HeadMotion
    ) -> "MeshErrors":
        """Add a generated video with what it took identity and motion from.

        Raises:
          ValueError: another head model, other numbers of frames, or coefficients that do not fit.
        """
        self._check(head.name, head.unit)
        return dataclasses.replace(
            self,
            shape=self.shape.update(shape_error(head, content, generated)),
            motion=self.motion.update(motion_error(head, motion, generated)),
            cross=self.cross.update(cross_error(head, content, motion, generated)),
        )

    def merge(self, other: "MeshErrors") -> "MeshErrors":
        """Both sets of videos.

        Raises:
          ValueError: of another head model.
        """
        self._check(other.model, other.unit)
        return dataclasses.replace(
            self,
            shape=self.shape.merge(other.shape),
            motion=self.motion.merge(other.motion),
            cross=self.cross.merge(other.cross),
        )

    def rows(self, resolution: str) -> list[MetricResult]:
        """Rows shape_error, motion_error and cross_error; the head model is their `weights`."""
        rows = []
        for part in ("shape", "motion", "cross"):
            mean, name = getattr(self, part), f"{part}_error"
            if not mean.count:
                needs = "a video with coefficients"
                rows.append(not_computed(name, CONVENTION, needs, resolution, 0, self.model))
                continue
            value, note = mean.compute(), f"squared {self.unit}"
            if not np.isfinite(value):
                value, note = None, "not computed: coefficients are not finite"
            rows.append(
                MetricResult(name, value, CONVENTION, self.model, resolution, mean.count, note)
            )
        return rows

    def _check(self, model: str, unit: str) -> None:
        if (self.model, self.unit) != (model, unit):
            raise ValueError(
                f"errors of {self.model} ({self.unit}) and {model} ({unit}) do not compare"
            )


def without_files(resolution: str, n: int) -> list[MetricResult]:
    """The rows where no head model or no coefficients are at hand."""
    return [
        not_computed(f"{part}_error", CONVENTION, NEEDS, resolution, n)
        for part in ("shape", "motion", "cross")
    ]


def _frames(head: HeadModel, video: HeadMotion, beta: np.ndarray | None = None):
    """Meshes one by one: a dense mesh of a long video would not fit in memory."""
    for psi, euler, trans in zip(video.psi, video.euler, video.trans):
        yield head.vertices(beta, psi, euler, trans)


def _mse(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.mean(np.square(first - second)))


def _same_length(motion: HeadMotion, generated: HeadMotion) -> None:
    if len(motion.psi) != len(generated.psi):
        raise ValueError(
            f"the motion video has {len(motion.psi)} frames, the generated one {len(generated.psi)}"
        )


def _read(
    path: Path, names: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in names if name not in file]
            found = {name: file[name] for name in (*names, *optional) if name in file}
    except (OSError, ValueError, AttributeError, TypeError, EOFError) as error:
        raise ConfigError(f"{path}: not an .npz file with {', '.join(names)}: {error}") from error
    if missing:
        raise ConfigError(f"{path}: lacks {', '.join(missing)}; needs {', '.join(names)}")
    return found
