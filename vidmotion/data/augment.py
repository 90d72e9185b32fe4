"""Augments pictures of a driving face so that its expression is kept but its identity is not.

A motion encoder must not see who is moving. There are two recipes:

- `FaceAugment` is X-NeMo's (section 3.2): a face-centred crop with changed size, aspect ratio and position, a piecewise
  affine warp, and changed colours.
- `PcAvsAugment` is that of PC-AVS (Zhou et al. 2021), which WarpFace adopts: a colour gain, a stretch and keystone of
  the whole frame, then blurring or sharpening.

Parameters are drawn once per clip, so that the motion stays coherent; pictures are uint8 (T, H, W, 3).
"""

import dataclasses

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from vidmotion.data import faces

UNFOLDED = 0.24  # largest move of a node, in cells: moves of 1/4 can turn a triangle into a line


@dataclasses.dataclass(frozen=True)
class FaceAugment:
    """X-NeMo's augmentation. The paper names the operations but not their magnitudes.

    Attributes:
      size: the side of the result in pixels.
      scale: the crop's width and height each change by a factor within 1 +- this value, drawn separately.
      shift: the crop's centre moves by up to this share of its side, in either direction.
      nodes: the fewest and most nodes along a side of the grid that warps the picture; (0, 0) turns warping off.
      bend: the least and greatest standard deviation of a node's move, as a share of the picture's side.
      brightness, contrast, saturation: each changes by a factor within 1 +- this value.
      hue: the colour circle turns by up to this share of it, in either direction.
    """

    size: int = 224
    scale: float = 0.3
    shift: float = 0.05
    nodes: tuple[int, int] = (4, 8)
    bend: tuple[float, float] = (0.01, 0.03)
    brightness: float = 0.5
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1

    def __call__(
        self, frames: np.ndarray, squares: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Crops and augments the faces of a clip.

        Args:
          frames: uint8 (T, H, W, 3).
          squares: (T, 4), the crops without augmentation, as `faces.driving_boxes` returns them.
          rng: draws the parameters, which are the same for all frames.

        Returns:
          uint8 (T, size, size, 3).
        """
        stretch = 1 + self.scale * rng.uniform(-1, 1, 2)
        move = self.shift * rng.uniform(-1, 1, 2)
        nodes = int(rng.integers(self.nodes[0], self.nodes[1] + 1))
        spread = rng.uniform(*self.bend)
        moves = spread * rng.standard_normal((nodes, nodes, 2))
        factors = 1 + np.array([self.brightness, self.contrast, self.saturation]) * rng.uniform(
            -1, 1, 3
        )
        turn = self.hue * rng.uniform(-1, 1)
        boxes = [self._jittered(box, stretch, move, frames.shape) for box in squares]
        crops = np.stack([faces.crop(frame, box, self.size) for frame, box in zip(frames, boxes)])
        if nodes:
            crops = remap(crops, bend_map(moves, self.size))
        return np.stack([recolour(crop, *factors, turn) for crop in crops])

    @staticmethod
    def _jittered(box, stretch, move, shape):
        side = box[2:] - box[:2]
        centre, half = (box[:2] + box[2:]) / 2 + move * side, stretch * side / 2
        moved = np.concatenate([centre - half, centre + half])
        return faces.inside(moved, shape[2], shape[1])


@dataclasses.dataclass(frozen=True)
class PcAvsAugment:
    """PC-AVS's augmentation of whole frames; lengths are in pixels of a frame that is `side` wide.

    Attributes:
      gain: the least and greatest factor on a run of neighbouring channels.
      stretch: the least and greatest r; one direction shrinks by 2 r and the other grows by 2 r.
      keystone: the least and greatest move of the two lower corners, towards or away from each other.
      frame: the least and greatest size by which the rectangle of the corners is larger or smaller than the picture on
        every side.
      blur: the sides of the median filter; one is drawn for every frame.
      sharpen: the share of clips that are sharpened instead of blurred.
      side: the side of the frames that the lengths refer to.
    """

    gain: tuple[float, float] = (0.3, 1.6)
    stretch: tuple[int, int] = (15, 24)
    keystone: tuple[int, int] = (20, 29)
    frame: tuple[int, int] = (20, 39)
    blur: tuple[int, ...] = (3, 5, 7, 9)
    sharpen: float = 0.5
    side: int = 224

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Augments frames (T, S, S, 3), uint8; only the blur differs from frame to frame."""
        side = frames.shape[1]
        unit = side / self.side
        gain = rng.uniform(*self.gain)
        first = int(rng.integers(0, 2))
        last = int(rng.integers(first + 1, 4))
        r = int(rng.integers(self.stretch[0], self.stretch[1] + 1))
        room = int(rng.integers(0, max(1, r // 2)))
        narrow = bool(rng.integers(2))
        keystone = rng.choice((-1, 1)) * rng.integers(self.keystone[0], self.keystone[1] + 1)
        frame = rng.choice((-1, 1)) * rng.integers(self.frame[0], self.frame[1] + 1)
        sharp = rng.random() < self.sharpen
        coloured = frames.copy()
        part = coloured[..., first:last]
        part[...] = np.clip(np.rint(part * np.float32(gain)), 0, 255)
        xy = reshape_map(side, r * unit, room * unit, narrow, keystone * unit, frame * unit)
        moved = [Image.fromarray(picture) for picture in remap(coloured, xy)]
        if sharp:
            filters = [ImageFilter.Kernel((3, 3), (-1,) * 4 + (9,) + (-1,) * 4, 1)] * len(moved)
        else:
            filters = [ImageFilter.MedianFilter(int(k)) for k in rng.choice(self.blur, len(moved))]
        return np.stack([np.asarray(picture.filter(f)) for picture, f in zip(moved, filters)])


def remap(frames: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Resamples pictures through a map of positions, bilinearly; outside the picture, edge pixels are repeated.

    Args:
      frames: uint8 (T, H, W, 3).
      xy: (h, w, 2), the position (x, y) in the frames that each pixel shows, with pixel centres at k + 0.5.

    Returns:
      uint8 (T, h, w, 3).
    """
    height, width = frames.shape[1:3]
    ends = np.array([width - 1, height - 1], np.float32)
    place = np.clip(np.asarray(xy, np.float32).reshape(-1, 2) - 0.5, 0, ends)
    low = np.minimum(place.astype(np.int32), np.maximum(ends.astype(np.int32) - 1, 0))
    share = (place - low)[..., None]
    x, y = share[:, 0], share[:, 1]
    corner = low[:, 1] * width + low[:, 0]
    right, below = int(width > 1), width * int(height > 1)
    weights = (1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y
    steps = 0, right, below, right + below
    out = np.empty((len(frames), *xy.shape[:2], 3), np.uint8)
    for frame, result in zip(frames, out):
        pixels = np.ascontiguousarray(frame).reshape(-1, 3)
        mixed = np.full((len(place), 3), 0.5, np.float32)
        for step, weight in zip(steps, weights):
            mixed += pixels.take(corner + step, axis=0) * weight
        result[...] = mixed.reshape(result.shape)  # truncation; with the 0.5 above, this rounds
    return out


def bend_map(moves: np.ndarray, size: int) -> np.ndarray:
    """Makes a piecewise affine map for `remap`, with two triangles in each cell of a regular grid.

    Args:
      moves: (n, n, 2), the move (x, y) of each node of an n x n grid over the picture, as a share of the picture's
        side. Moves are clipped to less than a quarter of a cell, so that nothing folds over.
      size: the side of the picture in pixels.

    Returns:
      float32 (size, size, 2).
    """
    cells = len(moves) - 1
    moves = np.clip(moves, -UNFOLDED / cells, UNFOLDED / cells)
    place = (np.arange(size) + 0.5) / size
    cell = np.minimum((place * cells).astype(int), cells - 1)
    u, v = np.meshgrid(place * cells - cell, place * cells - cell)
    column, row = np.meshgrid(cell, cell)
    u, v = u[..., None], v[..., None]
    here, across = moves[row, column], moves[row + 1, column + 1]
    upper = here + u * (moves[row, column + 1] - here) + v * (across - moves[row, column + 1])
    lower = here + v * (moves[row + 1, column] - here) + u * (across - moves[row + 1, column])
    still = np.stack(np.meshgrid(place, place), -1)
    return ((still + np.where(u >= v, upper, lower)) * size).astype(np.float32)


def reshape_map(
    side: int, r: float, room: float, narrow: bool, keystone: float, frame: float
) -> np.ndarray:
    """Makes PC-AVS's reshaping as a map for `remap`.

    The frame becomes 2 r narrower and 2 r higher (or the reverse, unless `narrow`). It is then padded with its
    reflection in one direction and cropped in the other, to a square that is `room` larger than the frame on every
    side. A second square is `frame` larger than this one on every side; its lower corners move towards each other by
    `keystone` each, by a perspective map, which keeps straight lines straight. The result shows the upper left part, of
    the frame's own size.

    Args:
      side: the side of the frame. All lengths are in pixels.
      r, room, narrow, keystone, frame: as above.

    Returns:
      float32 (side, side, 2).
    """
    low, high = -frame, side + 2 * room + frame
    square = [(low, low), (high, low), (high, high), (low, high)]
    moved = [*square[:2], (high - keystone, high), (low + keystone, high)]
    back = homography(moved, square)
    pixels = np.arange(side) + 0.5
    seen = np.stack([*np.meshgrid(pixels, pixels), np.ones((side, side))], -1) @ back.T
    place = seen[..., :2] / seen[..., 2:]
    place = np.clip(place, 0, side + 2 * room)  # beyond the square, its edge is repeated
    change = np.array([-2 * r, 2 * r] if narrow else [2 * r, -2 * r])
    extent = side + change  # size of the resized frame, which is centred in the square
    place = (place - (side + 2 * room - extent) / 2) * side / extent
    return (side - np.abs(side - np.abs(place))).astype(np.float32)  # one reflection at each end


def homography(source, target) -> np.ndarray:
    """Returns the homography (3, 3), last entry 1, that maps four points (x, y) to four others.

    No three of the points may lie on a line.
    """
    rows, right = [], []
    for (x, y), (u, v) in zip(source, target):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    return np.append(np.linalg.solve(np.array(rows, float), np.array(right, float)), 1).reshape(
        3, 3
    )


def recolour(
    picture: np.ndarray, brightness: float, contrast: float, saturation: float, turn: float
) -> np.ndarray:
    """Changes the colours of a picture, in the order of the arguments; factors of 1 and a turn of 0 change nothing.

    Args:
      picture: uint8 (H, W, 3).
      brightness: the factor on all values.
      contrast: the factor on the distance from the picture's mean grey.
      saturation: the factor on the distance from each pixel's own grey.
      turn: the angle by which the hue is turned, in full circles.

    Returns:
      uint8 (H, W, 3).
    """
    image = Image.fromarray(picture)
    image = ImageEnhance.Brightness(image).enhance(brightness)
    image = ImageEnhance.Contrast(image).enhance(contrast)
    image = ImageEnhance.Color(image).enhance(saturation)
    if step := round(turn * 256):
        hue, *others = image.convert("HSV").split()
        turned = Image.fromarray((np.asarray(hue) + np.uint8(step % 256)).astype(np.uint8))
        image = Image.merge("HSV", (turned, *others)).convert("RGB")
    return np.asarray(image)
