"""Palettes, haircuts, backgrounds and the head geometry of Heads.

Units: one head unit is the half-height of the skull, which is `HEAD` of the picture's side at scale 1. Head coordinates
have their origin in the middle of the skull: X to the image's right, Y down, Z towards the viewer. Features sit on the
skull's surface and turn with it (orthographic projection), so that yaw and pitch displace each feature by its depth and
foreshorten it. `painter` does the painting.

Array shapes: t frames, s the side, h and w a box of pixels. Pose factors are (t,) float32, named as in
`heads.MOTION_FACTORS`. Colours are sRGB in [0, 1] and are mixed without linearisation.
"""

import copy
import dataclasses
from collections.abc import Mapping

import numpy as np

from vidmotion.data.heads.raster import Frame, coverage

HEAD = 0.27  # head unit as a share of the side
CENTRE = (0.5, 0.46)  # the skull's position at x = y = 0, as shares of the side
DEPTH = 0.85  # half-depth of the skull
PIVOT = 0.8  # roll turns the head around a point this far below the skull's middle


def rgb(*codes: str) -> np.ndarray:
    return np.array([[int(c[i : i + 2], 16) / 255 for i in (0, 2, 4)] for c in codes], np.float32)


SKIN = rgb("ffe3d0", "fbcfae", "eab48a", "cb8d61", "98623f", "65412f")  # stops of a ramp
HAIR = rgb(
    "2b2631",
    "4f352b",
    "7d4a2d",
    "a6492b",
    "d9783a",
    "e9bf6b",
    "f1e3c6",
    "a9abb5",
    "ea7fa6",
    "3f98a3",
)
IRIS = rgb("5a3823", "8a5a2b", "3f7d4e", "3b7fc4", "6d8796", "7a5bb0", "2aa198")
CLOTH = rgb(
    "e25756",
    "3a68ad",
    "3f946f",
    "f2b441",
    "7b539a",
    "f3f1ea",
    "3b3f4d",
    "ee8aa0",
    "48aebd",
    "a06a48",
)
BACKGROUND = rgb(
    "fbd9c5", "bfe0ee", "cdeacb", "e6d2f2", "fbeebb", "9db4e4", "f3aa9f", "5f9a9a", "4a5688"
)
BACKGROUNDS = ("plain", "gradient", "glow", "stripes", "dots", "hills")
CLOTHES = ("crew neck", "v-neck", "hoodie", "shirt", "striped", "turtleneck")
NOSES = ("button", "long", "broad")
GLASSES = ("none", "round", "square")
BEARDS = ("none", "moustache", "goatee", "full")
FRECKLES = ("none", "freckles")

WHITE, INK = rgb("ffffff", "2a1d24")
LIP, MOUTH, TONGUE, TEETH = rgb("c9545c", "5b1a26", "e5757f", "fffaf0")


@dataclasses.dataclass(frozen=True)
class HairStyle:
    """One haircut, with lengths in head units.

    Attributes:
      name: the name of the haircut.
      volume: the thickness added to the skull all round.
      sides: the height down to which the hair's sides are straight.
      round: the height over which the hair is rounded off below `sides`.
      opening: the opening that shows the face: the height of its middle, its half-width, and the height of its arch.
      fringe: whether the arch is flat rather than round.
      back: how far down the hair behind the head falls; None for no such hair.
      curls: the number of scallops round the edge.
      tufts: ellipsoids behind the head: X (drawn on both sides, unless 0), Y, Z, half-width, half-height.
    """

    name: str
    volume: float = 0.0
    sides: float = 0.0
    round: float = 0.5
    opening: tuple[float, float, float] = (0.5, 0.8, 1.0)
    fringe: bool = False
    back: float | None = None
    curls: int = 0
    tufts: tuple[tuple[float, float, float, float, float], ...] = ()


