"""Pairs of reference and target: which frames are paired, how they are cropped, and how the loader gives them."""

import itertools
import pickle

import numpy as np
import pytest

from vidmotion.data import faces, heads
from vidmotion.data.augment import FaceAugment, PcAvsAugment
from vidmotion.data.clips import encode_clip
from vidmotion.data.pipeline import Loader, make_source
from vidmotion.data.portraits import Pair, PortraitSource, make_pair
from vidmotion.data.records import DatasetError, DatasetWriter
from vidmotion.errors import ConfigError

LENGTH, SIDE, FPS = 25, 64, 25.0


def levels():
    """Returns a clip whose frame k has grey level 8 k, so that the frames of a pair can be read off."""
    grey = (8 * np.arange(LENGTH)).astype(np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (LENGTH, SIDE, SIDE, 3)).copy()


def shown(pictures):
    return np.rint(pictures[..., 20:40, 20:40, :].mean((-1, -2, -3)) / 8).astype(int).tolist()


def boxes():
    """Returns the boxes of a face that moves right by a pixel a frame and grows."""
    k = np.arange(LENGTH, dtype=np.float32)[:, None]
    return np.concatenate([10 + k, 20 + 0 * k, 26 + 1.5 * k, 40 + 0 * k], 1)


def clip(kind="video"):
    data = {"video": levels()} if kind == "video" else {"clip": encode_clip(levels(), FPS)}
    rest = {"length": np.int32(LENGTH), "fps": np.float32(FPS), "boxes": boxes()}
    return {**data, **rest}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("portraits")
    with DatasetWriter(path, "portraits", shards=1) as writer:
        for _ in range(8):
            writer.write("train", clip("clip"))
    return path


def draws(pair, count=400):
    rng = np.random.default_rng(0)
    return [pair._picked(LENGTH, FPS, rng) for _ in range(count)]


def test_a_pair_is_two_different_frames():
    found = draws(Pair())
    assert {abs(a - b) for a, b in found} >= set(range(1, 20)) and all(a != b for a, b in found)
    order = np.mean([a < b for a, b in found])
    assert 0.4 < order < 0.6


def test_the_pair_rule_of_more_than_a_fifth_of_a_second():
    found = draws(Pair(gap=0.2), 2000)
    gaps = {abs(a - b) for a, b in found}
    # 5 frames are exactly 0.2 s, which is not more.
    assert min(gaps) == 6 and max(gaps) == LENGTH - 1
    # Every frame has possible partners, and each is as often the first of the two as any other.
    times = np.bincount([i for pair in found for i in pair], minlength=LENGTH)
    assert times.min() > 80
    candidates = Pair(gap=0.2).candidates(14, FPS)
    assert [list(c) for c in candidates[:2]] == [list(range(6, 14)), list(range(7, 14))]
    assert list(candidates[6]) == [0, 12, 13]


def test_windows_and_their_reference():
    pair = Pair(frames=4, decimate=2, gap=0.2)  # spans 7 frames
    for reference, start in draws(pair):
        assert reference < start - 5 or reference > start + 6 + 5
    anywhere = Pair(frames=24, gap=None)
    assert {start for _, start in draws(anywhere)} == {0, 1}
    assert {reference for reference, _ in draws(anywhere)} == set(range(LENGTH))
    with pytest.raises(
        ConfigError, match=r"25 frames at 25 frames/s do not hold 20 target frames.*0\.2 s"
    ):
        Pair(frames=20, gap=0.2)._picked(LENGTH, FPS, None)


@pytest.mark.parametrize("kind", ["video", "clip"])
def test_evaluation_begins_with_the_first_frame(kind):
    got = Pair(frames=3, decimate=2, random=False).random_map(clip(kind), None)
    assert shown(got["reference"]) == 0 and shown(got["target"]) == [1, 3, 5]
    np.testing.assert_array_equal(got["driving"], got["driving_clean"])
    got = Pair(gap=0.2, random=False).random_map(clip(kind), None)
    assert (shown(got["reference"]), shown(got["target"])) == (0, [6])


