"""Augmentation of driving faces, checked against scikit-image, scipy, Pillow and values worked out by hand."""

import colorsys

import numpy as np
import pytest

from vidmotion.data import augment
from vidmotion.data.augment import FaceAugment, PcAvsAugment

SIDE = 64


def smooth(side=SIDE, frames=2):
    """Returns frames of slowly changing colours, on which all kinds of interpolation agree."""
    y, x, t = np.mgrid[0:side, 0:side, 0:frames] / side
    waves = [np.sin(5 * x + 3 * y + t), np.cos(4 * y - x), np.sin(3 * (x + y) - t)]
    return np.rint(127 + 90 * np.stack(waves, -1)).astype(np.uint8).transpose(2, 0, 1, 3)


def places(side=SIDE):
    return np.stack(np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5), -1)


def test_remap_is_scipys_linear_interpolation_with_the_edge_repeated():
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 20, 31, 3), np.uint8)
    xy = rng.uniform(-6, 40, (9, 14, 2))
    got = augment.remap(frames, xy)
    assert got.shape == (2, 9, 14, 3)
    for t in range(2):
        for c in range(3):
            plane = frames[t, ..., c].astype(float)
            theirs = ndimage.map_coordinates(
                plane, [xy[..., 1] - 0.5, xy[..., 0] - 0.5], order=1, mode="nearest"
            )
            np.testing.assert_allclose(got[t, ..., c], theirs, atol=0.51)
    same = augment.remap(frames[:, :20, :20], places(20))
    np.testing.assert_array_equal(same, frames[:, :20, :20])
    one = augment.remap(frames[:, :1, :1], places(3))  # a picture of a single pixel
    assert np.all(one == frames[:, :1, :1])


@pytest.mark.parametrize("nodes", [4, 8])
def test_bending_is_scikit_images_piecewise_affine_transform(nodes):
    transform = pytest.importorskip("skimage.transform")
    rng = np.random.default_rng(nodes)
    moves = rng.normal(size=(nodes, nodes, 2)) * 0.02
    got = augment.bend_map(moves, SIDE)
    axis = np.linspace(0, SIDE, nodes)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    limit = augment.UNFOLDED / (nodes - 1)
    moved = grid + np.clip(moves, -limit, limit).reshape(-1, 2) * SIDE
    # A regular grid can be triangulated in two ways; a tiny shear makes scikit-image choose our diagonals.
    sheared = grid + np.stack([-1e-6 * grid[:, 1], 0 * grid[:, 0]], 1)
    theirs = transform.PiecewiseAffineTransform.from_estimate(sheared, moved)
    inner = places()[1:-1, 1:-1]
    expected = theirs(inner.reshape(-1, 2)).reshape(inner.shape)
    np.testing.assert_allclose(got[1:-1, 1:-1], expected, atol=1e-3)


def test_bending_leaves_still_nodes_alone_and_never_folds():
    np.testing.assert_allclose(augment.bend_map(np.zeros((5, 5, 2)), SIDE), places(), atol=1e-4)
    # The moves are far beyond the limit to which `bend_map` clips them.
    wild = np.random.default_rng(0).normal(size=(6, 6, 2))
    xy = augment.bend_map(wild, 200)
    across, down = np.diff(xy, axis=1)[:-1], np.diff(xy, axis=0)[:, :-1]
    area = across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0]
    assert area.min() > 0  # the area that a pixel shows is positive: nothing is seen from behind
    assert np.median(area) > 0.3


