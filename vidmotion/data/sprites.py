"""The Sprites benchmark of disentangled video models, re-created from its public sheets.

1,296 characters (6 skins x 6 pants x 6 tops x 6 hairs) perform 3 actions seen from 3 directions: 11,664 clips of 8
frames of 64x64 RGB, split by character into 9,000 for training and 2,664 for testing. Cells, order and split are those
of the public generator (github.com/YingzhenLi/Sprites), which gave the data of BCD's Sprites table. The sheets are
licensed CC-BY-SA 3.0 and GPL 3. They are not part of this package; the user downloads them.

Values are uint8 in this module; the published generator divides them by `VALUE_SCALE` = 256, so that the largest value
is 255/256. `MEAN` and `STD` are those of the scaled values over the train split.
"""

import dataclasses
import hashlib
import io
from pathlib import Path

import grain
import numpy as np

from vidmotion.data.clip_source import Classes, ClipSource, Renders
from vidmotion.data.records import DatasetError

ACTIONS = ("walk", "spellcard", "slash")
DIRECTIONS = ("front", "left", "right")
ATTRIBUTES = ("skin", "pants", "top", "hair")
VARIANTS = 6  # number of values of each attribute
CHARACTERS = VARIANTS ** len(ATTRIBUTES)
CLASSES = len(ACTIONS) * len(DIRECTIONS)
FRAMES = 8
CELL = 64  # pixels: sheets are grids of cells, a frame is one cell
SHEET_SIZE = (832, 1344)  # width, height in pixels: 13 x 21 cells

VALUE_SCALE = 256.0
MEAN, STD = 0.0903, 0.2222

# For each action: the rows of (front, left, right), and the column of each frame. Walking skips column 0, in which the
# figure stands still.
_CELLS = {
    "walk": ((10, 9, 11), (8, 1, 2, 3, 4, 5, 6, 7)),
    "spellcard": ((2, 1, 3), (0, 1, 2, 3, 4, 5, 4, 6)),
    "slash": ((14, 13, 15), (0, 1, 2, 3, 4, 5, 4, 0)),
}
# Folders of the sheets, from the skin outwards; the shoes are always the same.
_LAYERS = ("body", "bottomwear", "topwear", "hair")
_SHOES = "shoes/1.png"

_SPLIT_SEED, _SHUFFLE_SEED, _TRAIN_CHARACTERS = 423, 0, 1000
SPLITS = ("train", "test")

_GET = (
    "The sheets are those of github.com/YingzhenLi/Sprites: a folder that holds body, bottomwear, "
    "topwear, hair and shoes. Fetch it again and pass its path."
)


def attributes_of(character):
    """Returns the attributes of a character.

    Args:
      character: id in 0..1295, an int or an integer array of shape (...).

    Returns:
      int32 (..., 4): skin, pants, top and hair, each in 0..5 (skin is the slowest digit).

    Raises:
      ValueError: an id is out of range.
    """
    return np.stack(np.unravel_index(character, (VARIANTS,) * 4), axis=-1).astype(np.int32)


def character_of(attributes):
    """Returns the id of a character, the inverse of `attributes_of`: integers (..., 4) -> int32 (...).

    Raises:
      ValueError: an attribute is outside 0..5.
    """
    digits = np.moveaxis(np.asarray(attributes), -1, 0)
    return np.ravel_multi_index(tuple(digits), (VARIANTS,) * 4).astype(np.int32)


def class_of(action: str, direction: str) -> int:
    """Returns the class label 3 * action + direction, in 0..8.

    Raises:
      ValueError: an unknown name.
    """
    if action not in ACTIONS or direction not in DIRECTIONS:
        raise ValueError(
            f"no such motion: {action!r}, {direction!r}; actions are {', '.join(ACTIONS)} "
            f"and directions {', '.join(DIRECTIONS)}"
        )
    return len(DIRECTIONS) * ACTIONS.index(action) + DIRECTIONS.index(direction)


