"""AED, AUH and EMO-SIM against section 14 of the spec, scipy and hand computations; bad input is refused."""

import numpy as np
import pytest

from vidmotion.errors import ConfigError
from vidmotion.metrics.expression import (
    ACTION_UNITS,
    DEEP3D,
    NEEDS,
    EmotionSimilarity,
    FaceModelMotion,
    action_unit_distance,
    blendshape_distance,
    emo_sim,
    read_action_units,
    without,
)
from vidmotion.metrics.frechet import Moments
from vidmotion.metrics.paired import PairedScore

K = np.arange(20)
P, Q = np.sin(0.5 * K), 0.8 * np.sin(0.5 * K + 0.2) + 0.1


def axes(course):
    return np.stack([course, course], axis=1)


# --- AED ------------------------------------------------------------------------------------------


def test_blendshapes_by_hand():
    a, b = np.zeros((2, 52)), np.zeros((2, 52))
    b[0, 0] = 1.0  # _neutral, which is ignored
    b[1, 5], a[1, 51] = 0.51, 0.51
    np.testing.assert_allclose(blendshape_distance(a, b), [0, 0.02], atol=1e-15)
    np.testing.assert_allclose(blendshape_distance(a[:, 1:], b[:, 1:]), [0, 0.02], atol=1e-15)
    assert blendshape_distance(a[:0], b[:0]).shape == (0,)
    b[0, 7] = np.nan
    assert np.isnan(blendshape_distance(a, b)).tolist() == [True, False]


def test_blendshapes_refused():
    with pytest.raises(ValueError, match=r"shapes \(2, 52\) and \(3, 52\)"):
        blendshape_distance(np.zeros((2, 52)), np.zeros((3, 52)))
    with pytest.raises(ValueError, match=r"\(n, 51\) or, with _neutral, \(n, 52\)"):
        blendshape_distance(np.zeros((2, 50)), np.zeros((2, 50)))
    with pytest.raises(ValueError, match=r"generated blendshapes must lie in \[0, 1\]"):
        blendshape_distance(np.zeros((2, 52)), np.full((2, 52), 1.5))


def test_face_model_scalings_by_hand():
    """Two videos of one and of three frames have equal weight."""
    zero, angle = np.zeros((1, 64)), np.zeros((1, 3))
    one = FaceModelMotion().update(zero, zero + 0.1, angle, angle + np.deg2rad([[3, 6, 9]]))
    long = [np.repeat(x, 3, axis=0) for x in (zero, zero + 0.3, angle, angle + 0.0)]
    both = one.update(*long)
    rows = {row.metric: row for row in both.rows("w", "256x256")}
    assert rows["aed_mean"].value == pytest.approx(0.2)
    assert rows["aed_l1sum"].value == pytest.approx(64 * 0.2)
    assert rows["apd_deg_mean"].value == pytest.approx(3)
    assert rows["apd_rad_mean"].value == pytest.approx(np.deg2rad(3))
    assert all(row.n == 2 and row.convention == "3dmm" for row in rows.values())
    assert rows["apd_deg_mean"].note == "degrees; detected in 4 of 4 pairs"
    merged = one.merge(FaceModelMotion().update(*long)).merge(FaceModelMotion())
    assert merged == both and FaceModelMotion().merge(both) == both

    # Values of a frame without a face are ignored.
    seen = np.array([True, False, True])
    long[1][1] = np.nan
    assert one.update(*long, seen).rows("w", "r")[0].value == pytest.approx(0.2)
    row = one.update(*long).rows("w", "r")[0]
    assert row.value is None and "not finite" in row.note
    lost = FaceModelMotion().update(*long, np.zeros(3, bool)).rows("w", "r")[0]
    assert lost.value is None and "needs a pair that shows a face" in lost.note
    assert "detected in 0 of 3 pairs" in lost.note


