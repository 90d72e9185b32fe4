"""Heads: symmetries, locality and anti-aliasing, checked against geometry rather than recordings."""

import numpy as np
import pytest

from vidmotion.data import heads
from vidmotion.data.heads import IDENTITY_FACTORS, MOTION_COLUMN, MOTION_FACTORS, raster

N_MOTION = len(MOTION_FACTORS)


def neutral(frames=1, **changes):
    """Returns a still motion facing the viewer, with named factors changed (scalars or (frames,))."""
    motion = np.zeros((frames, N_MOTION), np.float32)
    motion[:, MOTION_COLUMN["scale"]] = 1.0
    for name, value in changes.items():
        motion[:, MOTION_COLUMN[name]] = value
    return motion


def plain(seed=0, **changes):
    """Returns a sampled identity with short hair and no extras, before a flat background."""
    identity = heads.sample_identity(np.random.default_rng(seed))
    identity |= {"hair_style": 2, "beard": 0, "glasses": 0, "freckles": 0, "background": 0}
    return identity | {"hair_colour": 0, "background_colour": 1} | changes


def samples(n, frames, stream=0):
    for k in range(n):
        rng = np.random.default_rng((stream, k))
        yield heads.sample_identity(rng), heads.sample_motion(rng, frames)


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int))


def test_render_shape_and_determinism():
    identity, motion = next(samples(1, 3))
    video = heads.render(identity, motion, 32)
    assert video.shape == (3, 32, 32, 3) and video.dtype == np.uint8
    np.testing.assert_array_equal(video, heads.render(identity, motion, 32))


@pytest.mark.parametrize("size", [32, 48])
def test_a_frame_depends_on_its_own_motion_only(size):
    """A frame has the same bits whatever is drawn with it: bounding boxes and chunks leave no trace."""
    for identity, motion in samples(16, 6):
        motion = motion[[0, 5, 2, 3, 4, 1]]
        together = heads.render(identity, motion, size)
        for k in (0, 3, 5):
            alone = heads.render(identity, motion[k : k + 1], size)
            np.testing.assert_array_equal(together[k], alone[0])


def test_long_clips_are_chunked_without_a_seam(monkeypatch):
    identity, motion = next(samples(1, 40, stream=4))
    monkeypatch.setattr(heads, "_CHUNK", 16 * 64 * 64)
    video = heads.render(identity, motion, 64)  # 16 frames to a chunk
    np.testing.assert_array_equal(video[13:19], heads.render(identity, motion[13:19], 64))


@pytest.mark.parametrize("size", [17, 64])
def test_people_drawn_together_are_drawn_as_alone(size):
    """Every bit is the same, for clips of any length and for all hair styles, clothes, beards and glasses."""
    people = [who for who, _ in samples(48, 1, stream=7)]
    for name in (
        "hair_style",
        "clothes",
        "beard",
        "glasses",
        "freckles",
        "background",
        "nose_shape",
    ):
        values = next(f.values for f in IDENTITY_FACTORS if f.name == name)
        assert {who[name] for who in people} == set(range(values))
    motions = [motion[: 1 + k % 3] for k, (_, motion) in enumerate(samples(48, 3, stream=7))]
    together = heads.render_many(people, motions, size)
    for who, motion, video in zip(people, motions, together):
        np.testing.assert_array_equal(video, heads.render(who, motion, size))


def test_a_layer_is_drawn_once_for_all_who_have_it(monkeypatch):
    """The number of layers opened depends on the choices of hair, clothes and so on, not on the number of faces: this
    makes many faces cheap. One face has 16 to 26 layers; the eight hair styles and the other choices bring 256 faces to
    fewer than 80."""
    opened = []
    patch = raster.Canvas.patch

    def counted(*arguments):
        opened.append(1)
        return patch(*arguments)

    monkeypatch.setattr(raster.Canvas, "patch", counted)
    people, motions = zip(*samples(128, 2, stream=8))
    heads.render(people[0], motions[0], 16)
    alone = len(opened)
    opened.clear()
    heads.render_many(people, motions, 16)  # at this size all faces are in one chunk
    assert 16 <= alone <= 26 and len(opened) < 80