def split_characters(split: str) -> np.ndarray:
    """Returns the character ids of a split, int32 (1000,) for "train" or (296,) for "test", in split order.

    Raises:
      ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"Sprites has no split {split!r}; it has {', '.join(SPLITS)}")
    order = np.random.RandomState(_SPLIT_SEED).permutation(CHARACTERS).astype(np.int32)
    return order[:_TRAIN_CHARACTERS] if split == "train" else order[_TRAIN_CHARACTERS:]


def clips_of(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Lists all clips of a split in the benchmark's order.

    Clips are listed class by class, with characters in split order, and then permuted. The permutations are drawn with
    seed 0 from one stream, first that of train, then that of test.

    Returns:
      (character, action), both int32 (n,) with n = 9000 or 2664; action is the class label 0..8.

    Raises:
      ValueError: an unknown split.
    """
    characters = split_characters(split)
    rng = np.random.RandomState(_SHUFFLE_SEED)
    order = rng.permutation(_TRAIN_CHARACTERS * CLASSES)
    if split == "test":
        order = rng.permutation((CHARACTERS - _TRAIN_CHARACTERS) * CLASSES)
    action, position = np.divmod(order, len(characters))
    return characters[position], action.astype(np.int32)


class Sheets:
    """Renders any clip of any character from its layers, which are decoded once and cut into clips.

    Attributes:
      fingerprint: hex sha256 over the sheet files that are used.
    """

    def __init__(self, directory):
        """Reads the 25 sheets that are used: indices 0..5 of four layers, and shoes 1 (0.4 s, 63 MB held).

        Raises:
          DatasetError: the folder is missing or empty; or a sheet is missing, is not a picture, or does not have
            832x1344 pixels.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise DatasetError(f"{directory}: no such folder of sprite sheets. {_GET}")
        if not any(directory.iterdir()):
            raise DatasetError(f"{directory}: this folder of sprite sheets is empty. {_GET}")
        digest = hashlib.sha256()
        body, bottom, top, hair = (
            [_read(directory / layer / f"{v}.png", digest) for v in range(VARIANTS)]
            for layer in _LAYERS
        )
        shoes = _read(directory / _SHOES, digest)
        self.fingerprint = digest.hexdigest()
        # 36 characters share each pair of body and bottom, so these are composed once: 36 x 9 clips.
        black = np.zeros((FRAMES, CELL, CELL, 3), np.uint8)
        self._base = np.empty((VARIANTS, VARIANTS, CLASSES, *black.shape), np.uint8)
        for b, p, c in np.ndindex(self._base.shape[:3]):
            self._base[b, p, c] = _over(_over(black, body[b], c), bottom[p], c)
        self._top, self._hair, self._shoes = top, hair, shoes

    def render(self, character: int, action: int) -> np.ndarray:
        """Renders one clip: black, body, bottomwear, topwear, hair and shoes, laid over each other in this order.

        Each layer blends as out = round((a * colour + (255 - a) * below) / 255) in integers, as PIL's
        `Image.alpha_composite` does over an opaque picture.

        Args:
          character: the id in 0..1295.
          action: the class label in 0..8, see `class_of`.

        Returns:
          uint8 (8, 64, 64, 3).

        Raises:
          ValueError: character or action out of range.
        """
        skin, pants, top, hair = attributes_of(character)
        if not 0 <= action < CLASSES:
            raise ValueError(f"class labels must be in 0..{CLASSES - 1}, got {action}")
        frames = self._base[skin, pants, action]
        for layer in (self._top[top], self._hair[hair], self._shoes):
            frames = _over(frames, layer, action)
        return frames


def render_clip(sheets: Sheets, body, bottom, top, hair, action: str, direction: str):
    """Renders one clip, given attributes in 0..5 each and the names of an action and a direction.

    Returns:
      uint8 (8, 64, 64, 3).

    Raises:
      ValueError: an attribute out of range or an unknown name.
    """
    return sheets.render(character_of((body, bottom, top, hair)), class_of(action, direction))


@dataclasses.dataclass(frozen=True)
class Turn(grain.transforms.RandomMap):
    """Starts a clip at a random frame. The actions are loops, so the result is still a true clip."""

    def random_map(self, element, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Rolls `video` (T, H, W, 3) by 0 to T - 1 frames, uniformly distributed."""
        start = int(rng.integers(len(element["video"])))
        return {**element, "video": np.roll(element["video"], -start, axis=0)}