def test_homography_takes_four_points_to_four_points():
    transform = pytest.importorskip("skimage.transform")
    rng = np.random.default_rng(0)
    source = np.array([(0, 0), (10, 0), (10, 10), (0, 10)], float)
    target = source + rng.uniform(-2, 2, (4, 2))
    theirs = transform.ProjectiveTransform.from_estimate(source, target).params
    np.testing.assert_allclose(augment.homography(source, target), theirs, atol=1e-9)


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize(("keystone", "frame"), [(6, 8), (-6, -8), (0, 5)])
def test_reshaping_is_that_of_its_steps(narrow, keystone, frame):
    transform = pytest.importorskip("skimage.transform")
    r, room = 5, 2
    picture = smooth()[0] / 255.0
    xy = augment.reshape_map(SIDE, r, room, narrow, keystone, frame)
    got = augment.remap(smooth()[:1], xy)[0] / 255.0
    # Step by step: resize, reflect at the sides, cut above and below, keystone, keep the upper left part.
    high, wide = (SIDE + 2 * r, SIDE - 2 * r) if narrow else (SIDE - 2 * r, SIDE + 2 * r)
    picture = transform.resize(picture, (high, wide), order=1, mode="edge", anti_aliasing=False)
    pad, cut = r + room, slice(r - room, -(r - room))
    if narrow:
        picture = np.pad(picture, ((0, 0), (pad, pad), (0, 0)), mode="symmetric")[cut]
    else:
        picture = np.pad(picture, ((pad, pad), (0, 0), (0, 0)), mode="symmetric")[:, cut]
    side = SIDE + 2 * room
    assert picture.shape == (side, side, 3)
    low, up = -frame, side + frame
    corners = np.array([(low, low), (up, low), (up, up), (low, up)], float) - 0.5  # pixel centres
    lower = np.array([[0, 0], [0, 0], [-keystone, 0], [keystone, 0]])
    back = transform.ProjectiveTransform.from_estimate(corners + lower, corners)
    expected = transform.warp(picture, back, order=1, mode="edge")[:SIDE, :SIDE]
    assert np.abs(got - expected).mean() < 0.004
    assert np.quantile(np.abs(got - expected), 0.99) < 0.04


def test_colours_by_hand():
    picture = np.array([[[100, 50, 200], [10, 20, 30]], [[0, 0, 0], [255, 255, 255]]], np.uint8)
    same = augment.recolour(picture, 1, 1, 1, 0)
    np.testing.assert_array_equal(same, picture)
    darker = augment.recolour(picture, 0.5, 1, 1, 0)
    np.testing.assert_allclose(darker, picture * 0.5, atol=1)
    grey = picture @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    flat = augment.recolour(picture, 1, 1, 0, 0)
    np.testing.assert_allclose(flat, grey[..., None].repeat(3, -1), atol=1)
    mean = grey.mean()
    less = augment.recolour(picture, 1, 0.6, 1, 0)
    np.testing.assert_allclose(less, np.clip(mean + 0.6 * (picture - mean), 0, 255), atol=1.5)


@pytest.mark.parametrize("turn", [0.1, -0.1, 0.5])
def test_hue_is_turned_as_colorsys_does(turn):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (6, 6, 3), np.uint8)
    got = augment.recolour(picture, 1, 1, 1, turn)
    for old, new in zip(picture.reshape(-1, 3), got.reshape(-1, 3)):
        h, s, v = colorsys.rgb_to_hsv(*(old / 255))
        expected = 255 * np.array(colorsys.hsv_to_rgb((h + turn) % 1, s, v))
        # The tolerance is for Pillow's hue, which has 8 bits.
        np.testing.assert_allclose(new, expected, atol=6)


def squares(frames, low=12.0, high=52.0):
    return np.tile([low, low, high, high], (frames, 1))


def test_one_draw_serves_all_frames_of_a_clip():
    still = np.repeat(smooth(frames=1), 4, 0)
    for recipe in (FaceAugment(size=48), PcAvsAugment(sharpen=1.0)):
        call = (still, squares(4)) if isinstance(recipe, FaceAugment) else (still,)
        first = recipe(*call, np.random.default_rng(5))
        assert first.dtype == np.uint8 and len(first) == 4
        assert np.all(first == first[:1])  # equal frames stay equal
        np.testing.assert_array_equal(first, recipe(*call, np.random.default_rng(5)))
        assert np.any(first != recipe(*call, np.random.default_rng(6)))
    assert np.all(still == still[:1])  # the input is not changed


