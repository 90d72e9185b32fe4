"""Compares facial expressions: AED, AUH and EMO-SIM (spec metrics.md, sections 7, 8 and 10).

Three different numbers are called AED. X-NeMo's is over MediaPipe's blendshapes (`blendshape_distance`). That
of PIRenderer and WarpFace is over coefficients of a 3-D face model (`FaceModelMotion`, which reports AED and APD in
two scalings each). First-order-motion's is a distance of identity embeddings and is not implemented here.
Frame i of the driving video corresponds to frame i of the generated one.
"""

import csv
import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from vidmotion.errors import ConfigError
from vidmotion.metrics.frechet import Moments
from vidmotion.metrics.head_pose import angle_distance
from vidmotion.metrics.paired import PairedScore, same_frames
from vidmotion.metrics.result import MetricResult, not_computed

BLENDSHAPES = 51  # MediaPipe has 52, but the first, "_neutral", carries no information
ACTION_UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 28, 45)  # OpenFace 2
# Deep3DFaceRecon's 257 coefficients of BFM'09 (section 7.2); angles in radians.
DEEP3D = {
    "identity": slice(0, 80),
    "expression": slice(80, 144),
    "texture": slice(144, 224),
    "angles": slice(224, 227),
    "light": slice(227, 254),
    "translation": slice(254, 257),
}
STILL = 1e-3  # driving videos whose valence or arousal deviates by less are left out

_MEDIAPIPE = (
    "files of MediaPipe's Face Landmarker: blendshapes and head matrices of each frame, made with "
    "face_landmarker_v2_with_blendshapes.task (ai.google.dev, MediaPipe models)"
)
_DEEP3D = (
    "files of Deep3DFaceRecon coefficients (n, 257), made with its epoch_20.pth and the Basel Face "
    "Model (github.com/sicxu/Deep3DFaceRecon_pytorch; the model after registration)"
)
_OPENFACE = (
    "action units of each frame as OpenFace 2 writes them (CSV; github.com/TadasBaltrusaitis)"
)
# (metric, convention) -> the weights or files that the metric requires, and where they are published.
NEEDS = {
    ("aed", "mediapipe_51"): _MEDIAPIPE,
    ("apd", "mediapipe_degrees"): _MEDIAPIPE,
    ("aed_mean", "3dmm"): _DEEP3D,
    ("aed_l1sum", "3dmm"): _DEEP3D,
    ("apd_rad_mean", "3dmm"): _DEEP3D,
    ("apd_deg_mean", "3dmm"): _DEEP3D,
    ("ard", "euler_degrees"): f"head angles of each frame, as {_MEDIAPIPE}",
    ("auh_count", "openface"): _OPENFACE,
    ("auh_fraction", "openface"): _OPENFACE,
    ("emo_sim", "pooled_frames"): (
        "emonet_8.pth (folder pretrained of github.com/face-analysis/emonet; non-commercial), through "
        "python -m vidmotion.convert emonet"
    ),
}


def without(metric: str, convention: str, resolution: str, n: int) -> MetricResult:
    """Returns the row of a metric whose weights or coefficient files are not available; see `NEEDS`.

    Raises:
      ValueError: `NEEDS` has no such metric and convention.
    """
    if (metric, convention) not in NEEDS:
        known = ", ".join(" ".join(key) for key in NEEDS)
        raise ValueError(
            f"there is no metric {metric} of convention {convention}; choose from {known}"
        )
    return not_computed(metric, convention, NEEDS[metric, convention], resolution, n)