def test_moving_by_whole_pixels_shifts_the_picture():
    size, step = 64, 5
    motion = neutral(2, yaw=0.3, roll=0.2, mouth_open=0.4)
    motion[1, MOTION_COLUMN["x"]] = step / size
    before, after = heads.render(plain(), motion, size)
    assert difference(before[:, :-step], after[:, step:]).max() <= 1
    assert difference(before, after).max() > 50
    motion = neutral(2, pitch=-0.2)
    motion[1, MOTION_COLUMN["y"]] = step / size
    before, after = heads.render(plain(), motion, size)
    assert difference(before[:-step], after[step:]).max() <= 1


def test_scale_magnifies_about_the_head():
    """At scale 1.15 a point is 1.15 times as far from the head's middle, (0.5, 0.46) of the side. This is measured on
    the outline of a bald head, whose crown is one head unit, 0.27, above the middle."""
    size = 200
    for scale in (0.85, 1.0, 1.15):
        video = heads.render(plain(hair_style=0), neutral(scale=scale), size)
        column = difference(video[0, :, size // 2], video[0, 0, 0]).sum(-1)
        crown = np.argmax(column > 60)
        assert abs(crown - size * (0.46 - 0.27 * scale)) <= 1.5


@pytest.mark.parametrize("style", range(8))
def test_mirrored_identity_and_motion_give_the_mirrored_picture(style):
    flip = {"yaw", "roll", "x", "gaze_x"}
    swap = {"lid_left": "lid_right", "brow_left": "brow_right"}
    for seed, (_, motion) in enumerate(samples(2, 4, stream=style)):
        identity = plain(seed, hair_style=style, glasses=seed + 1, beard=seed + 2, freckles=1)
        other = motion.copy()
        for name in flip:
            other[:, MOTION_COLUMN[name]] *= -1
        for a, b in swap.items():
            a, b = MOTION_COLUMN[a], MOTION_COLUMN[b]
            other[:, [a, b]] = other[:, [b, a]]
        mirror = identity | {k: -identity[k] for k in ("light", "hair_part")}
        error = difference(
            heads.render(identity, motion, 48), heads.render(mirror, other, 48)[:, :, ::-1]
        )
        assert error.max() <= 1


@pytest.mark.parametrize("size", [32, 64])
def test_coverage_is_that_of_an_average_over_finer_pixels(size):
    """A pixel is compared with the average of 4 x 4 pixels of a finer picture, which is what its area sees."""
    ours, nearest = [], []
    for identity, motion in samples(10, 2, stream=1):
        coarse = heads.render(identity, motion, size)
        fine = heads.render(identity, motion, 4 * size)
        area = fine.reshape(2, size, 4, size, 4, 3).mean((2, 4))
        ours.append(np.abs(coarse - area))
        nearest.append(np.abs(fine[:, 2::4, 2::4] - area))  # without anti-aliasing, for comparison
    assert np.mean(ours) < np.mean(nearest) / 3
    assert np.quantile(ours, 0.99) < np.quantile(nearest, 0.99) / 2


def test_closing_the_eyes_hides_the_iris():
    """Two iris colours give different pictures, unless both eyes are closed."""
    a, b = plain(iris_colour=3), plain(iris_colour=0)
    for motion, visible in (
        (neutral(), True),
        (neutral(lid_left=1.0), True),
        (neutral(lid_left=1.0, lid_right=1.0), False),
        (neutral(lid_left=1.0, lid_right=1.0, yaw=0.4, roll=-0.3, gaze_y=1.0), False),
    ):
        changed = difference(heads.render(a, motion, 128), heads.render(b, motion, 128)).max()
        assert changed > 40 if visible else changed == 0


def box_of_change(name, values, size=128):
    """Returns the first and last row, then column, that a motion factor changes, as shares of the side."""
    motion = neutral(2)
    motion[:, MOTION_COLUMN[name]] = values
    a, b = heads.render(plain(), motion, size)
    changed = difference(a, b).max(-1) > 0
    rows, columns = np.nonzero(changed.any(1))[0], np.nonzero(changed.any(0))[0]
    return [v / size for v in (rows[0], rows[-1], columns[0], columns[-1])]


@pytest.mark.parametrize(
    ("name", "values", "rows", "columns"),
    [
        # The mouth is 0.62 head units of 0.27 below the middle (0.5, 0.46): at 0.63 of the side.
        ("mouth_open", (0, 1), (0.57, 0.74), (0.38, 0.62)),
        ("smile", (-1, 1), (0.57, 0.74), (0.38, 0.62)),
        ("lid_left", (0, 1), (0.38, 0.55), (0.3, 0.5)),
        ("lid_right", (0, 1), (0.38, 0.55), (0.5, 0.7)),
        ("gaze_x", (-1, 1), (0.38, 0.55), (0.3, 0.7)),
        ("gaze_y", (-1, 1), (0.38, 0.55), (0.3, 0.7)),
        ("brow_left", (-1, 1), (0.28, 0.45), (0.3, 0.5)),
        ("brow_right", (-1, 1), (0.28, 0.45), (0.5, 0.7)),
    ],
)
def test_expressions_change_their_own_region_only(name, values, rows, columns):
    top, bottom, left, right = box_of_change(name, values)
    assert rows[0] <= top < bottom <= rows[1]
    assert columns[0] <= left < right <= columns[1]


def test_turning_moves_the_eyes_by_their_depth_and_gaze_moves_the_iris():
    """Checks parallax: turned by yaw, a point (x, z) is seen at x cos + z sin, so that on average the two eyes move by
    z sin(yaw); z is the ellipsoid's depth where they sit. An eye is found as the centroid of the pixels that change
    with the iris colour while the other eye is closed."""
    size, yaw = 128, 0.3
    a, b = plain(iris_colour=3), plain(iris_colour=0)

    def eye(lid, **pose):
        motion = neutral(**{lid: 1.0}, **pose)
        weight = difference(heads.render(a, motion, size), heads.render(b, motion, size))
        weight = weight.sum((0, 1, 3))
        return weight @ np.arange(size) / weight.sum() / (0.27 * size)  # head units

    lids = "lid_left", "lid_right"
    shift = np.mean([eye(lid, yaw=yaw) - eye(lid) for lid in lids])
    x = 0.37 * a["eye_spacing"] / (0.84 * a["face_width"])
    depth = 0.85 * np.sqrt(1 - x**2 - (0.06 / 1.1) ** 2)
    assert shift == pytest.approx(depth * np.sin(yaw), rel=0.1)
    for lid in lids:
        assert eye(lid, gaze_x=1.0) - eye(lid, gaze_x=-1.0) > 0.05


@pytest.mark.parametrize("factor", MOTION_FACTORS, ids=lambda f: f.name)
def test_each_motion_factor_changes_the_picture(factor):
    motion = neutral(2)
    motion[:, MOTION_COLUMN[factor.name]] = factor.low, factor.high
    a, b = heads.render(plain(), motion, 64)
    assert difference(a, b).max() > 40


@pytest.mark.parametrize("factor", IDENTITY_FACTORS, ids=lambda f: f.name)
def test_each_value_of_each_identity_factor_changes_the_picture(factor):
    base = plain(1, background=1, clothes=4, skin=0.3)
    count = factor.values or 2
    values = np.linspace(factor.low, factor.high, count)
    cast = int if factor.kind == "discrete" else float
    pictures = [
        heads.render(base | {factor.name: cast(v)}, neutral(yaw=0.2, mouth_open=0.2), 64)
        for v in values
    ]
    for i in range(count):
        for j in range(i):
            assert difference(pictures[i], pictures[j]).max() > 12


def test_sampled_motion_is_smooth_in_range_and_a_prefix():
    lows = np.array([f.low for f in MOTION_FACTORS])
    highs = np.array([f.high for f in MOTION_FACTORS])
    seen = []
    for k in range(20):
        motion = heads.sample_motion(np.random.default_rng(k), 100)
        assert motion.dtype == np.float32 and motion.shape == (100, N_MOTION)
        step = np.abs(np.diff(motion, axis=0)) / (highs - lows)
        fast = [
            MOTION_COLUMN[n] for n in ("mouth_open", "lid_left", "lid_right", "gaze_x", "gaze_y")
        ]
        assert step[:, fast].max() < 0.5
        # Motions are sinusoids of at most 0.8 Hz, steepened 1.6 times: the bound is the share of the range in 1/25 s.
        assert np.delete(step, fast, 1).max() < np.pi * 0.8 * 1.6 / 25
        shorter = heads.sample_motion(np.random.default_rng(k), 7)
        np.testing.assert_allclose(shorter, motion[:7], atol=1e-6)
        seen.append(motion)
    seen = np.concatenate(seen)
    spread = (seen.max(0) - seen.min(0)) / (highs - lows)
    assert (spread > 0.8).all() and (seen >= lows - 1e-6).all() and (seen <= highs + 1e-6).all()


def test_sampled_factors_are_independent_across_clips():
    """Correlations between identity and motion factors over clips stay at chance level."""
    source = heads.HeadsSource(16, 4, 400, seed=5)
    who = np.stack([heads.identity_vector(source.identity(i)) for i in range(400)])
    how = np.stack([source.motion(i).mean(0) for i in range(400)])
    both = np.corrcoef(who.T, how.T)[: who.shape[1], who.shape[1] :]
    # Of about 1200 correlations of standard deviation 1/20, the largest is near 3.4 standard deviations.
    assert np.abs(both).max() < 5 / 20 and abs(both.std() - 1 / 20) < 0.01


def test_identity_vector_layout():
    identity = heads.sample_identity(np.random.default_rng(0))
    vector = heads.identity_vector(identity | {"skin": 0.75, "glasses": 2})
    assert vector.shape == (heads.IDENTITY_DIM,) and vector.dtype == np.float32
    assert vector[heads.IDENTITY_SLICES["skin"]] == pytest.approx([0.5])
    np.testing.assert_array_equal(vector[heads.IDENTITY_SLICES["glasses"]], [0, 0, 1])
    assert heads.IDENTITY_DIM == 15 + 8 + 10 + 7 + 3 + 4 + 3 + 2 + 6 + 10 + 6 + 9


def test_source_items_are_a_function_of_seed_split_and_index():
    source = heads.HeadsSource(16, 3, 5, seed=7, identities=2)
    item = heads.HeadsSource(16, 3, 5, seed=7, identities=2)[3]
    assert {k: (v.shape, v.dtype.name) for k, v in item.items()} == {
        "video": ((3, 16, 16, 3), "uint8"),
        "identity": ((heads.IDENTITY_DIM,), "float32"),
        "motion": ((3, N_MOTION), "float32"),
        "seen": ((3, 40), "bool"),
        "identity_id": ((), "int32"),
    }
    for i in (0, 3):
        again = source[i]
    for key in item:
        np.testing.assert_array_equal(item[key], again[key])
    assert [int(source[i]["identity_id"]) for i in range(5)] == [0, 1, 0, 1, 0]
    np.testing.assert_array_equal(source[1]["identity"], source[3]["identity"])
    assert difference(source[1]["motion"] * 100, source[3]["motion"] * 100).max() > 0
    np.testing.assert_array_equal(
        source[2]["video"], heads.HeadsSource(16, 3, 9, seed=7, identities=2)[2]["video"]
    )


def test_splits_and_seeds_share_no_identity_and_no_motion():
    sources = [heads.HeadsSource(16, 2, 200, seed=s, split=p) for s in (0, 1) for p in heads.SPLITS]
    vectors = np.stack([heads.identity_vector(s.identity(i)) for s in sources for i in range(200)])
    motions = np.stack([s.motion(i) for s in sources for i in range(200)])
    assert len(np.unique(vectors, axis=0)) == len(np.unique(motions, axis=0)) == 800


def test_the_cache_is_filled_by_reading():
    plain_source = heads.HeadsSource(16, 2, 3)
    cached = heads.HeadsSource(16, 2, 3, cache=True)
    expected = np.stack([plain_source[i]["video"] for i in range(3)])
    np.testing.assert_array_equal(cached[1]["video"], expected[1])  # drawn when it is read
    np.testing.assert_array_equal([cached[i]["video"] for i in range(3)], expected)
    with pytest.raises(ValueError, match="read-only"):
        cached[0]["video"][0] = 0


def test_fill_draws_what_the_cache_lacks_together(monkeypatch):
    drawn = []
    draw = heads.render_many

    def counted(identities, motions, size):
        drawn.append(len(identities))
        return draw(identities, motions, size)

    monkeypatch.setattr(heads, "render_many", counted)
    source = heads.HeadsSource(16, 2, 9, identities=4, cache=True)
    source.fill([5, 2, 5])
    source.fill([2, 7, 0, 5])
    source.fill([7, 2])
    assert drawn == [2, 2]
    fresh = heads.HeadsSource(16, 2, 9, identities=4)
    for i in (2, 5, 7, 0, 1):  # the last one was not filled: it is drawn when it is read
        item, expected = source[i], fresh[i]
        for key in expected:
            np.testing.assert_array_equal(item[key], expected[key])
    item["motion"][:] = 0  # the reader may change its own copy
    np.testing.assert_array_equal(source.motion(1), fresh.motion(1))
    drawn.clear()
    fresh.fill([1, 2])
    assert not drawn
    with pytest.raises(IndexError, match="clip 9"):
        source.fill([0, 9])


def test_fingerprint_follows_every_argument_but_the_cache():
    base = {
        "size": 16,
        "frames": 2,
        "clips": 3,
        "seed": 0,
        "split": "train",
        "identities": 2,
        "fps": 25.0,
    }
    changes = {
        "size": 17,
        "frames": 3,
        "clips": 4,
        "seed": 1,
        "split": "eval",
        "identities": 3,
        "fps": 12.5,
    }
    prints = {heads.HeadsSource(**(base | {k: v})).fingerprint for k, v in changes.items()}
    first = heads.HeadsSource(**base).fingerprint
    assert len(prints | {first}) == len(changes) + 1
    assert heads.HeadsSource(**base, cache=True).fingerprint == first
    assert int(first, 16) >= 0 and len(first) == 16


def test_swap_is_the_content_of_one_and_the_motion_of_the_other():
    source = heads.HeadsSource(32, 8, 12, seed=3)
    np.testing.assert_array_equal(source.swap(2, 2), source[2]["video"])
    # Either input in place of the swap is clearly wrong: a background alone would agree to within a few levels.
    errors = []
    for i in range(0, 12, 2):
        truth = source.swap(i, i + 1)
        errors.append([difference(truth, source[k]["video"]).mean() for k in (i, i + 1)])
    content, motion = np.mean(errors, 0)
    assert content > 12 and motion > 25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 8}, "size is 8; give at least 16"),
        ({"frames": 0}, "frames is 0"),
        ({"clips": 0}, "clips is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 0.5}, "give an integer"),
        ({"split": "test"}, "one of train, eval"),
        ({"identities": 9}, "more than the 3 clips"),
        ({"fps": 0}, "positive"),
    ],
)
def test_source_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        heads.HeadsSource(**({"size": 16, "frames": 2, "clips": 3} | arguments))


