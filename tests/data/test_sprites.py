"""Sprites: pictures as PIL composes them, the published order and split, and figures measured on the public sheets."""

import itertools
import pickle

import numpy as np
import pytest
from PIL import Image

from vidmotion.data import sprites
from vidmotion.data.pipeline import Loader
from vidmotion.data.records import DatasetError
from vidmotion.open_run import load_config

# The generator's cells: y in pixels of the rows of (front, left, right), then the columns of the eight frames.
CELLS = {
    "walk": ((640, 576, 704), (8, 1, 2, 3, 4, 5, 6, 7)),
    "spellcard": ((128, 64, 192), (0, 1, 2, 3, 4, 5, 4, 6)),
    "slash": ((896, 832, 960), (0, 1, 2, 3, 4, 5, 4, 0)),
}
LAYERS = ("body", "bottomwear", "topwear", "hair")
USED = [f"{layer}/{v}.png" for layer in LAYERS for v in range(6)] + ["shoes/1.png"]


def pil_sheet(folder, attributes):
    """Composes a character with PIL, whole sheets at a time."""
    canvas = Image.new("RGBA", (832, 1344), (0, 0, 0, 255))
    names = [f"{layer}/{v}.png" for layer, v in zip(LAYERS, attributes)]
    for name in [*names, "shoes/1.png"]:
        canvas = Image.alpha_composite(canvas, Image.open(folder / name).convert("RGBA"))
    return canvas


def pil_clip(sheet, action, direction):
    rows, columns = CELLS[action]
    y = rows[("front", "left", "right").index(direction)]
    cells = [sheet.crop((64 * k, y, 64 * k + 64, y + 64)).convert("RGB") for k in columns]
    return np.stack([np.asarray(cell) for cell in cells])


@pytest.fixture(scope="module")
def fake_sheets(tmp_path_factory):
    """Writes sheets of 16-pixel squares in random colours and opacities."""
    folder = tmp_path_factory.mktemp("sheets")
    rng = np.random.default_rng(0)
    for name in USED:
        squares = rng.integers(0, 256, (84, 52, 4), np.uint8)
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(squares).resize((832, 1344), Image.Resampling.NEAREST).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def real(sheets_dir):
    return sprites.Sheets(sheets_dir)


def test_ids_and_attributes_are_inverse_and_skin_is_slowest():
    every = np.array(list(itertools.product(range(6), repeat=4)))
    np.testing.assert_array_equal(sprites.attributes_of(np.arange(1296)), every)
    np.testing.assert_array_equal(sprites.character_of(every), np.arange(1296))
    assert sprites.attributes_of(216 * 5 + 36 * 4 + 6 * 3 + 2).tolist() == [5, 4, 3, 2]
    with pytest.raises(ValueError, match="1296"):
        sprites.attributes_of(1296)


def test_class_labels():
    labels = [sprites.class_of(a, d) for a in sprites.ACTIONS for d in sprites.DIRECTIONS]
    assert labels == list(range(9))
    assert sprites.class_of("slash", "front") == 6
    with pytest.raises(ValueError, match="walk, spellcard, slash"):
        sprites.class_of("run", "front")


def test_split_is_the_published_one():
    train, test = sprites.split_characters("train"), sprites.split_characters("test")
    assert train[:5].tolist() == [1116, 1135, 17, 469, 1293]
    assert test[:5].tolist() == [884, 1285, 252, 297, 947]
    assert (len(train), len(test)) == (1000, 296)
    assert len(np.union1d(train, test)) == 1296
    counts = [np.bincount(column, minlength=6) for column in sprites.attributes_of(test).T]
    assert (np.min(counts), np.max(counts)) == (43, 57)
    with pytest.raises(ValueError, match="train, test"):
        sprites.split_characters("valid")


def test_clip_order_is_by_class_then_shuffled_train_first():
    rng = np.random.RandomState(0)
    for split, count in (("train", 9000), ("test", 2664)):
        characters = sprites.split_characters(split).tolist()
        listed = [(c, label) for label in range(9) for c in characters]
        rng.shuffle(order := np.arange(count))
        found = zip(*(column.tolist() for column in sprites.clips_of(split)))
        assert list(found) == [listed[k] for k in order]


def test_blending_is_pil_for_every_alpha_colour_and_ground():
    colour, alpha = np.meshgrid(np.arange(256), np.arange(256))
    layer = np.stack([colour, colour, colour, alpha], -1).astype(np.uint8)
    ink = (colour * alpha + 128).astype(np.uint16)[None, ..., None]
    below = (255 - alpha).astype(np.uint16)[None, ..., None]
    for ground in range(256):
        canvas = Image.new("RGBA", (256, 256), (ground, ground, ground, 255))
        expected = np.asarray(Image.alpha_composite(canvas, Image.fromarray(layer)))
        found = sprites._over(np.full((256, 256, 1), ground, np.uint8), (ink, below), 0)
        np.testing.assert_array_equal(found[..., 0], expected[..., 0])


def test_clips_are_those_that_pil_composes(fake_sheets):
    sheets = sprites.Sheets(fake_sheets)
    for attributes in ((0, 1, 2, 3), (5, 5, 0, 1)):
        sheet = pil_sheet(fake_sheets, attributes)
        for action, direction in itertools.product(CELLS, ("front", "left", "right")):
            clip = sprites.render_clip(sheets, *attributes, action, direction)
            assert clip.dtype == np.uint8 and clip.shape == (8, 64, 64, 3)
            np.testing.assert_array_equal(clip, pil_clip(sheet, action, direction))
    with pytest.raises(ValueError, match=r"0\.\.8"):
        sheets.render(0, 9)