def blendshape_distance(driving: ArrayLike, generated: ArrayLike) -> np.ndarray:
    """Returns X-NeMo's AED of each frame: the mean over 51 blendshapes of |driving - generated|.

    Args:
      driving, generated: (n, 51), or (n, 52) as MediaPipe returns them, with "_neutral" first. That one is
        dropped, because it would scale the mean by 51 / 52. Values are in [0, 1]; NaN stays NaN.

    Returns:
      (n,) float64 in [0, 1].

    Raises:
      ValueError: the shapes differ, the number of blendshapes is wrong, or values lie outside [0, 1].
    """
    driving, generated = same_frames(driving, generated, "blendshapes")
    if driving.ndim != 2 or driving.shape[1] not in (BLENDSHAPES, BLENDSHAPES + 1):
        raise ValueError(
            f"blendshapes must be (n, {BLENDSHAPES}) or, with _neutral, (n, {BLENDSHAPES + 1}), got "
            f"{driving.shape}"
        )
    for name, values in (("driving", driving), ("generated", generated)):
        if np.any(values < 0) or np.any(values > 1):
            raise ValueError(
                f"the {name} blendshapes must lie in [0, 1], but span {np.nanmin(values)} to "
                f"{np.nanmax(values)}"
            )
    return np.abs(driving - generated)[:, -BLENDSHAPES:].mean(axis=1)


@dataclasses.dataclass(frozen=True)
class FaceModelMotion:
    """Accumulator of AED and APD of face-model coefficients, in the four published scalings (section 7.3).

    The frames of a video are averaged first, then the videos, as in the public script for such coefficients
    (StyleHEAT's). `FaceModelMotion()` is empty; `update` and `merge` return new ones.

    Attributes:
      expression: the mean |difference| over coefficients.
      angles: the mean wrapped |difference| over three angles, in degrees.
      width: the number of expression coefficients; 0 before the first video.
    """

    expression: PairedScore = dataclasses.field(default_factory=PairedScore)
    angles: PairedScore = dataclasses.field(default_factory=PairedScore)
    width: int = 0

    def update(
        self,
        driving_expression: ArrayLike,
        generated_expression: ArrayLike,
        driving_angles: ArrayLike,
        generated_angles: ArrayLike,
        seen: ArrayLike | None = None,
    ) -> "FaceModelMotion":
        """Adds a video.

        Args:
          driving_expression, generated_expression: (n, k) coefficients; k is 64 for Deep3DFaceRecon, 50 for DECA.
          driving_angles, generated_angles: (n, 3) in radians.
          seen: (n,) booleans: whether both faces were found; None means that all were.

        Raises:
          ValueError: the shapes do not fit each other or the previous videos.
        """
        driving, generated = same_frames(
            driving_expression, generated_expression, "expression coefficients"
        )
        if driving.ndim != 2 or not driving.shape[1]:
            raise ValueError(f"expression coefficients must be (n, k), got {driving.shape}")
        turns = angle_distance(driving_angles, generated_angles)
        if len(turns) != len(driving):
            raise ValueError(f"got {len(driving)} frames of expressions but {len(turns)} of angles")
        self._check(driving.shape[1])
        return FaceModelMotion(
            self.expression.update_video(np.abs(driving - generated).mean(axis=1), seen),
            self.angles.update_video(turns, seen),
            driving.shape[1],
        )

    def merge(self, other: "FaceModelMotion") -> "FaceModelMotion":
        """Merges the scores of two sets of videos.

        Raises:
          ValueError: they have different numbers of expression coefficients.
        """
        self._check(other.width)
        return FaceModelMotion(
            self.expression.merge(other.expression),
            self.angles.merge(other.angles),
            self.width or other.width,
        )

    def rows(self, weights: str, resolution: str) -> list[MetricResult]:
        """Returns the rows aed_mean, aed_l1sum, apd_rad_mean and apd_deg_mean.

        The magnitudes that WarpFace prints fit aed_l1sum and apd_deg_mean; those in comparisons with PIRenderer
        fit the other two.
        """
        size = f"{self.width} coefficients"
        radians = np.pi / 180
        return [
            self.expression.row("aed_mean", "3dmm", weights, resolution, size),
            self.expression.row("aed_l1sum", "3dmm", weights, resolution, size, self.width),
            self.angles.row("apd_rad_mean", "3dmm", weights, resolution, "radians", radians),
            self.angles.row("apd_deg_mean", "3dmm", weights, resolution, "degrees"),
        ]

    def _check(self, width: int) -> None:
        if self.width and width and self.width != width:
            raise ValueError(
                f"got {width} expression coefficients, but earlier videos had {self.width}: the models differ"
            )


