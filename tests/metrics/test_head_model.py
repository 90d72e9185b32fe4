"""Shape, Motion and Cross error against section 14 of the spec, meshes computed by loops, and scipy; files."""

import dataclasses

import numpy as np
import pytest

from vidmotion.errors import ConfigError
from vidmotion.metrics.head_model import (
    CONVENTION,
    HeadMotion,
    LinearHead,
    MeshErrors,
    cross_error,
    motion_error,
    shape_error,
    without_files,
)


def normal(seed, *shape):
    return np.random.RandomState(seed).randn(*shape)


@pytest.fixture(scope="module")
def head():
    return LinearHead(
        normal(0, 5, 3), 0.1 * normal(1, 5, 3, 3), 0.1 * normal(2, 5, 3, 2), "x", "cm"
    )


@pytest.fixture(scope="module")
def videos():
    """Returns the reference video and the generated video of section 14."""
    return [
        HeadMotion(
            normal(3 + i, 3),
            normal(5 + i, 4, 2),
            0.1 * normal(7 + i, 4, 3),
            0.1 * normal(9 + i, 4, 3),
        )
        for i in (0, 1)
    ]


def test_golden_errors(head, videos):
    ref, made = videos
    assert shape_error(head, ref, made) == pytest.approx(0.0476814162, abs=1e-10)
    assert motion_error(head, ref, made) == pytest.approx(0.1269223621, abs=1e-10)
    assert cross_error(head, ref, ref, made) == pytest.approx(0.1782510417, abs=1e-10)


@pytest.mark.oracle
def test_meshes(head, videos):
    Rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    video = videos[0]
    got = head.vertices(video.beta, video.psi, video.euler, video.trans)
    assert got.shape == (4, 5, 3)
    for t in range(4):
        turn = Rotation.from_euler("ZYX", video.euler[t, ::-1])
        for v in range(5):
            rest = head.template[v] + head.shape[v] @ video.beta + head.expression[v] @ video.psi[t]
            np.testing.assert_allclose(got[t, v], turn.apply(rest) + video.trans[t], atol=1e-12)
    np.testing.assert_array_equal(head.vertices(), head.template)


def test_errors_of_what_is_kept(head, videos):
    """Each error is zero if the parameters that it measures are unchanged, whatever the others are."""
    ref, made = videos
    copied = dataclasses.replace(made, beta=ref.beta)
    assert shape_error(head, ref, copied) == 0 and motion_error(head, ref, copied) > 0
    driven = dataclasses.replace(ref, beta=made.beta)
    assert motion_error(head, ref, driven) == 0 and shape_error(head, ref, driven) > 0
    assert cross_error(head, made, ref, driven) == pytest.approx(0, abs=1e-30)
    moved = dataclasses.replace(ref, trans=ref.trans + np.array([0, 0, 0.3]))
    assert motion_error(head, ref, moved) == pytest.approx(0.03)  # one of three coordinates moved


def test_means_over_videos_merge(head, videos):
    ref, made = videos
    errors = MeshErrors("x", "cm")
    first, second = errors.update(head, ref, ref, made), errors.update(head, made, made, made)
    merged = first.merge(second).merge(errors)
    assert merged == first.update(head, made, made, made)
    rows = {row.metric: row for row in merged.rows("256x256")}
    assert rows["shape_error"].value == pytest.approx(0.0476814162 / 2, abs=1e-10)
    assert rows["cross_error"].value == pytest.approx(0.1782510417 / 2, abs=1e-10)
    row = rows["motion_error"]
    assert (row.n, row.weights, row.convention, row.note) == (2, "x", CONVENTION, "squared cm")


def test_rows_without_a_number(head, videos):
    assert all("needs a video" in row.note for row in MeshErrors("x", "cm").rows("r"))
    ref, made = videos
    made = dataclasses.replace(made, psi=made.psi * np.nan)
    rows = MeshErrors("x", "cm").update(head, ref, ref, made).rows("r")
    assert [row.value is None for row in rows] == [False, True, True]
    assert rows[1].note == "not computed: coefficients are not finite"
    rows = without_files("256x256", 5)
    assert len(rows) == 3 and all("needs a head model" in row.note for row in rows)


def test_refusals(head, videos):
    ref, made = videos
    short = HeadMotion(made.beta, made.psi[:3], made.euler[:3], made.trans[:3])
    with pytest.raises(ValueError, match="motion video has 4 frames, but the generated one has 3"):
        motion_error(head, ref, short)
    with pytest.raises(ValueError, match=r"beta has shape \(4,\), but x takes 3 coefficients"):
        shape_error(head, HeadMotion(np.zeros(4), ref.psi, ref.euler, ref.trans), ref)
    with pytest.raises(ValueError, match=r"errors of y \(m\) and x \(cm\)"):
        MeshErrors("y", "m").update(head, ref, ref, made)
    with pytest.raises(ValueError, match="at least one frame"):
        HeadMotion(ref.beta, ref.psi[:0], ref.euler[:0], ref.trans[:0])
    with pytest.raises(ValueError, match="at least one frame"):
        HeadMotion(ref.beta, ref.psi, ref.euler[:2], ref.trans)
    with pytest.raises(ValueError, match="a head needs"):
        LinearHead(np.zeros((5, 3)), np.zeros((4, 3, 2)), np.zeros((5, 3, 2)), "x", "cm")
    with pytest.raises(ValueError, match="not finite"):
        LinearHead(np.full((5, 3), np.nan), np.zeros((5, 3, 2)), np.zeros((5, 3, 2)), "x", "cm")


def test_files(tmp_path, head, videos):
    model, fit = tmp_path / "mine.npz", tmp_path / "fit.npz"
    arrays = {"v_template": head.template, "shapedirs": head.shape, "exprdirs": head.expression}
    np.savez(model, **arrays)
    loaded = LinearHead.load(model)
    np.testing.assert_array_equal(loaded.vertices(videos[0].beta), head.vertices(videos[0].beta))
    assert (loaded.name, loaded.unit) == ("mine", "model unit")
    np.savez(model, **arrays, unit_scale_to_cm=100.0)
    loaded = LinearHead.load(model)
    np.testing.assert_allclose(loaded.shape, 100 * head.shape)
    assert loaded.unit == "cm"

    ref = videos[0]
    fields = {"psi": ref.psi, "euler": ref.euler, "trans": ref.trans}
    np.savez(fit, beta=np.stack([ref.beta - 1, ref.beta + 1] * 2), **fields)  # one beta per frame
    np.testing.assert_allclose(HeadMotion.load(fit).beta, ref.beta)
    np.savez(fit, **fields)
    with pytest.raises(ConfigError, match=r"fit\.npz: lacks beta"):
        HeadMotion.load(fit)
    np.savez(fit, beta=np.zeros((3, 3)), **fields)
    with pytest.raises(ConfigError, match=r"fit\.npz: beta must be \(i,\) or \(4, i\)"):
        HeadMotion.load(fit)
    np.savez(model, **arrays, lbs_weights=np.ones((5, 2)))
    with pytest.raises(ConfigError, match="has joints"):
        LinearHead.load(model)
    fit.write_text("no arrays")
    for path in (fit, tmp_path / "none.npz"):
        with pytest.raises(ConfigError, match=r"not an \.npz file"):
            HeadMotion.load(path)