def test_source_refuses_an_index_outside():
    for i in (-1, 3):
        with pytest.raises(IndexError, match="3 clips"):
            heads.HeadsSource(16, 2, 3)[i]


def test_render_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match=r"shape \(1, 3\).*yaw"):
        heads.render(plain(), np.zeros((1, 3)), 32)
    with pytest.raises(ValueError, match=r"smile at frame 1 is 1\.5"):
        heads.render(plain(), neutral(2, smile=[0, 1.5]), 32)
    with pytest.raises(ValueError, match="yaw at frame 0 is nan"):
        heads.render(plain(), neutral(yaw=np.nan), 32)
    with pytest.raises(ValueError, match="skin is 2"):
        heads.render(plain(skin=2), neutral(), 32)
    with pytest.raises(ValueError, match=r"glasses is 0\.5"):
        heads.render(plain(glasses=0.5), neutral(), 32)
    with pytest.raises(ValueError, match=r"unknown \['hat'\]"):
        heads.render(plain(hat=1), neutral(), 32)
    with pytest.raises(ValueError, match="got 2 identities and 1 motions"):
        heads.render_many([plain(), plain()], [neutral()], 32)
    with pytest.raises(ValueError, match="frames is 0"):
        heads.sample_motion(np.random.default_rng(0), 0)