def test_face_models_refused():
    args = np.zeros((2, 64)), np.zeros((2, 64)), np.zeros((2, 3)), np.zeros((2, 3))
    motion = FaceModelMotion().update(*args)
    with pytest.raises(ValueError, match="50 expression coefficients, but earlier videos had 64"):
        motion.update(np.zeros((2, 50)), np.zeros((2, 50)), *args[2:])
    with pytest.raises(ValueError, match="2 frames of expressions but 3 of angles"):
        motion.update(*args[:2], np.zeros((3, 3)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="frame i"):
        motion.update(args[0], np.zeros((3, 64)), *args[2:])
    with pytest.raises(ValueError, match="one boolean for each"):
        motion.update(*args, np.ones(2))
    mixed = PairedScore().update([1.0])
    with pytest.raises(ValueError, match="mean over pairs and one over videos"):
        mixed.merge(PairedScore().update_video([1.0]))


def test_slices_of_deep3d():
    sizes = {name: part.stop - part.start for name, part in DEEP3D.items()}
    assert list(sizes.values()) == [80, 64, 80, 3, 27, 3] and sum(sizes.values()) == 257


# --- AUH ------------------------------------------------------------------------------------------


def test_action_units_golden():
    """Checks the values of section 14 of the spec."""
    a = np.array([[1, 0, 1, 0], [0, 0, 1, 1]], bool)
    b = np.array([[1, 1, 1, 0], [0, 1, 0, 1]], bool)
    score = PairedScore().update(action_unit_distance(a, b))
    assert score.compute() == 1.5
    assert score.row("auh_fraction", "openface", "w", "r", times=1 / 4).value == 0.375
    with pytest.raises(ValueError, match="booleans, got int"):
        action_unit_distance(a.astype(int), b)
    with pytest.raises(ValueError, match="frame i is compared"):
        action_unit_distance(a, b[:1])


def test_openface_files(tmp_path):
    names = [f"AU{unit:02d}_c" for unit in ACTION_UNITS]
    assert len(names) == 18 and names[-1] == "AU45_c"
    path = tmp_path / "a.csv"
    header = "frame, success, AU01_r, " + ", ".join(names)
    lines = [header, "1, 1, 2.5" + ", 0" * 17 + ", 1", "2, 0, 0.1" + ", 1.0" * 18]
    path.write_text("\n".join(lines))
    units, success = read_action_units(path)
    assert units.shape == (2, 18) and units.sum(axis=1).tolist() == [1, 18] and units[0, 17]
    assert success.tolist() == [True, False]
    path.write_text(header)
    assert read_action_units(path)[0].shape == (0, 18)
    for text in ("a,b\n1,2", "a,b", "", lines[0] + "\n1, 1, 2.5" + ", x" * 18, lines[0] + "\n1, 1"):
        path.write_text(text + "\n")
        with pytest.raises(ConfigError, match=r"a\.csv: does not hold OpenFace's action units"):
            read_action_units(path)
    path.write_text(lines[0] + "\n1, 1, 2.5" + ", 3" * 18)
    with pytest.raises(ConfigError, match="must be 0 or 1"):
        read_action_units(path)
    with pytest.raises(ConfigError, match=r"none\.csv"):
        read_action_units(tmp_path / "none.csv")


# --- EMO-SIM --------------------------------------------------------------------------------------


def test_emo_sim_golden():
    """Checks the values of section 14 of the spec: PCC .9759828106, CCC .9490681930."""
    moments = Moments.empty(4).update(np.concatenate([axes(P), axes(Q)], axis=1))
    assert emo_sim(moments) == pytest.approx(0.9625255018, abs=1e-9)
    similarity = EmotionSimilarity().update(axes(P), axes(Q))
    pooled, videos = similarity.rows("w", "256x256")
    assert pooled.value == pytest.approx((0.9759828106 + 0.9490681930) / 2, abs=1e-9)
    assert videos.value == pytest.approx(pooled.value)
    assert (pooled.n, videos.n) == (20, 1)
    assert (pooled.convention, videos.convention) == ("pooled_frames", "mean_of_videos")


def test_emo_sim_by_numpy_and_merged():
    rng = np.random.default_rng(0)
    a = rng.uniform(-0.9, 0.9, (31, 2))
    b = np.clip(0.6 * a + rng.normal(size=a.shape) * 0.2 + 0.1, -1, 1)
    want = []
    for x, y in zip(a.T, b.T):
        r = np.corrcoef(x, y)[0, 1]
        ccc = 2 * np.cov(x, y, ddof=0)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
        want += [r, ccc]
    whole = EmotionSimilarity().update(a, b)
    assert whole.compute() == pytest.approx(np.mean(want), abs=1e-12)
    parts = EmotionSimilarity()
    for part in (slice(0, 4), slice(4, 20), slice(20, 31)):
        parts = parts.merge(EmotionSimilarity().update(a[part], b[part]))
    assert parts.compute() == pytest.approx(whole.compute(), abs=1e-12)
    assert parts.videos.mean.count == 3
    # Values are clipped to [-1, 1]; frames without a face are left out.
    seen = np.ones(33, bool)
    seen[[5, 9]] = False
    longer = [np.insert(x, [5, 8], np.nan, axis=0) for x in (a, b)]
    assert EmotionSimilarity().update(*longer, seen).compute() == pytest.approx(np.mean(want))
    far = [np.where(K[:, None] == 3, 7.0, axes(P)), axes(Q)]
    cut = [np.where(K[:, None] == 3, 1.0, axes(P)), axes(Q)]
    assert EmotionSimilarity().update(*far).compute() == EmotionSimilarity().update(*cut).compute()


def test_emo_sim_without_a_number():
    still = EmotionSimilarity().update(axes(P), np.full((20, 2), 0.1))
    assert np.isnan(still.compute()) and still.still == 1
    pooled, videos = still.rows("w", "r")
    assert pooled.note == "not computed: valence or arousal is constant"
    assert videos.note == "not computed: needs a video that moves; 1 still videos left out"
    barely = EmotionSimilarity().update(axes(1e-4 * P), axes(Q)).update(axes(P), axes(Q))
    assert barely.still == 1 and barely.videos.mean.count == 1
    one = EmotionSimilarity().update(axes(P[:1]), axes(Q[:1]))
    assert one.rows("w", "r")[0].value is None
    nan = EmotionSimilarity().update(axes(P), axes(np.where(K == 2, np.nan, Q)))
    assert [row.note for row in nan.rows("w", "r")] == ["not computed: values are not finite"] * 2
    for empty in (EmotionSimilarity(), still.update(axes(P[:0]), axes(Q[:0]))):
        empty.rows("w", "r")
    assert "needs a frame that shows a face" in EmotionSimilarity().rows("w", "r")[0].note
    hidden = EmotionSimilarity().update(axes(P), axes(Q), np.zeros(20, bool))
    assert (hidden.still, hidden.skipped) == (0, 20)
    assert "20 frames without a face" in hidden.rows("w", "r")[0].note
    with pytest.raises(ValueError, match=r"must be \(n, 2\)"):
        EmotionSimilarity().update(P, Q)
    with pytest.raises(ValueError, match="frame i is compared with frame i"):
        EmotionSimilarity().update(axes(P), axes(Q[:5]))


def test_rows_without_weights_or_files():
    for metric, convention in NEEDS:
        row = without(metric, convention, "256x256", 3)
        assert row.value is None and row.n == 3 and row.note.startswith("not computed: needs ")
    assert "emonet_8.pth" in without("emo_sim", "pooled_frames", "r", 0).note
    assert "face_landmarker_v2_with_blendshapes.task" in without("aed", "mediapipe_51", "r", 0).note
    with pytest.raises(ValueError, match="no metric aed of convention fomm"):
        without("aed", "fomm", "r", 0)
