"""Keypoints: centres of heat maps, random bends of the plane, and equivariance (spec warpface.md, 12.1)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from vidmotion.models.keypoints import Bend, KeypointMotion, pixel_grid

DETECTOR = dict(points=3, blocks=2, width=4, shrink=2)


@pytest.fixture(scope="module")
def motion():
    net = KeypointMotion(DETECTOR, token_width=5)
    x = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3), minval=-1.0)
    return net, quick_jit(lambda k, x: net.init(k, x, method="everything"))(jax.random.key(0), x), x


def test_keypoints_lie_in_the_picture_and_the_code_has_a_token_each(motion):
    net, variables, x = motion
    found = net.apply(variables, x)
    assert found.shape == (2, 3, 2) and float(jnp.abs(found).max()) <= 1.0
    assert net.apply(variables, found, found, method="code").shape == (2, 15)


def test_an_affine_bend_is_the_matrix():
    bend = Bend(jax.random.key(0), 2, affine=0.2, spline=0.0)
    p = np.random.default_rng(0).uniform(-1, 1, (2, 7, 2)).astype(np.float32)
    origin, ex, ey = (
        np.asarray(bend.points(jnp.broadcast_to(jnp.array(v), (2, 1, 2))))
        for v in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    )
    want = origin + p[..., :1] * (ex - origin) + p[..., 1:] * (ey - origin)
    np.testing.assert_allclose(bend.points(p), want, atol=1e-5)


def test_the_spline_follows_its_kernel():
    bend = Bend(jax.random.key(3), 1, affine=0.0, spline=0.1, points=2)
    at = np.array([[[0.25, -0.5]]], np.float32)
    corners = [(-1, -1), (1, -1), (-1, 1), (1, 1)]
    distance = np.array([abs(0.25 - x) + abs(-0.5 - y) for x, y in corners])
    shift = np.sum(distance**2 * np.log(distance + 1e-6) * np.asarray(bend._weight_bg)[0])
    np.testing.assert_allclose(np.asarray(bend.points(at))[0, 0], at[0, 0] + shift, atol=1e-5)


def test_a_picture_of_its_own_coordinates_shows_where_points_are_taken_to():
    bend = Bend(jax.random.key(0), 1, affine=0.03, spline=0.002)
    grid = pixel_grid(9, 9)[None]
    bent = np.asarray(bend.picture(grid))
    want = np.asarray(bend.points(grid.reshape(1, -1, 2))).reshape(bent.shape)
    np.testing.assert_allclose(bent, np.clip(want, -1, 1), atol=1e-5)


def test_keypoints_that_ignore_the_picture_are_not_equivariant_and_the_loss_teaches(motion):
    net, variables, x = motion
    key = jax.random.key(5)
    fixed = jnp.broadcast_to(jnp.array([0.3, -0.2]), (2, 3, 2))
    moved = Bend(key, 2).points(fixed)
    assert float(jnp.mean(jnp.abs(fixed - moved))) > 1e-3

    def loss(v):
        return jnp.sum(net.apply(v, x, net.apply(v, x), key, method="equivariance"))

    value, gradient = quick_jit(jax.value_and_grad(loss))(variables)
    assert 0.0 < float(value) < np.inf
    leaves = jax.tree.leaves(gradient["params"]["detect"])
    assert max(float(jnp.abs(g).max()) for g in leaves) > 0.0