def test_names_shapes_and_kinds():
    rng = np.random.default_rng(0)
    face = Pair(frames=3, augment=FaceAugment(size=48)).random_map(clip(), rng)
    shapes = {name: (array.shape, str(array.dtype)) for name, array in face.items()}
    crops = ((3, 48, 48, 3), "uint8")
    assert shapes == {
        "reference": ((SIDE, SIDE, 3), "uint8"),
        "target": ((3, SIDE, SIDE, 3), "uint8"),
        "driving": crops,
        "driving_clean": crops,
        "reference_face": ((48, 48, 3), "uint8"),
        "f_rts": ((3, 3), "float32"),
    }
    whole = Pair(frames=2, size=32, augment=PcAvsAugment()).random_map(clip(), rng)
    shapes = {name: (array.shape, str(array.dtype)) for name, array in whole.items()}
    assert shapes == {
        "reference": ((32, 32, 3), "uint8"),
        "target": ((2, 32, 32, 3), "uint8"),
        "driving": ((2, 32, 32, 3), "uint8"),
        "reference_driving": ((32, 32, 3), "uint8"),
    }


def test_f_rts_is_of_the_boxes_before_augmentation_whatever_the_size():
    for size in (None, 128, 32):
        pair = Pair(frames=2, size=size, flip=0.0)
        for seed in range(5):
            reference, start = pair._picked(LENGTH, FPS, np.random.default_rng(seed))
            got = pair.random_map(clip(), np.random.default_rng(seed))
            expected = faces.f_rts(boxes()[start : start + 2], boxes()[reference])
            np.testing.assert_allclose(got["f_rts"], expected, atol=1e-5)


def test_turning_turns_everything_together():
    ruler = np.zeros((LENGTH, SIDE, SIDE, 3), np.uint8)
    ruler[...] = 3 * np.arange(SIDE)[:, None]  # brighter to the right
    element = {**clip(), "video": ruler}
    for seed in range(8):
        pairs = [
            Pair(frames=2, flip=flip, augmented=False).random_map(
                element, np.random.default_rng(seed)
            )
            for flip in (0.0, 1.0)
        ]
        plain, turned = pairs
        for name in ("reference", "target", "driving", "driving_clean", "reference_face"):
            np.testing.assert_allclose(
                turned[name].astype(int), plain[name][..., ::-1, :].astype(int), atol=1
            )
        np.testing.assert_allclose(turned["f_rts"], plain["f_rts"] * [1, -1, 1], atol=1e-5)


def test_a_shared_draw_keeps_the_two_inputs_alike():
    element = {**clip(), "video": np.repeat(levels()[12:13], LENGTH, 0)}
    element["video"][..., 20:40, 0] = 200
    recipe = PcAvsAugment(sharpen=1.0)
    for shared in (True, False):
        got = Pair(augment=recipe, shared=shared, flip=0.0).random_map(
            element, np.random.default_rng(1)
        )
        assert np.array_equal(got["driving"][0], got["reference_driving"]) == shared


def test_through_the_loader_and_again(folder):
    settings = {"gap": 0.2, "augment": {"size": 32}}
    source = make_source("portraits", directory=folder, random=True, pair=settings)
    options = {"batch_size": 4, "seed": 3, "transforms": source.transforms}
    with Loader(source, **options) as loader:
        batches = list(itertools.islice(loader.iterate(), 6))
    assert batches[0]["driving"].shape == (4, 1, 32, 32, 3)
    pairs = [p for b in batches for p in zip(shown(b["reference"]), shown(b["target"][:, 0]))]
    assert all(abs(a - b) >= 6 for a, b in pairs) and len(set(pairs)) > 15
    again = Loader(source, **options).batch(4)
    for name, array in batches[4].items():
        np.testing.assert_array_equal(again[name], array)
    still = PortraitSource(folder, pair=settings)
    assert still.transforms == () and still[0]["driving"].shape == (1, 32, 32, 3)
    copy = pickle.loads(pickle.dumps(still))
    assert copy.fingerprint == still.fingerprint != source.fingerprint and len(copy) == 8
    np.testing.assert_array_equal(copy[1]["f_rts"], still[1]["f_rts"])