def test_without_strength_the_crop_is_what_it_is():
    nothing = FaceAugment(40, 0.0, 0.0, (0, 0), (0.0, 0.0), 0.0, 0.0, 0.0, 0.0)
    frames = smooth()
    got = nothing(frames, squares(2), np.random.default_rng(0))
    np.testing.assert_array_equal(got, frames[:, 12:52, 12:52])
    # A grid whose nodes do not move gives the same picture again.
    grid = FaceAugment(40, 0.0, 0.0, (4, 4), (0.0, 0.0), 0.0, 0.0, 0.0, 0.0)
    np.testing.assert_array_equal(grid(frames, squares(2), np.random.default_rng(0)), got)


def test_scale_and_shift_stay_within_their_limits():
    """Measures on a picture that is its own ruler: red is the column, green the row."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    ruler = np.stack([3 * x, 3 * y, 0 * x], -1).astype(np.uint8)[None]
    only = FaceAugment(40, 0.3, 0.05, (0, 0), (0.0, 0.0), 0.0, 0.0, 0.0, 0.0)
    factors, moves = [], []
    for seed in range(60):
        seen = only(ruler, squares(1, 22.0, 42.0), np.random.default_rng(seed))[0] / 3.0
        columns, rows = seen[20, :, 0], seen[:, 20, 1]
        factors.append([(columns[35] - columns[5]) / 30 * 2, (rows[35] - rows[5]) / 30 * 2])
        moves.append([(columns[5] + columns[34]) / 2 - 31.5, (rows[5] + rows[34]) / 2 - 31.5])
    factors, moves = np.array(factors), np.array(moves)
    assert 0.66 < factors.min() < 0.8 and 1.2 < factors.max() < 1.34
    assert np.abs(np.corrcoef(factors.T)[0, 1]) < 0.5  # width and height are scaled independently
    assert 0.5 < np.abs(moves).max() < 1.4  # 5% of 20 pixels


def test_pc_avs_gain_falls_on_neighbouring_channels():
    flat = np.full((1, SIDE, SIDE, 3), 100, np.uint8)
    runs = set()
    for seed in range(200):
        shown = PcAvsAugment(gain=(0.5, 0.5), sharpen=0.0)(flat, np.random.default_rng(seed))
        values = shown[0, SIDE // 2, SIDE // 2].tolist()
        assert set(values) <= {50, 100}
        runs.add(tuple(value == 50 for value in values))
    # The gain falls on one or more neighbouring channels, from the first or the second on: never on the last alone, nor
    # on the first and last only.
    on, off = True, False
    wanted = {(on, off, off), (on, on, off), (on, on, on), (off, on, off), (off, on, on)}
    assert runs == wanted


def test_pc_avs_blurs_or_sharpens():
    ndimage = pytest.importorskip("scipy.ndimage")
    frames = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    still = {"gain": (1.0, 1.0), "stretch": (0, 0), "keystone": (0, 0), "frame": (0, 0)}
    rng = np.random.default_rng
    blurred = PcAvsAugment(**still, blur=(5,), sharpen=0.0)(frames, rng(0))[0]
    sharp = PcAvsAugment(**still, sharpen=1.0)(frames, rng(0))[0].astype(int)
    kernel = np.array([[-1, -1, -1], [-1, 9, -1], [-1, -1, -1]])
    for c in range(3):
        plane = frames[0, ..., c].astype(int)
        median = ndimage.median_filter(plane, 5, mode="nearest")
        np.testing.assert_array_equal(blurred[2:-2, 2:-2, c], median[2:-2, 2:-2])
        conv = np.clip(ndimage.convolve(plane, kernel), 0, 255)
        np.testing.assert_array_equal(sharp[1:-1, 1:-1, c], conv[1:-1, 1:-1])
    kinds = [PcAvsAugment(**still)(frames, rng(seed)) for seed in range(40)]
    share = np.mean([np.array_equal(kind[0], sharp) for kind in kinds])
    assert 0.25 < share < 0.75


def test_lengths_grow_with_the_frame():
    small, large = (augment.reshape_map(s, *(s / 64 * k for k in (5, 2)), True, s / 10, s / 8)
                    for s in (64, 256))  # fmt: skip
    np.testing.assert_allclose(
        small / 64, large.reshape(64, 4, 64, 4, 2).mean((1, 3)) / 256, atol=0.02
    )
