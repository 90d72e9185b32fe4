"""Paints Heads faces layer by layer, from back to front; `heads.render` uses it.

Units, coordinates and array shapes are those of `cartoon`: head units, X to the right, Y down, Z towards the viewer; t
frames, s the side, h and w a box of pixels. A patch's u and v are the local coordinates of its frame, mostly in units
of a shape's half-axes.
"""

import copy
from collections.abc import Mapping

import numpy as np

from vidmotion.data.heads.cartoon import (
    BEARDS,
    CLOTH,
    CLOTHES,
    FRECKLES,
    GLASSES,
    HAIR,
    HAIRSTYLES,
    INK,
    IRIS,
    LIP,
    MOUTH,
    NOSES,
    SKIN,
    TEETH,
    TONGUE,
    WHITE,
    HairStyle,
    Head,
    rgb,
)
from vidmotion.data.heads.raster import Canvas, Frame, Patch, column, coverage, mix

# For each shape of nose: half-width, half-height, how much lower it sits, the nostrils' distance from the middle.
_NOSES = {
    "button": (0.13, 0.11, 0.0, 0.5),
    "long": (0.115, 0.14, 0.03, 0.5),
    "broad": (0.19, 0.11, 0.0, 0.6),
}
_NOSE = np.array([_NOSES[name] for name in NOSES])


def _arc(u):
    """Returns a half-ellipse profile sqrt(1 - u^2) and its slope, which is kept finite at the ends."""
    height = np.sqrt(np.maximum(1.0 - u * u, 0.0))
    return height, -u / np.maximum(height, 0.35)


def _bow(u):
    """Returns a parabola 1 - u^2, which is 0 beyond the ends, and its slope."""
    return np.maximum(1.0 - u * u, 0.0), -2.0 * u * (np.abs(u) < 1.0)


def _pillar(patch: Patch, straight, rounding):
    """Computes the implicit function of a pillar of half-width 1, rounded at the top and the bottom.

    It has a half-ellipse on top, straight sides for `straight` units of v, then a half-ellipse `rounding` high. Returns
    f, its derivatives by u and v, and the height t.
    """
    above = np.minimum(patch.v, 0.0)
    below = patch.v - straight
    np.maximum(below, 0.0, out=below)
    below /= rounding
    t = above + below  # one of the two is 0
    f = patch.u * patch.u
    f += t * t
    f -= 1.0
    above *= 2.0
    below *= 2.0
    below *= np.float32(1 / rounding)
    above += below
    return f, 2.0 * patch.u, above, t


def _curled(patch: Patch, style: HairStyle, straight, rounding):
    """Computes `_pillar` with a scalloped edge for curly hair."""
    f, fu, fv, t = _pillar(patch, straight, rounding)
    if style.curls:
        f -= 0.09 * np.cos(style.curls * np.arctan2(patch.u, -t))
    return f, fu, fv, t


class _Columns:
    """A read-only view of values by name, (t,) each, for all frames or for those chosen with `of`."""

    def __init__(self, values: Mapping[str, np.ndarray], frames=slice(None)):
        self._values, self._frames = values, frames

    def __getitem__(self, name: str) -> np.ndarray:
        return self._values[name][self._frames]

    def of(self, chosen: np.ndarray) -> "_Columns":
        whole = isinstance(self._frames, slice)
        return _Columns(self._values, chosen if whole else self._frames[chosen])


