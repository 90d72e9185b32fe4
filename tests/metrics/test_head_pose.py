"""Head angles against scipy, and distances against section 14 of the spec."""

import numpy as np
import pytest

from vidmotion.metrics.head_pose import (
    angle_distance,
    angles,
    geodesic,
    rotation,
    wrap_degrees,
)


def test_golden_values():
    """Checks the values of section 14 of the spec."""
    first, second = np.deg2rad([[10, 20, 30.0]]), np.deg2rad([[-5, 25, 28.0]])
    np.testing.assert_allclose(
        rotation(first)[0, 2], [-0.34202014, 0.16317591, 0.92541658], atol=1e-8
    )
    np.testing.assert_allclose(np.rad2deg(angles(rotation(first))), [[10, 20, 30]], atol=1e-12)
    assert angle_distance(first, second) == pytest.approx(7.33333333, abs=1e-8)
    assert geodesic(first, second) == pytest.approx(15.19429905, abs=1e-8)
    assert wrap_degrees(179 - (-179)) == -2
    turned = np.deg2rad([[179.0, 0, 0]]), np.deg2rad([[-179.0, 0, 0]])
    assert angle_distance(*turned) == pytest.approx(2 / 3)


@pytest.mark.oracle
def test_scipy():
    Rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1.5, 1.5, (2, 20, 3))
    a[:, ::2] *= 2  # pitch and roll cover the full circle
    ours, theirs = rotation(a), Rotation.from_euler("ZYX", a[:, ::-1])
    np.testing.assert_allclose(ours, theirs.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(angles(ours), theirs.as_euler("ZYX")[:, ::-1], atol=1e-9)
    apart = (theirs.inv() * Rotation.from_euler("ZYX", b[:, ::-1])).magnitude()
    np.testing.assert_allclose(geodesic(a, b), np.rad2deg(apart), rtol=1e-9)
    np.testing.assert_allclose(geodesic(a, a), 0, atol=1e-9)


def test_mediapipe_matrices():
    """Matrices with scaled columns and a translation give the angles of the directions alone."""
    want = np.array([[0.1, -0.4, 0.3], [-0.7, 0.2, 2.0]])
    matrices = np.tile(np.eye(4), (2, 1, 1))
    matrices[:, :3, :3] = rotation(want) * [1.1, 0.9, 1.3]
    matrices[:, :3, 3] = [3, 4, -50]
    np.testing.assert_allclose(angles(matrices), want, atol=1e-12)
    assert np.isnan(angles(np.zeros((3, 3)))).all()
    assert np.isnan(angles(np.full((3, 3), np.nan))).all()


def test_refusals():
    with pytest.raises(ValueError, match=r"shapes \(3, 3\) and \(4, 3\), which must be equal"):
        angle_distance(np.zeros((3, 3)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="pitch, yaw, roll"):
        angle_distance(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="pitch, yaw, roll"):
        rotation(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"matrices must be"):
        angles(np.zeros((2, 3)))
    assert angle_distance(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)