class SpritesSource(ClipSource, Renders, Classes):
    """Random access to the clips of one split, rendered from the sheets on demand.

    An element holds `video` uint8 (8, 64, 64, 3); `action` int32 (), the class label 0..8; `attributes` int32 (4,):
    skin, pants, top, hair; and `character` int32 (), the id 0..1295. The order is that of `clips_of`. Rendering a clip
    takes less time than decoding it would, so nothing is cached. Pickling carries only the arguments.

    With `random`, each clip begins at a random one of its frames, drawn anew each time. The loader has the random
    numbers, so it must apply `transforms`. Otherwise `transforms` is empty.
    """

    def __init__(self, sheets_dir, split: str = "train", random: bool = False):
        """Reads the sheets. Raises: DatasetError as in `Sheets`; ValueError if the split is unknown."""
        self.classes = tuple(f"{a} {d}" for a in ACTIONS for d in DIRECTIONS)
        self.sheets_dir, self.split, self.random = str(sheets_dir), split, random
        self.transforms = (Turn(),) if random else ()
        self._character, self._action = clips_of(split)
        self._sheets = Sheets(sheets_dir)
        self.fingerprint = hashlib.sha256(
            f"sprites/{split}/{self._sheets.fingerprint}".encode()
        ).hexdigest()

    def __len__(self):
        return len(self._character)

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        character, action = self._character[index], self._action[index]
        return {
            "video": self.video(index),
            "action": action,
            "attributes": attributes_of(character),
            "character": character,
        }

    def video(self, index: int) -> np.ndarray:
        """Returns the pictures of a clip, uint8 (8, 64, 64, 3)."""
        return self.render(self._character[index], self._action[index])

    def class_of(self, element) -> int:
        """Returns the index into `classes` of an element; each class is an action seen from a direction."""
        return int(element["action"])

    def origin(self, index: int) -> str:
        """Returns the identity that a clip shows, as text."""
        return str(self.identity_id(index))

    def identity_id(self, index: int) -> int:
        """Returns the id of the character that a clip shows, 0..1295."""
        return int(self._character[index])

    def factors(self, index: int) -> dict[str, dict[str, int]]:
        """Returns the factors of a clip, classes by name: `identity` (skin, pants, top, hair) and `motion` (action)."""
        identity = dict(zip(ATTRIBUTES, attributes_of(self._character[index]).tolist()))
        return {"identity": identity, "motion": {"action": int(self._action[index])}}

    def render(self, character: int, action: int) -> np.ndarray:
        """Renders any character in any action, as `Sheets.render` does: the ground truth of a swap."""
        return self._sheets.render(character, action)

    def swap(self, content: int, motion: int) -> np.ndarray:
        """Renders the ground truth of a swap: clip `content`'s character in clip `motion`'s action.

        Returns:
          uint8 (8, 64, 64, 3).
        """
        return self.render(int(self._character[content]), int(self._action[motion]))

    def __reduce__(self):
        return type(self), (self.sheets_dir, self.split, self.random)

    def __repr__(self):
        return f"SpritesSource({self.sheets_dir!r}, {self.split!r}, {self.random})"


def _read(path: Path, digest) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a sheet into clips, in the form that `_over` needs.

    Returns:
      (ink, below): uint16 (9, 8, 64, 64, 3), alpha times colour plus 128; and uint16
      (9, 8, 64, 64, 1), 255 minus alpha.
    """
    from PIL import Image

    try:
        data = path.read_bytes()
        picture = Image.open(io.BytesIO(data))
        if picture.size != SHEET_SIZE:
            raise DatasetError(
                f"{path}: is a sheet of {picture.size[0]}x{picture.size[1]} pixels, expected "
                f"{SHEET_SIZE[0]}x{SHEET_SIZE[1]}. {_GET}"
            )
        rgba = np.asarray(picture.convert("RGBA"), np.uint16)
    except FileNotFoundError:
        raise DatasetError(f"{path}: this sheet is missing. {_GET}") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read as a picture ({error}). {_GET}") from error
    digest.update(data)
    width, height = SHEET_SIZE
    grid = rgba.reshape(height // CELL, CELL, width // CELL, CELL, 4).swapaxes(1, 2)
    clips = np.concatenate([grid[np.ix_(rows, columns)] for rows, columns in _CELLS.values()])
    alpha = clips[..., 3:]
    return clips[..., :3] * alpha + 128, 255 - alpha


def _over(frames, layer, action):
    """Lays the clip `action` of a layer over opaque uint8 frames; n / 255 is rounded exactly."""
    ink, below = layer
    n = ink[action] + below[action] * frames  # at most 255 * 255 + 128: fits 16 bits
    n += n >> 8
    n >>= 8
    return n.astype(np.uint8)