def test_source_elements_and_pickling(fake_sheets):
    source = sprites.SpritesSource(fake_sheets, "test")
    again = pickle.loads(pickle.dumps(source))
    assert len(source) == len(again) == 2664 and source.fingerprint == again.fingerprint
    element = again[7]
    kinds = {name: (value.dtype, value.shape) for name, value in element.items()}
    assert kinds == {
        "video": (np.uint8, (8, 64, 64, 3)),
        "action": (np.int32, ()),
        "attributes": (np.int32, (4,)),
        "character": (np.int32, ()),
    }
    action, direction = divmod(int(element["action"]), 3)
    names = sprites.ACTIONS[action], sprites.DIRECTIONS[direction]
    sheet = pil_sheet(fake_sheets, element["attributes"])
    np.testing.assert_array_equal(element["video"], pil_clip(sheet, *names))
    assert sprites.character_of(element["attributes"]) == element["character"]
    assert sprites.SpritesSource(fake_sheets, "train").fingerprint != source.fingerprint


def test_errors_name_the_sheet(fake_sheets, tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere: no such folder.*Fetch it again"):
        sprites.Sheets(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="empty"):
        sprites.Sheets(tmp_path)
    for name in USED:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(fake_sheets / name)
    broken = tmp_path / "topwear/3.png"
    broken.unlink()
    with pytest.raises(DatasetError, match=r"topwear/3\.png: this sheet is missing"):
        sprites.Sheets(tmp_path)
    Image.new("RGBA", (832, 1000)).save(broken)
    with pytest.raises(DatasetError, match=r"3\.png: is a sheet of 832x1000.*expected 832x1344"):
        sprites.Sheets(tmp_path)
    whole = (fake_sheets / "topwear/3.png").read_bytes()
    for content in (b"not a picture", whole[: len(whole) // 2]):
        broken.write_bytes(content)
        with pytest.raises(DatasetError, match=r"topwear/3\.png: cannot be read"):
            sprites.Sheets(tmp_path)


def test_real_clips_are_those_that_pil_composes(sheets_dir, real):
    for character in (1116, 884):
        attributes = sprites.attributes_of(character)
        sheet = pil_sheet(sheets_dir, attributes)
        for action, direction in itertools.product(CELLS, ("front", "left", "right")):
            np.testing.assert_array_equal(
                sprites.render_clip(real, *attributes, action, direction),
                pil_clip(sheet, action, direction),
            )


def test_real_characters_are_distinct(real):
    assert len({real.render(character, 0).tobytes() for character in range(1296)}) == 1296
    for character in (0, 469, 1295):
        frames = np.concatenate([real.render(character, action) for action in range(9)])
        assert len(frames) == 72 and len({frame.tobytes() for frame in frames}) == 63


def test_real_pixel_statistics(sheets_dir):
    source = sprites.SpritesSource(sheets_dir, "train")
    clips = (source[k]["video"].ravel() for k in range(0, len(source), 3))
    weights = sum(np.bincount(clip, minlength=256) for clip in clips)
    weights = weights / weights.sum()
    values = np.arange(256) / 256
    mean = weights @ values
    std = np.sqrt(weights @ values**2 - mean**2)
    assert mean == pytest.approx(0.091, abs=0.002) and std == pytest.approx(0.2235, abs=0.003)
    assert mean == pytest.approx(sprites.MEAN, abs=5e-4)
    assert std == pytest.approx(sprites.STD, abs=1e-3)
    assert weights[0] == pytest.approx(0.77, abs=0.01)


def test_random_clips_begin_anywhere_in_their_loop(fake_sheets):
    fixed = sprites.SpritesSource(fake_sheets, "train")
    turned = pickle.loads(pickle.dumps(sprites.SpritesSource(fake_sheets, "train", random=True)))
    assert fixed.transforms == ()
    np.testing.assert_array_equal(turned[3]["video"], fixed[3]["video"])  # as stored
    loaders = [
        Loader(source, batch_size=1, shuffle=False, transforms=source.transforms)
        for source in (fixed, turned)
    ]
    assert loaders[0].fingerprint != loaders[1].fingerprint
    # The same clip in every round: every start occurs, and each clip read is a rotation of the stored one.
    clip, starts = fixed[0]["video"], set()
    for round_ in range(40):
        batch = loaders[1].batch(round_ * len(turned))
        (start,) = [k for k in range(8) if (np.roll(clip, -k, 0) == batch["video"][0]).all()]
        starts.add(start)
        assert batch["action"][0] == fixed[0]["action"]
    assert starts == set(range(8))  # 40 draws miss one of 8 with 4 % of all seeds
    np.testing.assert_array_equal(loaders[0].batch(len(fixed))["video"][0], clip)


def test_the_recipe_denoises_every_pose():
    # A half is four frames. One direction alone would have only the poses of frames 4 to 7 as targets, 31 to 33 of 63.
    config = load_config("sprites")
    assert config.system.cross.symmetric and config.system.sampler.window == 0
    assert config.data.train.random and "random" not in config.data.eval