HAIRSTYLES = (
    HairStyle("bald"),
    HairStyle("buzz", 0.03, 0.0, 0.32, (0.36, 0.80, 0.92), fringe=True),
    HairStyle("short", 0.12, 0.0, 0.36, (0.42, 0.78, 0.92)),
    HairStyle("bob", 0.12, 0.5, 0.4, (0.60, 0.70, 0.86), fringe=True, back=0.7),
    HairStyle("long", 0.12, 1.1, 0.6, (0.42, 0.70, 1.08), back=1.75),
    HairStyle("bun", 0.06, 0.0, 0.40, (0.46, 0.78, 1.06), tufts=((0.0, -1.18, -0.1, 0.36, 0.34),)),
    HairStyle("curly", 0.24, 0.15, 0.55, (0.46, 0.76, 0.92), back=0.35, curls=13),
    HairStyle(
        "pigtails",
        0.08,
        0.0,
        0.42,
        (0.56, 0.76, 0.84),
        fringe=True,
        tufts=((1.12, 0.62, -0.2, 0.26, 0.5),),
    ),
)


class Head:
    """Projects head coordinates to pixels in each picture.

    Head coordinates are numbers or arrays (t,), in the double precision of identity factors. They are rounded to
    float32 when they are combined with the pose.
    """

    def __init__(self, who: Mapping, pose: Mapping[str, np.ndarray], size: int):
        sin, cos = (
            {k: f(pose[k].astype(np.float64)).astype(np.float32) for k in ("yaw", "pitch", "roll")}
            for f in (np.sin, np.cos)
        )
        self.sin, self.cos = sin, cos
        self.unit = pose["scale"] * np.float32(HEAD * size)
        self.middle = np.stack(
            [(pose["x"] + CENTRE[0]) * size, (pose["y"] + CENTRE[1]) * size], 1
        ).astype(np.float32)
        self.half_width = 0.84 * who["face_width"]
        self.chin = 1.02 * who["chin_length"]
        # Half-axes of the turned ellipsoid's outline, in the head's plane.
        self.outline_a = np.hypot(np.float32(self.half_width) * cos["yaw"], DEPTH * sin["yaw"])
        self.outline_b = np.hypot(cos["pitch"], DEPTH * sin["pitch"])

    def __getitem__(self, frames: np.ndarray) -> "Head":
        """Returns the head for some of the pictures only, given by their numbers."""
        head = copy.copy(self)
        head.sin, head.cos = (
            {name: values[frames] for name, values in part.items()} for part in (self.sin, self.cos)
        )
        for name in ("unit", "middle", "half_width", "chin", "outline_a", "outline_b"):
            setattr(head, name, getattr(self, name)[frames])
        return head

    def project(self, x, y, z):
        """Projects head coordinates to the head's plane (before roll): two arrays (t,), in head units."""
        x, y, z = np.float32(x), np.float32(y), np.float32(z)
        px = x * self.cos["yaw"] + z * self.sin["yaw"]
        depth = z * self.cos["yaw"] - x * self.sin["yaw"]
        return px, y * self.cos["pitch"] + depth * self.sin["pitch"]

    def plane(self, origin, u, v) -> Frame:
        """Makes a frame from its origin, u axis and v axis in the head's plane; each is a pair (x, y)."""
        sin, cos = self.sin["roll"], self.cos["roll"]

        def turn(x, y, out):
            x, y = np.float32(x), np.float32(y)
            np.multiply(x * cos - y * sin, self.unit, out=out[:, 0])
            np.multiply(x * sin + y * cos, self.unit, out=out[:, 1])

        frame = Frame(np.empty((len(sin), 2), np.float32), np.empty((len(sin), 2, 2), np.float32))
        turn(origin[0], np.float32(origin[1]) - np.float32(PIVOT), frame.origin)
        turn(*u, frame.axes[:, :, 0])
        turn(*v, frame.axes[:, :, 1])
        centre = frame.origin
        centre += self.middle
        centre[:, 1] += PIVOT * self.unit
        return frame

    def upright(self, y: float) -> Frame:
        """Makes a frame for the body, below the head; it follows the head's position and scale but does not turn."""
        origin = self.middle + np.stack([0 * self.unit, y * self.unit], 1)
        return Frame(origin, np.eye(2, dtype=np.float32) * self.unit[:, None, None])

    def at(self, point, u, v) -> Frame:
        """Makes a frame from a point and two axes in head coordinates; each is a triple (X, Y, Z)."""
        return self.plane(self.project(*point), self.project(*u), self.project(*v))

    def on_face(self, x, y, a=1.0, b=1.0, lift=0.0, tilt=0.0) -> Frame:
        """Makes a frame on the skull's surface at (X, Y) = (x, y), `lift` units above it.

        One unit of local u is a head units to the right along the surface, and one of local v is b units down. A
        positive `tilt` (radians) lowers the end at positive u.
        """
        z = DEPTH * np.sqrt(np.maximum(1 - (x / self.half_width) ** 2 - (y / 1.1) ** 2, 0.04))
        # Slopes of the surface, reduced, because the true slopes make the far eye vanish.
        dz_dx = -0.7 * DEPTH**2 * x / (self.half_width**2 * z)
        dz_dy = -0.5 * DEPTH**2 * y / (1.21 * z)
        c, s = np.cos(tilt), np.sin(tilt)
        u = (a * c, a * s, a * (c * dz_dx + s * dz_dy))
        v = (-b * s, b * c, b * (c * dz_dy - s * dz_dx))
        return self.at((x, y, z + lift), u, v)


