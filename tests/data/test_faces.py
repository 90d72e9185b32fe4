"""Squares about faces, tracks of faces through clips, box files; the detector on real portraits."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidmotion.data import faces
from vidmotion.data.records import DatasetError

NOTHING = np.zeros((0, 4))


def box(x, y, side=10.0):
    return np.array([x - side / 2, y - side / 2, x + side / 2, y + side / 2])


def test_squares_by_hand():
    # Scale 2 enlarges the box by half its size on every side.
    assert faces.about((200, 200, 300, 300), 2).tolist() == [150, 150, 350, 350]
    assert faces.about((200, 200, 300, 340), 2).tolist() == [110, 130, 390, 410]
    # The square is moved inside the picture if it fits, and left as it is if it does not.
    assert faces.inside(np.array([-10.0, 5, 30, 45]), 100, 100).tolist() == [0, 5, 40, 45]
    assert faces.inside(np.array([70.0, 80, 110, 120]), 100, 100).tolist() == [60, 60, 100, 100]
    assert faces.inside(np.array([-10.0, -20, 110, 100]), 100, 200).tolist() == [-10, 0, 110, 120]
    # `square` never leaves the picture: a side of 60 is cut to the picture's height of 50.
    assert faces.square((10, 10, 40, 30), 200, 50, 2).tolist() == [0, 0, 50, 50]
    assert faces.square((10, 10, 40, 30), 200, 500, 2).tolist() == [0, 0, 60, 60]


def test_what_the_motion_encoder_sees_of_the_reference():
    assert faces.reference_box((100, 100, 200, 180), 512, 512).tolist() == [95, 85, 205, 195]
    # The square of 1.1 times the longer side would leave the picture, so the box itself is taken, which is not square.
    assert faces.reference_box((2, 100, 102, 180), 512, 512).tolist() == [2, 100, 102, 180]


def test_place_and_size_against_the_reference_y_first():
    reference = (100, 200, 150, 240)  # centre (125, 220), side 50
    boxes = [(100, 200, 150, 240), (150, 190, 200, 290), (95, 215, 115, 225)]
    expected = [[0, 0, 1], [20 / 50, 50 / 50, 2], [0, -20 / 50, 0.4]]
    got = faces.f_rts(np.array(boxes), reference)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert got.dtype == np.float32
    # Mirroring changes the sign of dx and nothing else.
    turned = faces.f_rts(faces.mirror(boxes, 512), faces.mirror(reference, 512))
    np.testing.assert_allclose(turned, np.array(expected) * [1, -1, 1], atol=1e-6)


def test_the_drivers_crop_keeps_its_size_and_follows_smoothly():
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(0)
    centres = 256 + np.cumsum(rng.normal(size=(60, 2)) * 4, 0)
    sides = rng.uniform(80, 120, 60)
    boxes = np.stack([box(x, y, s) for (x, y), s in zip(centres, sides)])
    got = faces.driving_boxes(boxes, 4000, 4000)
    side = int(1.1 * sides[0]) // 2 * 2
    np.testing.assert_allclose(got[:, 2:] - got[:, :2], side)
    smooth = ndimage.gaussian_filter1d(centres, 5.0, axis=0)
    np.testing.assert_allclose((got[:, :2] + got[:, 2:]) / 2, smooth, atol=1e-9)
    still = faces.driving_boxes(boxes, 4000, 4000, sigma=0)
    np.testing.assert_allclose((still[:, :2] + still[:, 2:]) / 2, centres)
    corner = faces.driving_boxes(np.stack([box(10, 10, 100)]), 300, 300)  # moved inside
    assert corner.tolist() == [[0, 0, 110, 110]]


def test_crops_are_black_outside_and_pillows_inside():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 60, 3), np.uint8)
    whole = Image.fromarray(picture)
    inner = whole.resize((16, 16), Image.Resampling.LANCZOS, box=(3.5, 2.25, 35.5, 34.25))
    np.testing.assert_array_equal(faces.crop(picture, (3.5, 2.25, 35.5, 34.25), 16), inner)
    part = faces.crop(picture, (-10, -20, 20, 10), 30)
    assert not part[:20].any() and not part[:, :10].any()
    np.testing.assert_array_equal(part[20:, 10:], picture[:10, :20])
    part = faces.crop(picture, (50, 30, 70, 50), (20, 20))
    np.testing.assert_array_equal(part[:10, :10], picture[30:, 50:])
    assert not part[10:].any() and not part[:, 10:].any()


def test_a_lost_face_is_interpolated_held_and_reported():
    seen = [NOTHING, [box(10, 10)], NOTHING, NOTHING, [box(16, 10, 16)], NOTHING]
    path, several = faces.follow(map(np.array, seen))
    assert several == 0 and np.isnan(path[:, 0]).tolist() == [not len(s) for s in seen]
    full = faces.fill(path)
    centre, side = (full[:, 0] + full[:, 2]) / 2, full[:, 2] - full[:, 0]
    np.testing.assert_allclose(centre, [10, 10, 12, 14, 16, 16])
    np.testing.assert_allclose(side, [10, 10, 12, 14, 16, 16])
    track = faces.Track(full, ~np.isnan(path[:, 0]), several)
    assert track.report() == "no face was found in 4 of 6 frames: its place there is estimated"


def test_of_several_faces_the_largest_is_followed():
    large, small = box(50, 50, 30), box(200, 50, 20)
    growing = [np.stack([small + np.array([0, 0, k, k]), large]) for k in range(30)]
    path, several = faces.follow(growing)
    # The first face is followed, although the other is the larger one by the end.
    assert several == 30 and np.all(path == large)
    assert faces.Track(path, path[:, 0] > 0, 3).report().startswith("several faces in 3 frames")
    # A box that jumps by more than its size is another face, which is not followed until the first has been gone for a
    # second.
    frames = [large[None]] + [small[None]] * (faces.PATIENCE + 2)
    path, _ = faces.follow(frames)
    lost = np.isnan(path[:, 0])
    assert lost.tolist() == [False] + [True] * faces.PATIENCE + [False] * 2


def test_jumping_boxes_are_steadied_by_their_median():
    boxes = np.stack([box(50, 50, s) for s in (10, 10, 30, 10, 12, 10)])
    boxes[3] = np.nan
    steady = faces.steady(boxes)
    # Medians worked out by hand.
    assert (steady[:, 2] - steady[:, 0])[[0, 1, 2]].tolist() == [10, 10, 11]
    assert np.isnan(steady[3]).all()


def portrait(size=(64, 48)):
    return np.full((*size, 3), 99, np.uint8)


def test_no_face_says_what_else_can_be_done(monkeypatch):
    monkeypatch.setattr(faces, "find_faces", lambda picture: NOTHING)
    with pytest.raises(
        faces.FaceError, match=r"no face was found in a/me\.png.*\"me\.png\".*whole"
    ):
        faces.locate([portrait()], "a/me.png")
    track = faces.locate([portrait(), portrait()], "a/me.png", "whole")
    assert track.boxes.tolist() == [[0, 0, 48, 64]] * 2 and track.seen.all()
    assert track.report() == ""


def test_boxes_of_a_file(tmp_path):
    path = tmp_path / "boxes.json"
    moving = [[1, 2, 3, 4], [2, 2, 4, 4]]
    path.write_text(json.dumps({"me.png": [1, 2, 3, 4], "b.mp4": moving}))
    still = faces.locate([portrait()] * 3, "x/me.png", path)
    assert still.boxes.tolist() == [[1, 2, 3, 4]] * 3
    assert faces.locate([portrait()] * 2, "b.mp4", path).boxes.tolist() == moving
    with pytest.raises(faces.FaceError, match=r"2 boxes for the 3 frames of b\.mp4"):
        faces.locate([portrait()] * 3, "b.mp4", path)
    with pytest.raises(faces.FaceError, match=r"has no box for c\.mp4, only for b\.mp4, me\.png"):
        faces.locate([portrait()], "c.mp4", path)
    # Three frames shown from a video of two: the second frame is shown twice.
    shown = np.array([0, 1, 1])
    followed = faces.locate(iter(()), "b.mp4", path, own=lambda: (shown, 2))
    assert followed.boxes.tolist() == [moving[0], moving[1], moving[1]]
    assert len(faces.locate(iter(()), "me.png", path, own=lambda: (shown, 2)).boxes) == 3
    steady = faces.locate(iter(()), "b.mp4", path, own=lambda: (np.array([0, 2]), 3))
    assert steady.boxes.tolist() == moving  # the boxes are those of a copy made at a constant rate
    lines = tmp_path / "boxes.csv"
    lines.write_text("file,x0,y0,x1,y1\nb.mp4,1,2,3,4\nb.mp4,2,2,4,4\nme.png,1,2,3,4\n")
    read = faces.read_boxes(lines, per_frame=True)
    assert read["b.mp4"].tolist() == moving and read["me.png"].tolist() == [1, 2, 3, 4]
    path.write_text(json.dumps({"b.mp4": moving}))
    with pytest.raises(DatasetError, match="is not x0, y0, x1, y1"):
        faces.read_boxes(path)  # without per_frame, a file has one box, a crop
    path.write_text(json.dumps({"b.mp4": [[1, 2, 3, 4], [2, 2, 1, 4]]}))
    with pytest.raises(DatasetError, match="does not have x0 < x1 and y0 < y1"):
        faces.read_boxes(path, per_frame=True)


def test_one_face_seen_at_several_scales_is_one():
    found = faces._distinct(np.stack([box(52, 50, 20), box(50, 50, 30), box(120, 50, 20)]))
    assert found.tolist() == [box(50, 50, 30).tolist(), box(120, 50, 20).tolist()]


def test_real_portraits_and_small_ones():
    """Finds the face of scikit-image's astronaut, at full size and at less than 64 px."""
    data = pytest.importorskip("skimage.data")
    picture = data.astronaut()  # 512 x 512; eyes at about (205, 115) and (245, 110)
    small = np.asarray(Image.fromarray(picture[:256, 96:352]).resize((60, 60)))
    for image, scale, left in ((picture, 1, 0), (small, 60 / 256, 96)):
        found = faces.find_faces(image)
        assert len(found) == 1
        x0, y0, x1, y1 = found[0] / scale + [left, 0, left, 0]
        assert x0 < 205 < 245 < x1 and y0 < 130 < 150 < y1 and 60 < x1 - x0 < 150
    assert len(faces.find_faces(np.full((200, 300, 3), 128, np.uint8))) == 0
    portraits = Path(os.environ.get("VIDMOTION_PORTRAITS", "../shared/data/portraits"))
    for path in sorted(portraits.glob("*")):
        assert len(faces.find_faces(np.asarray(Image.open(path).convert("RGB")))) >= 1, path