# -- which factors are seen -----------------------------------------------------------------------


def shown(identity, motion, name):
    return heads.seen(identity, motion)[:, heads.FACTORS.index(name)]


@pytest.mark.parametrize("name", ["hair_volume", "hair_part", "ear_size"])
def test_a_factor_of_the_hair_is_seen_where_it_changes_the_picture(name):
    low, high = next((f.low, f.high) for f in IDENTITY_FACTORS if f.name == name)
    found = []
    for style in range(8):
        who = plain(hair_style=style)
        ends = [heads.render(who | {name: value}, neutral(), 64) for value in (low, high)]
        (is_shown,) = shown(who, neutral(), name)
        assert is_shown == (difference(*ends).max() > 0), style
        found.append(is_shown)
    assert 0 < sum(found) < 8


@pytest.mark.parametrize("name", ["iris_colour", "gaze_x"])
def test_irises_are_seen_until_the_lids_have_passed_them(name):
    """Compares the mask with renders while the lids close in steps of a twentieth, for eyes that look up, ahead and
    down."""
    who, closed = plain(eye_size=1.2), np.linspace(0, 1, 21)
    turns = set()
    for gaze in (-1.0, 0.0, 1.0):
        motion = neutral(21, lid_left=closed, lid_right=closed, gaze_y=gaze)
        if name == "iris_colour":
            ends = [heads.render(who | {name: value}, motion, 128) for value in (0, 3)]
        else:
            sides = [motion.copy(), motion.copy()]
            for side, value in zip(sides, (-1, 1)):
                side[:, MOTION_COLUMN[name]] = value
            ends = [heads.render(who, side, 128) for side in sides]
        changed = difference(*ends).max(axis=(1, 2, 3))
        mask = shown(who, motion if name == "iris_colour" else sides[0], name)
        last = np.flatnonzero(mask).max()
        assert mask[: last + 1].all()
        slight = changed[0] / 10
        assert (changed[: last - 1] > slight).all() and (changed[last + 2 :] < slight).all()
        turns.add(last)
    assert len(turns) == 3  # the lower the eyes look, the later the irises disappear
    one_open = neutral(lid_left=1.0)
    assert shown(who, one_open, name).all()


def test_all_other_factors_are_seen_always():
    hidden = {"hair_volume", "hair_part", "ear_size", "iris_colour", "gaze_x", "gaze_y"}
    assert len(heads.FACTORS) == 40
    for identity, motion in samples(8, 12):
        mask = heads.seen(identity, motion)
        assert mask.shape == (12, 40)
        for name in set(heads.FACTORS) - hidden:
            assert mask[:, heads.FACTORS.index(name)].all()
    source = heads.HeadsSource(16, 2, 3)
    np.testing.assert_array_equal(
        source[1]["seen"], heads.seen(source.identity(1), source.motion(1))
    )