def test_heads_know_their_boxes():
    """Compares the boxes with the skin, the pixels that change when only the colour of the skin does."""
    rng = np.random.default_rng(0)
    size = 128
    motion = heads.sample_motion(rng, 60)[::12]
    motion[:, [heads.MOTION_COLUMN[k] for k in ("yaw", "pitch", "roll")]] = 0
    for _ in range(4):
        who = {**heads.sample_identity(rng), "beard": 0, "hair_style": 0, "glasses": 0}
        who["ear_size"] = 0.75
        box = heads.face_boxes(who, motion, size)
        light, dark = (heads.render({**who, "skin": s}, motion, size).astype(int) for s in (0, 1))
        skin = np.abs(light - dark).max(-1) > 40
        for mask, (x0, y0, x1, y1) in zip(skin, box):
            # From the brows down to where the ears begin only the face is skin, nearly at its widest.
            columns = np.flatnonzero(mask[int(y0) : int(y0 + 0.18 * (y1 - y0))].any(0))
            assert abs(columns[0] - x0) < 2 and abs(columns[-1] + 1 - x1) < 2
            assert mask[int(y1) - 3, int((x0 + x1) / 2)]  # the skin reaches down to the chin
        centre = (box[:, :2] + box[:, 2:]) / 2
        assert np.all((centre > 0) & (centre < size))
    # The boxes move and grow as the motion says.
    at = np.zeros((3, len(heads.MOTION_FACTORS)), np.float32)
    at[:, heads.MOTION_COLUMN["scale"]] = 1, 1.1, 1
    at[2, heads.MOTION_COLUMN["x"]] = 0.1
    box = heads.face_boxes(who, at, 200)
    side = box[:, 2] - box[:, 0]
    np.testing.assert_allclose(side / side[0], [1, 1.1, 1], rtol=1e-5)
    np.testing.assert_allclose(box[2] - box[0], [20, 0, 20, 0], atol=1e-3)
    larger = heads.face_boxes(who, at, 400)
    np.testing.assert_allclose(larger, 2 * box, rtol=1e-5)


def test_pairs_of_heads_through_the_loader():
    clips = {"size": 48, "frames": 8, "clips": 6, "fps": 12.5}
    pair = {"frames": 2, "gap": None, "augment": {"size": 32}}
    source = make_source("head_portraits", random=True, pair=pair, **clips)
    with Loader(source, batch_size=3, transforms=source.transforms) as loader:
        batch = next(iter(loader.iterate()))
    assert batch["driving"].shape == (3, 2, 32, 32, 3) and batch["f_rts"].shape == (3, 2, 3)
    still = make_source("head_portraits", pair={"augment": {"size": 32}}, **clips)
    element = still[2]
    boxes_of = heads.face_boxes(still.clips.identity(2), still.clips.motion(2), 48)
    np.testing.assert_allclose(element["f_rts"], faces.f_rts(boxes_of[1:2], boxes_of[0]), atol=1e-5)
    np.testing.assert_array_equal(element["reference"], still.clips.video(2)[0])
    assert pickle.loads(pickle.dumps(still)).fingerprint == still.fingerprint


def test_a_batch_of_pairs_of_heads_is_drawn_in_one_call(monkeypatch):
    drawn = []
    draw = heads.render_many

    def counted(identities, motions, size):
        drawn.append(len(identities))
        return draw(identities, motions, size)

    clips = {"size": 16, "frames": 8, "clips": 6}
    options = {"random": True, "pair": {"recipe": "pcavs"}}
    cached = make_source("head_portraits", cache=True, **options, **clips)
    fresh = make_source("head_portraits", **options, **clips)
    monkeypatch.setattr(heads, "render_many", counted)
    batches = []
    for source in (cached, fresh):
        loader = Loader(source, batch_size=3, shuffle=False, transforms=source.transforms)
        batches.append(loader.batch(1))
    assert drawn == [3, 1, 1, 1]
    for name in batches[1]:
        np.testing.assert_array_equal(batches[0][name], batches[1][name])


def test_pairs_of_sprites_take_the_whole_picture_as_the_face(sheets_dir):
    source = make_source("sprite_portraits", sheets_dir=sheets_dir, pair={"augment": {"size": 64}})
    element, video = source[5], source.clips[5]["video"]
    np.testing.assert_array_equal(element["reference"], video[0])
    np.testing.assert_array_equal(element["target"][0], video[1])
    np.testing.assert_allclose(element["f_rts"], [[0, 0, 1]], atol=1e-6)
    assert len(source) == len(source.clips)


def test_what_does_not_fit_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="recipe 'x': choose one of face, pcavs"):
        make_pair(True, {"recipe": "x"})
    with pytest.raises(ConfigError, match="unexpected keyword argument 'huee'"):
        make_pair(True, {"augment": {"huee": 1}})
    with pytest.raises(ConfigError, match="unexpected keyword argument 'frame'"):
        PortraitSource(folder, pair={"frame": 1})
    with pytest.raises(ConfigError, match="frames >= 1"):
        make_pair(True, {"frames": 0})
    with pytest.raises(ConfigError, match="do not hold 30 target frames"):
        PortraitSource(folder, pair={"frames": 30})
    with DatasetWriter(tmp_path, "clips") as writer:
        plain = clip()
        del plain["boxes"]
        writer.write("train", plain)
    with pytest.raises(DatasetError, match="expected clips with their faces' boxes"):
        PortraitSource(tmp_path)
    assert len(PortraitSource(tmp_path, pair={"recipe": "pcavs"})) == 1
