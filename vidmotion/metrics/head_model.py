"""Shape, Motion and Cross error of head meshes (BCD, supplement C; spec metrics.md, section 9).

    head = LinearHead.load("head.npz")
    errors = MeshErrors(head.name, head.unit).update(head, content, motion, generated)
    errors.rows("256x256")

The paper's fitter and head model are not public, so its absolute numbers cannot be reproduced. The same errors
can be computed with any `HeadModel` and files of coefficients (`HeadMotion.load`) fitted with it. Fitting is not
part of this module. Shape suffixes: v vertices, i identity, e expression, t frames.
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
    """A head model, which turns coefficients into a mesh."""

    name: str
    unit: str

    def vertices(
        self,
        beta: ArrayLike | None = None,
        psi: ArrayLike | None = None,
        euler: ArrayLike | None = None,
        trans: ArrayLike | None = None,
    ) -> np.ndarray:
        """Maps coefficients (..., i), (..., e), (..., 3), (..., 3) to vertices (..., v, 3); None means all zero."""


@dataclasses.dataclass(frozen=True)
class HeadMotion:
    """Coefficients fitted to one video.

    Attributes:
      beta: (i,) float64, identity, one vector for the whole video; (t, i) is averaged.
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
                "a video needs psi (t, e), euler (t, 3) and trans (t, 3) with at least one frame, got "
                f"{self.psi.shape}, {self.euler.shape}, {self.trans.shape}"
            )
        if self.beta.ndim == 2 and len(self.beta) == frames:
            # A regressor that sees one frame at a time gives an identity per frame.
            object.__setattr__(self, "beta", self.beta.mean(axis=0))
        if self.beta.ndim != 1:
            raise ValueError(f"beta must be (i,) or ({frames}, i), got {self.beta.shape}")

    @classmethod
    def load(cls, path: Path) -> "HeadMotion":
        """Reads an .npz file with beta, (i,) or (t, i), which is averaged, and psi, euler and trans.

        Raises:
          ConfigError: the file lacks one of these arrays, cannot be read, or has shapes that do not fit.
        """
        arrays = _read(path, ("beta", "psi", "euler", "trans"))
        try:
            return cls(**arrays)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class LinearHead:
    """A rigid linear head model without joints: v = (template + shape beta + expression psi) R^T + t.

    Attributes:
      template: (v, 3) float64, the mean head.
      shape: (v, 3, i) float64, the basis of identity.
      expression: (v, 3, e) float64, the basis of expression.
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
        """Reads an .npz file with v_template, shapedirs, exprdirs, and optionally the number unit_scale_to_cm.

        With this scale the head is in cm, otherwise in an unknown "model unit".

        Raises:
          ConfigError: the file lacks one of the three arrays, cannot be read, or has joints.
        """
        names = ("v_template", "shapedirs", "exprdirs")
        arrays = _read(path, names, ("unit_scale_to_cm", "lbs_weights"))
        if "lbs_weights" in arrays:
            raise ConfigError(
                f"{path}: has joints (lbs_weights), which this rigid head model does not turn; leave them "
                "out, and use coefficients that were fitted without them"
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
        """Returns the mesh for given coefficients; None means all zero.

        Args:
          beta: (..., i), identity.
          psi: (..., e), expression.
          euler: (..., 3) pitch, yaw and roll in radians, R = Rz Ry Rx about the origin.
          trans: (..., 3) in `unit`.

        Returns:
          (..., v, 3) float64; leading axes are broadcast.

        Raises:
          ValueError: the number of coefficients does not fit the model.
        """
        v = self.template
        for name, values, basis in (("beta", beta, self.shape), ("psi", psi, self.expression)):
            if values is None:
                continue
            values, count = np.asarray(values, np.float64), basis.shape[-1]
            if values.shape[-1:] != (count,):
                raise ValueError(
                    f"{name} has shape {values.shape}, but {self.name} takes {count} coefficients"
                )
            v = v + np.tensordot(values, basis, axes=([-1], [-1]))
        if euler is not None:
            v = v @ np.swapaxes(rotation(euler), -1, -2)
        return v if trans is None else v + np.asarray(trans, np.float64)[..., None, :]


def shape_error(head: HeadModel, content: HeadMotion, generated: HeadMotion) -> float:
    """Returns e_s: the mean squared difference of the two identities at rest, over vertices and coordinates.

    Raises:
      ValueError: coefficients that do not fit the head.
    """
    return _mse(head.vertices(beta=content.beta), head.vertices(beta=generated.beta))


def motion_error(head: HeadModel, motion: HeadMotion, generated: HeadMotion) -> float:
    """Returns e_m: the mean squared difference of expression, pose and place, applied to the mean identity.

    It is averaged over vertices, coordinates and frames.

    Raises:
      ValueError: the numbers of frames differ, or coefficients do not fit the head.
    """
    _same_length(motion, generated)
    return float(
        np.mean([_mse(a, b) for a, b in zip(_frames(head, motion), _frames(head, generated))])
    )


def cross_error(
    head: HeadModel, content: HeadMotion, motion: HeadMotion, generated: HeadMotion
) -> float:
    """Returns e_c: the mean squared difference of the generated head and the content's identity moving as `motion`.

    The paper does not define the reference mesh exactly; this is the natural reading.

    Raises:
      ValueError: the numbers of frames differ, or coefficients do not fit the head.
    """
    _same_length(motion, generated)
    wanted = _frames(head, motion, content.beta)
    made = _frames(head, generated, generated.beta)
    return float(np.mean([_mse(a, b) for a, b in zip(wanted, made)]))


@dataclasses.dataclass(frozen=True)
class MeshErrors:
    """The three errors, averaged over videos; `update` and `merge` return new ones.

    Attributes:
      model: the name of the head model.
      unit: the unit of its coordinates.
      shape, motion, cross: the means of the errors over videos; a video's motion and cross errors are means over its
        frames.
    """

    model: str
    unit: str
    shape: Mean = dataclasses.field(default_factory=Mean)
    motion: Mean = dataclasses.field(default_factory=Mean)
    cross: Mean = dataclasses.field(default_factory=Mean)

    def update(
        self, head: HeadModel, content: HeadMotion, motion: HeadMotion, generated: HeadMotion
    ) -> "MeshErrors":
        """Adds a generated video, given the videos that its identity (`content`) and its motion came from.

        Raises:
          ValueError: the head model or the numbers of frames differ, or coefficients do not fit.
        """
        self._check(head.name, head.unit)
        return dataclasses.replace(
            self,
            shape=self.shape.update(shape_error(head, content, generated)),
            motion=self.motion.update(motion_error(head, motion, generated)),
            cross=self.cross.update(cross_error(head, content, motion, generated)),
        )

    def merge(self, other: "MeshErrors") -> "MeshErrors":
        """Merges the errors of two sets of videos.

        Raises:
          ValueError: the errors are of different head models.
        """
        self._check(other.model, other.unit)
        return dataclasses.replace(
            self,
            shape=self.shape.merge(other.shape),
            motion=self.motion.merge(other.motion),
            cross=self.cross.merge(other.cross),
        )

    def rows(self, resolution: str) -> list[MetricResult]:
        """Returns the rows shape_error, motion_error and cross_error; their `weights` is the name of the head model."""
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
                f"errors of {self.model} ({self.unit}) and {model} ({unit}) cannot be combined"
            )


def without_files(resolution: str, n: int) -> list[MetricResult]:
    """Returns the rows for the case that the head model or the coefficients are not available."""
    return [
        not_computed(f"{part}_error", CONVENTION, NEEDS, resolution, n)
        for part in ("shape", "motion", "cross")
    ]


def _frames(head: HeadModel, video: HeadMotion, beta: np.ndarray | None = None):
    """Yields meshes one by one, because the dense meshes of a long video would not fit in memory together."""
    for psi, euler, trans in zip(video.psi, video.euler, video.trans):
        yield head.vertices(beta, psi, euler, trans)


def _mse(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.mean(np.square(first - second)))


def _same_length(motion: HeadMotion, generated: HeadMotion) -> None:
    if len(motion.psi) != len(generated.psi):
        raise ValueError(
            f"the motion video has {len(motion.psi)} frames, but the generated one has {len(generated.psi)}"
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