def backgrounds(who: Mapping[str, np.ndarray], size: int) -> np.ndarray:
    """Draws the still pictures behind the heads, (t, 3, s, s) float32."""
    colours = BACKGROUND[who["background_colour"]]
    pictures = np.empty((len(colours), 3, size, size), np.float32)
    for kind in np.unique(who["background"]):
        frames = np.flatnonzero(who["background"] == kind)
        pictures[frames] = _background(BACKGROUNDS[kind], colours[frames], size)
    return pictures


def _background(kind: str, base: np.ndarray, size: int) -> np.ndarray:
    """Draws one kind of background in several colours `base`, (t, 3); the result broadcasts to (t, 3, s, s)."""
    base = base[..., None, None]
    white = WHITE[:, None, None]
    light, dark = base + np.float32(0.45) * (white - base), base * np.float32(0.86)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    x, y = axis[None, :], axis[:, None]
    pixel = np.float32(1 / size)
    if kind == "plain":
        return base
    if kind == "gradient":
        return light + (y + 0.5) * (dark - light)
    if kind == "glow":
        glow = np.maximum(1 - (x * x + (y + 0.04) ** 2) / 0.45, 0) ** 1.5
        return dark + glow * (light - dark)
    if kind == "stripes":
        wave = np.abs((x + y) * 5.0 % 1.0 - 0.5) - 0.25  # distance to the stripe's edge, periods
        cover = coverage(wave / (5.0 * 2**0.5 * pixel))
        return base + 0.6 * cover * (light - base)
    if kind == "dots":
        row = np.floor(y * 6.0)
        du, dv = (x * 6.0 + 0.5 * (row % 2)) % 1.0 - 0.5, y * 6.0 - row - 0.5
        cover = coverage((np.sqrt(du * du + dv * dv) - 0.2) / (6.0 * pixel))
        return base + 0.6 * cover * (light - base)
    sky = light + (y + 0.5) * 0.6 * (base - light)
    sun = coverage((np.sqrt((x - 0.3) ** 2 + (y + 0.3) ** 2) - 0.1) / pixel)
    sky = sky + 0.7 * sun * (white - sky)
    for level, phase, shade in ((0.12, 0.6, 0.86), (0.24, 2.4, 0.72)):
        edge = level + 0.06 * np.sin(9.0 * x + phase) - y
        slope = np.sqrt(1 + (0.54 * np.cos(9.0 * x + phase)) ** 2)
        sky = sky + coverage(edge / (slope * pixel)) * (base * shade - sky)
    return sky