def action_unit_distance(driving: ArrayLike, generated: ArrayLike) -> np.ndarray:
    """Returns AUH of each frame: the number of action units on which the two faces disagree.

    Divided by the number of units it is a fraction; BCD does not say which of the two it prints.

    Args:
      driving, generated: (n, k) booleans: whether each unit is present.

    Returns:
      (n,) float64, counts.

    Raises:
      ValueError: the shapes differ, or the values are not booleans.
    """
    driving, generated = np.asarray(driving), np.asarray(generated)
    for units in (driving, generated):
        if units.dtype != bool or units.ndim != 2 or not units.shape[1]:
            raise ValueError(
                f"action units must be (n, k) booleans, got {units.dtype} {units.shape}"
            )
    driving, generated = same_frames(driving, generated, "action units")
    return (driving != generated).sum(axis=1).astype(np.float64)


def read_action_units(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads action units from a file of OpenFace 2 (FeatureExtraction).

    Args:
      path: a CSV file with the columns AU01_c to AU45_c, and success.

    Returns:
      (n, 18) booleans in the order of `ACTION_UNITS`, and (n,) booleans: whether a face was tracked.

    Raises:
      ConfigError: the file does not hold OpenFace's action units; the message says what is wrong.
    """
    names = [f"AU{unit:02d}_c" for unit in ACTION_UNITS]
    try:
        lines = path.read_text("utf-8-sig").splitlines()
        reader = csv.DictReader(lines, skipinitialspace=True)
        if missing := {*names, "success"} - set(reader.fieldnames or ()):
            raise KeyError(min(missing))
        rows = list(reader)
        present = [[float(row[name]) for name in names] for row in rows]
        tracked = [float(row["success"]) for row in rows]
    except (OSError, UnicodeDecodeError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path}: does not hold OpenFace's action units ({error!r}): expected a CSV with the columns success and "
            f"{names[0]} to {names[-1]}"
        ) from error
    units, success = np.array(present).reshape(-1, len(names)), np.array(tracked)
    if not (np.isin(units, (0, 1)).all() and np.isin(success, (0, 1)).all()):
        raise ConfigError(f"{path}: action units and success must be 0 or 1")
    return units.astype(bool), success.astype(bool)


# --- EMO-SIM --------------------------------------------------------------------------------------


def pearson(moments: Moments, i: int, j: int) -> float:
    """Returns Pearson's correlation of the variables i and j; NaN if one is constant or there are no samples."""
    own = moments.scatter[i, i], moments.scatter[j, j]
    # The scatter that rounding leaves in a constant variable.
    least = [1e-24 * moments.count * max(moments.mean[k] ** 2, 1e-12) for k in (i, j)]
    if not (own[0] > least[0] and own[1] > least[1]):
        return float("nan")
    return float(np.clip(moments.scatter[i, j] / np.sqrt(own[0] * own[1]), -1.0, 1.0))


def concordance(moments: Moments, i: int, j: int) -> float:
    """Returns Lin's concordance, 2 s_ij / (s_ii + s_jj + (m_i - m_j)^2), of the variables i and j.

    Covariances are over N. The result is NaN in the cases of `pearson`. Unlike Pearson's correlation, it falls
    if one variable is shifted or scaled.
    """
    if np.isnan(correlation := pearson(moments, i, j)):
        return correlation
    cov = moments.scatter / moments.count
    gap = moments.mean[i] - moments.mean[j]
    return float(2 * cov[i, j] / (cov[i, i] + cov[j, j] + gap**2))


def emo_sim(moments: Moments) -> float:
    """Returns EMO-SIM (X-NeMo): the mean of concordance and Pearson's correlation, of valence and of arousal.

    Args:
      moments: the moments of four variables: valence and arousal of driving frames, then of generated frames.

    Returns:
      a number in [-1, 1]; NaN if one of the four variables is constant.
    """
    return float(np.mean([f(moments, i, i + 2) for i in (0, 1) for f in (concordance, pearson)]))


@dataclasses.dataclass(frozen=True)
class EmotionSimilarity:
    """Accumulator of EMO-SIM over the frames of all videos, and of its mean over videos; `update` adds a video.

    Attributes:
      moments: the moments of all frames, see `emo_sim`.
      videos: the mean EMO-SIM over videos.
      still: the number of videos left out of `videos`, because the valence or arousal of the driving face barely
        changes (its deviation is below `STILL`), or that of the generated face is constant.
      skipped: the number of frames without a face.
    """

    moments: Moments = dataclasses.field(default_factory=lambda: Moments.empty(4))
    videos: PairedScore = dataclasses.field(default_factory=PairedScore)
    still: int = 0
    skipped: int = 0

    def update(
        self, driving: ArrayLike, generated: ArrayLike, seen: ArrayLike | None = None
    ) -> "EmotionSimilarity":
        """Adds a video.

        Args:
          driving, generated: (n, 2) valence and arousal, which are clipped to [-1, 1] as in EmoNet's own
            evaluation.
          seen: (n,) booleans: whether both faces were found; None means that all were.

        Raises:
          ValueError: shapes that do not fit, or a mask that is not boolean.
        """
        driving, generated = same_frames(driving, generated, "valence and arousal")
        if driving.ndim != 2 or driving.shape[1] != 2:
            raise ValueError(f"valence and arousal must be (n, 2), got {driving.shape}")
        both = np.clip(np.concatenate([driving, generated], axis=1), -1.0, 1.0)
        one = Moments.empty(4).update(both, seen)
        value = emo_sim(one)
        deviation = np.sqrt(np.diag(one.scatter)[:2] / max(one.count, 1))
        still = one.finite and (np.isnan(value) or bool((deviation < STILL).any()))
        left_out = still or not one.count
        return EmotionSimilarity(
            self.moments.merge(one),
            self.videos if left_out else self.videos.update_video([value]),
            self.still + int(still and one.count > 0),
            self.skipped + len(both) - one.count,
        )

    def merge(self, other: "EmotionSimilarity") -> "EmotionSimilarity":
        """Merges the scores of two sets of videos."""
        return EmotionSimilarity(
            self.moments.merge(other.moments),
            self.videos.merge(other.videos),
            self.still + other.still,
            self.skipped + other.skipped,
        )

    def compute(self) -> float:
        """Returns EMO-SIM of all frames together; NaN if valence or arousal is constant or not finite."""
        return emo_sim(self.moments) if self.moments.finite else float("nan")

    def rows(self, weights: str, resolution: str) -> list[MetricResult]:
        """Returns a row for each convention: pooled_frames, the main result, and mean_of_videos."""
        finite = self.moments.finite
        pooled = "valence or arousal is constant" if finite else "values are not finite"
        videos = "values are not finite" if self.videos.mean.count else "needs a video that moves"
        if not self.moments.count:
            pooled = videos = "needs a frame that shows a face"

        def row(convention: str, value: float, n: int, without: str, remark: str) -> MetricResult:
            notes = [remark] if remark else []
            if not np.isfinite(value):
                value, notes = None, [f"not computed: {without}", *notes]
            return MetricResult(
                "emo_sim", value, convention, weights, resolution, n, "; ".join(notes)
            )

        faceless = f"{self.skipped} frames without a face left out" if self.skipped else ""
        still = f"{self.still} still videos left out" if self.still else ""
        return [
            row("pooled_frames", self.compute(), self.moments.count, pooled, faceless),
            row("mean_of_videos", self.videos.compute(), self.videos.mean.count, videos, still),
        ]