class Painter:
    """Paints identities `who` in poses `pose`, one of each per picture, on `canvas`.

    Values that depend on identity factors alone are computed in double precision and rounded to float32 when they are
    combined with the pose or a pixel (`column`, `Head`). Layers that only some faces have, or that differ between
    faces, are painted by a separate painter for the faces concerned (`_part`).

    Args:
      who: the identity factors by name, (t,) each, float64 or an integer type.
      pose: the motion factors by name, (t,) float32 each.
      size: the side s of the pictures.
      canvas: the pictures, with the backgrounds already painted. `heads.render_many` checks the ranges of factors.
    """

    def __init__(
        self,
        who: Mapping[str, np.ndarray],
        pose: Mapping[str, np.ndarray],
        size: int,
        canvas: Canvas,
    ):
        self.frames = np.arange(len(pose["x"]))
        self.who, self.pose, self.canvas = _Columns(who), _Columns(pose), canvas
        self.head = Head(who, pose, size)
        tone = who["skin"] * (len(SKIN) - 1)
        k = np.minimum(tone.astype(int), len(SKIN) - 2)
        self.skin = SKIN[k] + np.float32(tone - k)[:, None] * (SKIN[k + 1] - SKIN[k])
        self.skin_shade = self.skin * rgb("d0a5a0")[0]
        self.hair = HAIR[who["hair_colour"]]
        self.cloth = CLOTH[who["clothes_colour"]]

    def paint(self):
        """Paints all layers, from back to front."""
        styled = [(HAIRSTYLES[k], part) for k, part in self._split("hair_style")]
        for style, part in styled:
            part._hair_behind(style)
        self._body()
        # Longer hair covers the ears.
        bare = np.array([style.sides < 0.3 for style in HAIRSTYLES])[self.who["hair_style"]]
        if bare.any():
            part = self._part(np.flatnonzero(bare))
            for side in (-1, 1):
                part._ear(side)
        for style, part in styled:
            part._face(style)
        for side in (-1, 1):
            self._cheek(side)
        for kind, part in self._split("freckles"):
            if FRECKLES[kind] != "none":
                for side in (-1, 1):
                    part._freckles(side)
        for side in (-1, 1):
            self._eye(side)
        for kind, part in self._split("beard"):
            part._beard(BEARDS[kind])
        self._mouth()
        self._nose()
        for style, part in styled:
            part._hair_front(style)
        for side in (-1, 1):
            self._brow(side)
        for kind, part in self._split("glasses"):
            part._glasses(GLASSES[kind])

    def _part(self, chosen: np.ndarray) -> "Painter":
        """Returns a painter for some of the faces, `chosen` by number, on the same canvas."""
        if len(chosen) == len(self.frames):
            return self
        part = copy.copy(self)
        part.who, part.pose = self.who.of(chosen), self.pose.of(chosen)
        part.head = self.head[chosen]
        for name in ("frames", "skin", "skin_shade", "hair", "cloth"):
            setattr(part, name, getattr(self, name)[chosen])
        return part

    def _split(self, factor: str) -> list[tuple[int, "Painter"]]:
        """Returns each value of a discrete identity factor that occurs, with a painter for the faces that have it."""
        values = self.who[factor]
        return [(k, self._part(np.flatnonzero(values == k))) for k in np.unique(values)]

    def _patch(self, frame: Frame, u: float, v0: float, v1: float) -> Patch:
        return self.canvas.patch(self.frames, frame, u, v0, v1)

    def _lit(self, patch: Patch, f, t, dark, bright):
        """Shades a rounded form from `dark` to `bright`, lit from above and from the side that the identity says.

        f is the form's implicit function and t its height in [-1, 1].
        """
        lit = np.negative(f)
        np.maximum(lit, 0.0, out=lit)
        np.sqrt(lit, out=lit)
        lit *= 0.75
        lit -= 0.32 * t
        lit += column(0.3 * self.who["light"]) * patch.u
        lit += 0.28
        return mix(dark, bright, np.clip(lit, 0.0, 1.0, out=lit))

    # ---- behind the face

    def _hair_behind(self, style: HairStyle):
        head = self.head
        for x, y, z, a, b in style.tufts:
            for side in (-1, 1) if x else (1,):
                self._tuft(head.at((side * x, y, z), (a, 0, 0), (side * 0.2 * x, b, 0)))
        if style.back is None:
            return
        x, y = head.project(0.0, 0.0, -0.12)
        grow = 1.02 + self._volume(style)
        wide = head.outline_a * np.float32(grow + 0.06 * (style.back > 1))
        patch = self._patch(head.plane((x, y), (wide, 0), (0, grow)), 1.25, -1.25, style.back + 0.7)
        f, fu, fv, _ = _curled(patch, style, style.back, 0.4)
        colour = self._lit(patch, f, 1.2, self.hair * np.float32(0.5), self.hair * np.float32(0.86))
        patch.blend(coverage(patch.distance(f, fu, fv)), colour)

    def _volume(self, style: HairStyle):
        """Returns the thickness that the hair adds to the skull all round."""
        return style.volume + 0.1 * self.who["hair_volume"] * (style.volume > 0.05)

    def _tuft(self, frame: Frame):
        patch = self._patch(frame, 1.0, -1.0, 1.0)
        f = patch.u * patch.u + patch.v * patch.v - 1.0
        colour = self._lit(patch, f, patch.v, self.hair * np.float32(0.6), self._sheen())
        patch.blend(patch.ellipse(), colour)

    def _sheen(self):
        return self.hair + np.float32(0.14) * (WHITE - self.hair)

    def _body(self):
        head = self.head
        # First the neck, which the chin shades, then the shoulders.
        patch = self._patch(head.upright(0.0), 0.55, 0.3, 2.1)
        side = np.abs(patch.u) - 0.33 - 0.2 * np.maximum(patch.v - 1.25, 0.0)
        cover = coverage(patch.distance(side, np.sign(patch.u), 0.0))
        cover *= coverage((np.abs(patch.v - 1.2) - 0.9) * column(head.unit))
        shade = 0.9 * np.clip(1.75 - patch.v, 0.0, 1.0)
        patch.blend(cover, mix(self.skin, self.skin_shade * np.float32(0.9), shade))
        for kind, part in self._split("clothes"):
            part._clothes(CLOTHES[kind])

    def _clothes(self, kind: str):
        frame = self.head.upright(2.55)
        patch = self._patch(Frame(frame.origin, frame.axes * np.float32([1.5, 1.2])), 1, -1, 2.2)
        f, fu, fv, t = _pillar(patch, 1e3, 1.0)
        colour = self._lit(patch, f, t + 0.5, self.cloth * np.float32(0.66), self.cloth)
        patch.blend(*self._garment(kind, patch, coverage(patch.distance(f, fu, fv)), colour))
        if kind == "turtleneck":
            self._rollneck()

    def _garment(self, kind: str, patch: Patch, cover, colour):
        """Returns the shoulders' coverage and colour with the garment's pattern and neckline applied."""
        trim = self.cloth * np.float32(0.72)
        pale = self.cloth + np.float32(0.6) * (WHITE - self.cloth)
        x, y = np.abs(patch.u) * 1.5, 2.55 + patch.v * 1.2  # head units, from the skull's middle
        unit = column(self.head.unit)

        def ring(height, a, b):
            return patch.ellipse_distance(0.0, (height - 2.55) / 1.2, a / 1.5, b / 1.2) / unit

        def within(distance):
            return coverage(distance * unit)

        if kind == "striped":
            wave = (y + 0.12 * x * x) * 3.2
            wave = np.abs(wave - np.floor(wave) - 0.5) - 0.23
            colour = mix(colour, pale, within(wave / 3.2))
        if kind in ("crew neck", "striped"):
            hole = ring(1.33, 0.52, 0.34)
            colour = mix(colour, trim, within(hole - 0.07))
        elif kind == "v-neck":
            hole = (1.35 * x + y - 1.98) / 1.68
            colour = mix(colour, trim, within(hole - 0.07))
        elif kind == "shirt":
            hole = (1.6 * x + y - 1.78) / 1.89
            collar = np.maximum(np.maximum(hole - 0.2, x - 0.62), y - 1.8 - 0.1 * x)
            colour = mix(colour, trim, 0.8 * within(collar - 0.03))
            colour = mix(colour, pale, within(collar))
            colour = mix(colour, trim, within(np.maximum(x - 0.015, 1.78 - y)))
        elif kind == "hoodie":
            hood = ring(1.42, 0.66, 0.36)
            colour = mix(colour, trim, within(hood - 0.09))
            colour = mix(colour, trim * np.float32(0.6), within(hood + 0.06))
            cord = np.maximum(np.abs(x - 0.2) - 0.025, np.abs(y - 1.95) - 0.25)
            colour = mix(colour, WHITE, within(cord))
            hole = hood + 0.16
        else:
            return cover, colour
        return np.maximum(cover - within(hole), 0.0), colour

    def _rollneck(self):
        patch = self._patch(self.head.upright(1.38), 0.55, -0.2, 0.4)
        side = np.abs(patch.u) - 0.42 - 0.2 * np.maximum(patch.v, 0.0)
        cover = coverage(patch.distance(side, np.sign(patch.u), 0.0))
        cover *= coverage((np.abs(patch.v - 0.1) - 0.24) * column(self.head.unit))
        shade = np.clip(0.3 + 1.4 * np.abs(patch.u), 0.0, 1.0)
        patch.blend(cover, mix(self.cloth, self.cloth * np.float32(0.7), shade))

    def _ear(self, side: int):
        head, size = self.head, self.who["ear_size"]
        x = side * (head.half_width - 0.01)
        frame = head.at((x, 0.1, -0.12), (0.17 * size, 0, -side * 0.16), (0, 0.25 * size, -0.02))
        patch = self._patch(frame, 1.0, -1.0, 1.0)
        colour = mix(
            self.skin, self.skin_shade, np.float32(0.25) + 0.3 * patch.blob(0, 0, 1.2, 1.2)
        )
        colour = mix(colour, self.skin_shade, 0.8 * patch.ellipse(side * 0.1, 0.0, 0.5, 0.58))
        patch.blend(patch.ellipse(), colour)

    # ---- the face

    def _outline(self):
        """Computes the face's outline: patch, f, df/du, df/dv, and the height t (-1 crown, 0 eyes, 1 chin)."""
        head = self.head
        # The chin is in front of the skull's axis: turning moves it sideways, and nodding moves it up and down.
        chin_x, chin_y = head.project(0.0, head.chin, 0.3)
        shear, low = column(chin_x / head.outline_a), column(chin_y / head.outline_b)
        frame = head.plane((0.0, 0.0), (head.outline_a, 0.0), (0.0, head.outline_b))
        patch = self._patch(frame, 1.3, -1.02, 1.02 * float(low.max()))
        taper = 0.12 - 0.2 * self.who["jaw"]
        slope = 1.0 / low
        above = np.minimum(patch.v, 0.0)
        below = np.maximum(patch.v, 0.0)
        below *= slope
        t = above + below  # one of the two is 0
        bent = np.minimum(below, 1.2)  # keeps the width positive past the chin
        bent2 = bent * bent
        width = column(taper) * bent2
        np.subtract(1.0, width, out=width)
        r = shear * bent2
        np.subtract(patch.u, r, out=r)
        r /= width
        f = r * r
        f += t * t
        f -= 1.0
        fu = 2.0 * r
        fu /= width
        ft = column(2.0 * taper) * r
        ft -= 2.0 * shear
        bent *= fu
        ft *= bent
        below *= 2.0
        ft += below
        ft *= slope
        above *= 2.0
        ft += above
        return patch, f, fu, ft, t

    def _face(self, style: HairStyle):
        patch, f, fu, fv, t = self._outline()
        cover = coverage(patch.distance(f, fu, fv))
        colour = self._lit(patch, f, t, self.skin_shade, self.skin)
        if style.volume:  # the hair's soft shadow
            shadow = self._opening_distance(patch, style)
            shadow /= column(np.float32(0.14) * self.head.unit)
            shadow += 1.0
            np.clip(shadow, 0.0, 1.0, out=shadow)
            shadow *= 0.45
            colour = mix(colour, self.skin_shade * np.float32(0.75), shadow)
        patch.blend(cover, colour)

    def _cheek(self, side: int):
        patch = self._patch(self.head.on_face(side * 0.46, 0.42, 0.26, 0.2), 1.0, -1.0, 1.0)
        blush = self.skin * rgb("ffa59b")[0]
        patch.blend(patch.blob() * 0.6, blush)

    def _freckles(self, side: int):
        patch = self._patch(self.head.on_face(side * 0.46, 0.42, 0.26, 0.2), 1.0, -1.0, 1.0)
        spots = [(-0.55, -0.3), (0.0, -0.45), (0.5, -0.2), (-0.25, 0.15), (0.3, 0.3)]
        cover = sum(patch.ellipse(u * side, v, 0.1, 0.13) for u, v in spots)
        patch.blend(cover * 0.75, self.skin * rgb("b0755f")[0])

    def _eye(self, side: int):
        who, pose = self.who, self.pose
        size = who["eye_size"]
        closed = column(pose["lid_left" if side < 0 else "lid_right"])
        tilt = -side * 0.16 * who["eye_tilt"]
        x = side * 0.37 * who["eye_spacing"]
        frame = self.head.on_face(x, 0.06, 0.21 * size, 0.2 * size, tilt=tilt)
        patch = self._patch(frame, 1.25, -1.3, 1.2)
        ball = patch.ellipse()
        # The upper lid comes down over the eyeball, from just under its top to past its bottom.
        arc, slope = _arc(patch.u)
        lid = closed * 1.95 - 0.8
        open_ = coverage(patch.distance(lid * arc - patch.v, lid * slope, -1.0))
        open_ += ball
        open_ = np.maximum(open_ - 1.0, 0.0)
        # First eyelid skin over the whole ball, then the eye itself in the aperture.
        lid_skin = self.skin + np.float32(0.35) * (self.skin_shade - self.skin)
        patch.blend(ball, lid_skin)
        shadow = np.clip(0.5 * (1.0 + lid * arc - patch.v), 0.0, 1.0)
        colour = mix(WHITE, rgb("b9bccf")[0], shadow * shadow)
        iris = IRIS[who["iris_colour"]]
        gx, gy = 0.4 * column(pose["gaze_x"]), 0.02 + 0.32 * column(pose["gaze_y"])
        radius = 0.62
        disc = patch.blob(gx, gy + 0.55 * radius, 1.3 * radius, 1.1 * radius)
        tint = mix(iris * np.float32(0.72), iris + np.float32(0.35) * (WHITE - iris), disc)
        colour = mix(colour, iris * np.float32(0.45), patch.ellipse(gx, gy, radius, radius))
        colour = mix(colour, tint, patch.ellipse(gx, gy, radius * 0.86, radius * 0.86))
        colour = mix(colour, INK * np.float32(0.5), patch.ellipse(gx, gy, 0.31, 0.31))
        glint = column(0.2 * who["light"])
        colour = mix(colour, WHITE, patch.ellipse(gx + glint, gy - 0.28, 0.19, 0.19))
        colour = mix(colour, WHITE, 0.6 * patch.ellipse(gx - glint, gy + 0.36, 0.1, 0.1))
        patch.blend(open_, colour)
        # Lashes along the lid, a little beyond the corners.
        bow, slope = _arc(patch.u / 1.1)
        edge = np.minimum(lid, 0.85)
        line = edge * bow * 0.98
        thick = 0.05 + 0.16 * bow
        slope = edge * (slope / 1.1)
        within = patch.between(line - thick, line + 0.02, slope, slope)
        within *= np.abs(patch.u) < 1.1
        patch.blend(within * 0.92, INK)

    def _brow(self, side: int):
        who, pose = self.who, self.pose
        raised = column(pose["brow_left" if side < 0 else "brow_right"])
        frame = self.head.on_face(side * 0.38 * who["eye_spacing"], -0.3, 0.23, 0.25)
        patch = self._patch(frame, 1.05, -1.2, 1.0)
        bow, slope = _bow(patch.u)
        # When raised, the whole brow goes up; in a frown, the inner end goes down further.
        tip = 0.3 * np.minimum(raised, 0.0) - 0.1
        middle = 0.12 - 0.5 * raised - 0.36 * bow + side * tip * patch.u
        slope = side * tip - 0.36 * slope
        half = column(0.16 * who["brow_thickness"]) * (0.35 + 0.65 * bow) * np.sqrt(bow)
        patch.blend(
            patch.between(middle - half, middle + half, slope, slope), self.hair * np.float32(0.72)
        )

    def _nose(self):
        who, head = self.who, self.head
        wide, long = who["nose_width"], who["nose_length"]
        a, b, drop, gap = _NOSE[who["nose_shape"]].T
        a, y = a * wide, 0.22 + 0.16 * long + drop
        # In order: a soft bridge from between the eyes, a shadow below, the tip, two nostrils.
        lift = 0.16
        bridge = head.on_face(0.0, y * 0.6, 0.16 * wide, 0.32 * long, lift=lift * 0.6)
        patch = self._patch(bridge, 1.0, -1.0, 1.0)
        patch.blend(patch.blob() * 0.55, np.minimum(self.skin * np.float32(1.12), 1.0))
        frame = head.on_face(0.0, y, a, b, lift=lift)
        patch = self._patch(frame, 1.6, -1.4, 1.7)
        patch.blend(patch.blob(0.0, 0.55, 1.5, 1.1) * 0.8, self.skin_shade * np.float32(0.92))
        f = patch.u * patch.u + patch.v * patch.v - 1.0
        warm = self.skin * rgb("ffd9d0")[0]
        colour = self._lit(patch, f, patch.v * 1.4, self.skin_shade, warm)
        colour = mix(colour, WHITE, 0.35 * patch.blob(column(0.25 * who["light"]), -0.4, 0.45, 0.4))
        patch.blend(patch.ellipse(), colour)
        gap = column(gap)
        holes = patch.ellipse(-gap, 0.62, 0.2, 0.17) + patch.ellipse(gap, 0.62, 0.2, 0.17)
        patch.blend(np.minimum(holes, 1.0) * 0.7, self.skin_shade * np.float32(0.5))

    def _mouth(self):
        who, pose = self.who, self.pose
        open_, smile = column(pose["mouth_open"]), column(pose["smile"])
        half = 0.29 + 0.07 * smile - 0.05 * open_
        # u is rescaled below, because the mouth's width varies with its motion; v is in head units.
        frame = self.head.on_face(0.0, 0.62, 1.0, 1.0)
        patch = self._patch(frame, 0.42, -0.25, 0.42)
        u = patch.u / half
        bow, bow_slope = _bow(u)
        arc, arc_slope = _arc(u)
        inside = np.abs(u) < 1.0
        bend = 0.15 * smile * (1.0 - 0.35 * open_) * np.where(smile < 0, np.float32(0.75), 1.0)
        middle, middle_slope = bend * (bow - 0.5), bend * bow_slope / half
        up, down = 0.012 + 0.06 * open_, 0.012 + 0.30 * open_
        top, top_slope = middle - up * arc, middle_slope - up * arc_slope / half
        bottom = middle + down * arc
        bottom_slope = middle_slope + down * arc_slope / half
        lip = who["lip_fullness"]
        upper, lower = column(0.045 * lip) * bow, column(0.065 * lip) * bow
        lips = patch.between(top - upper, bottom + lower, top_slope, bottom_slope) * inside
        lip_colour = self.skin * np.float32(0.45) + LIP * np.float32(0.5)
        shine = patch.blob(0.0, down + 0.02 + 0.08 * smile, 0.16, 0.05)
        patch.blend(lips, mix(lip_colour, WHITE, 0.25 * shine))
        hollow = patch.between(top, bottom, top_slope, bottom_slope) * inside
        colour = mix(MOUTH * np.float32(0.75), MOUTH, np.clip(patch.v * 4.0, 0.0, 1.0))
        tongue = patch.ellipse(0.0, down + 0.02 + 0.05 * smile, 0.6 * half, 0.12)
        shown = np.minimum(open_ * 5.0, 1.0)
        colour = mix(colour, TONGUE, tongue * shown)
        teeth = top + 0.04 + 0.05 * open_
        bite = coverage(patch.distance(patch.v - teeth, -top_slope, 1.0))
        colour = mix(colour, TEETH, bite * shown)
        patch.blend(hollow, colour)

    def _beard(self, kind: str):
        if kind == "none":
            return
        head, colour = self.head, self.hair * np.float32(0.82)
        if kind != "goatee":
            frame = head.on_face(0.0, 0.49, 0.32, 0.36, lift=0.1)
            patch = self._patch(frame, 1.0, -0.4, 0.6)
            bow, slope = _bow(patch.u)
            top, bottom = 0.24 - 0.46 * bow, 0.24 - 0.08 * bow
            patch.blend(patch.between(top, bottom, -0.46 * slope, -0.08 * slope), colour)
        if kind == "moustache":
            return
        face, f, fu, fv, t = self._outline()
        colour = self._lit(face, f, t, colour * np.float32(0.6), self.hair)
        if kind == "full":
            opening = face.seen_from(head.on_face(0.0, 0.1, 0.74, 0.62))
            cover = 1.0 - opening.ellipse()
            cover *= np.clip((opening.v + 0.1) * 4.0, 0.0, 1.0)
        else:
            cover = face.seen_from(head.on_face(0.0, 0.98, 0.3, 0.3)).ellipse()
        face.blend(np.minimum(cover, coverage(face.distance(f, fu, fv))), colour)

    def _opening_distance(self, patch: Patch, style: HairStyle):
        """Returns the signed distance in pixels to the edge of the opening that the hair leaves for the face."""
        y, a, b = style.opening
        part = self.who["hair_part"]
        tilt = (0.0 if style.fringe else 0.3) * part
        c, s = np.cos(tilt), np.sin(tilt)
        # The opening widens as the head turns, because the hairline on the far side goes out of sight.
        a = np.float32(a * self.head.half_width / 0.84) * (1.0 + 0.5 * self.head.sin["yaw"] ** 2)
        u, v = (a * np.float32(c), a * np.float32(s), 0), (-b * s, b * c, 0)
        frame = self.head.at((0.12 * part, y, 0.5), u, v)
        opening = patch.seen_from(frame)
        u, v = opening.u, np.minimum(opening.v, 0.0)  # an arch that is open below
        u2, v2 = u * u, v * v
        if style.fringe:
            return opening.distance(u2 * u2 + v2 * v2 - 1.0, 4.0 * u2 * u, 4.0 * v2 * v)
        u2 += v2
        u2 -= 1.0
        return opening.distance(u2, 2.0 * u, 2.0 * v)

    def _hair_front(self, style: HairStyle):
        if not style.volume:
            return
        head = self.head
        grow = np.float32(1.0 + self._volume(style))
        frame = head.plane((0.0, -0.04), (head.outline_a * grow, 0.0), (0.0, head.outline_b * grow))
        patch = self._patch(frame, 1.15, -1.15, style.sides + style.round + 0.05)
        f, fu, fv, t = _curled(patch, style, style.sides, style.round)
        cover = coverage(patch.distance(f, fu, fv))
        cover *= 1.0 - coverage(self._opening_distance(patch, style))
        colour = self._lit(patch, f, t, self.hair * np.float32(0.6), self.hair)
        band = patch.u * patch.u
        band *= 0.25
        band += patch.v + 0.55
        band /= 0.16
        band *= band
        np.subtract(1.0, band, out=band)
        np.maximum(band, 0.0, out=band)
        band *= 0.16
        np.negative(f, out=f)
        band *= np.maximum(f, 0.0, out=f)
        patch.blend(cover, mix(colour, WHITE, band))

    def _glasses(self, kind: str):
        if kind == "none":
            return
        who, head = self.who, self.head
        x = 0.38 * who["eye_spacing"]
        for side in (-1, 1):
            frame = head.on_face(side * x, 0.08, 0.31, 0.28, lift=0.08)
            patch = self._patch(frame, 1.15, -1.15, 1.15)
            u, v = patch.u, patch.v
            if kind == "square":
                u2, v2 = u * u, v * v
                distance = patch.distance(u2 * u2 + v2 * v2 - 1.0, 4.0 * u2 * u, 4.0 * v2 * v)
            else:
                distance = patch.ellipse_distance()
            rim = 0.026 * column(head.unit)
            glare = patch.blob(column(0.4 * who["light"]), -0.4, 0.5, 0.3)
            patch.blend(coverage(distance) * (0.08 + 0.4 * glare), WHITE)
            cover = coverage(distance - rim) + coverage(-distance - rim) - 1.0
            patch.blend(np.maximum(cover, 0.0), INK)
        gap = np.maximum(x - 0.31, 0.02)
        patch = self._patch(head.on_face(0.0, 0.04, gap, 1.0, lift=0.12), 1.0, -0.1, 0.1)
        bow, _ = _bow(patch.u)
        inside = np.abs(patch.u) <= 1.0
        patch.blend(patch.between(-0.06 * bow - 0.02, -0.06 * bow + 0.03, 0.0, 0.0) * inside, INK)
