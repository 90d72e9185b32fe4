"""Paints Heads faces, layer by layer, back to front: what is behind `heads.render`.

Units, coordinates and legend as in `cartoon`: head units, X right, Y down, Z to the viewer; t
frames, s side, h and w a box of pixels. A patch's u and v are its frame's, mostly in half-axes.
"""

from collections.abc import Mapping

import numpy as np

from vidmotion.data.cartoon import (
    BEARDS,
    CLOTH,
    CLOTHES,
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
    Head,
    rgb,
)
from vidmotion.data.raster import Canvas, Frame, Patch, coverage, mix


def _column(x):
    """(t,) -> (t, 1, 1), to broadcast against a box."""
    return x[:, None, None] if isinstance(x, np.ndarray) and x.ndim else x


def _arc(u):
    """A half-ellipse profile sqrt(1 - u^2) and its slope, kept finite at the ends."""
    height = np.sqrt(np.maximum(1.0 - u * u, 0.0))
    return height, -u / np.maximum(height, 0.35)


def _bow(u):
    """A parabola 1 - u^2, 0 beyond the ends, and its slope."""
    return np.maximum(1.0 - u * u, 0.0), np.where(np.abs(u) < 1.0, -2.0 * u, 0.0)


def _pillar(patch: Patch, straight, rounding):
    """Implicit function of a unit-wide shape: half-ellipse on top, straight sides for `straight`
    units of v, then a half-ellipse `rounding` high. Returns f, its derivatives, and height t."""
    v = patch.v
    t = np.where(v < 0, v, np.maximum(v - straight, 0.0) / rounding)
    slope = np.where(v < 0, np.float32(1), np.float32(1 / rounding))
    return patch.u * patch.u + t * t - 1.0, 2.0 * patch.u, 2.0 * t * slope, t


class Painter:
    """Identity `who` in the poses `pose`, over the still picture `behind`.

    who: identity factors by name. pose: motion factors by name, (t,) float32 each. size: the
    side s. behind: (3, s, s), see `cartoon.background`. Ranges are `heads.render`'s to check.
    """

    def __init__(self, who: Mapping, pose: Mapping[str, np.ndarray], size: int, behind: np.ndarray):
        self.who, self.pose = who, pose
        self.head = Head(who, pose, size)
        self.canvas = Canvas(behind, len(pose["x"]))
        tone = who["skin"] * (len(SKIN) - 1)
        k = min(int(tone), len(SKIN) - 2)
        self.skin = SKIN[k] + np.float32(tone - k) * (SKIN[k + 1] - SKIN[k])
        self.skin_shade = self.skin * rgb("d0a5a0")[0]
        self.hair = HAIR[who["hair_colour"]]
        self.brow = self.hair * np.float32(0.72)
        self.cloth = CLOTH[who["clothes_colour"]]
        self.style = HAIRSTYLES[who["hair_style"]]
        self.volume = self.style.volume + 0.1 * who["hair_volume"] * (self.style.volume > 0.05)

    def paint(self) -> np.ndarray:
        """All layers, back to front; (t, s, s, 3) uint8."""
        self._hair_behind()
        self._body()
        if self.style.sides < 0.3:  # longer hair covers the ears
            for side in (-1, 1):
                self._ear(side)
        self._face()
        for side in (-1, 1):
            self._cheek(side)
            self._eye(side)
        if self.who["beard"]:
            self._beard()
        self._mouth()
        self._nose()
        if self.style.volume:
            self._hair_front()
        for side in (-1, 1):
            self._brow(side)
        if self.who["glasses"]:
            self._glasses()
        return self.canvas.to_uint8()

    def _lit(self, patch: Patch, f, t, dark, bright):
        """`dark` to `bright` over a rounded form: f its implicit function, t its height in [-1, 1],
        lit from above and from the identity's side."""
        lit = np.sqrt(np.maximum(-f, 0.0))
        lit *= 0.75
        lit -= 0.32 * t
        lit += (0.3 * self.who["light"]) * patch.u
        lit += 0.28
        return mix(dark, bright, np.clip(lit, 0.0, 1.0, out=lit))

    # ---- behind the face

    def _hair_behind(self):
        head, style = self.head, self.style
        for x, y, z, a, b in style.tufts:
            for side in (-1, 1) if x else (1,):
                self._tuft(head.at((side * x, y, z), (a, 0, 0), (side * 0.2 * x, b, 0)))
        if style.back is None:
            return
        x, y = head.project(0.0, 0.0, -0.12)
        grow = 1.02 + self.volume
        wide = head.outline_a * (grow + 0.06 * (style.back > 1))
        patch = self.canvas.patch(
            head.plane((x, y), (wide, 0), (0, grow)), 1.25, -1.25, style.back + 0.7
        )
        f, fu, fv, _ = self._curled(patch, style.back, 0.4)
        colour = self._lit(patch, f, 1.2, self.hair * np.float32(0.5), self.hair * np.float32(0.86))
        patch.blend(coverage(patch.distance(f, fu, fv)), colour)

    def _tuft(self, frame: Frame):
        patch = self.canvas.patch(frame, 1.0, -1.0, 1.0)
        f = patch.u * patch.u + patch.v * patch.v - 1.0
        colour = self._lit(patch, f, patch.v, self.hair * np.float32(0.6), self._sheen())
        patch.blend(patch.ellipse(), colour)

    def _sheen(self):
        return self.hair + np.float32(0.14) * (WHITE - self.hair)

    def _curled(self, patch: Patch, straight, rounding):
        """`_pillar`, with a scalloped edge for curly hair."""
        f, fu, fv, t = _pillar(patch, straight, rounding)
        if self.style.curls:
            f = f - 0.09 * np.cos(self.style.curls * np.arctan2(patch.u, -t))
        return f, fu, fv, t

    def _body(self):
        head = self.head
        # The neck, in shade under the chin; then the shoulders.
        patch = self.canvas.patch(head.upright(0.0), 0.55, 0.3, 2.1)
        side = np.abs(patch.u) - 0.33 - 0.2 * np.maximum(patch.v - 1.25, 0.0)
        cover = coverage(patch.distance(side, np.sign(patch.u), 0.0))
        cover *= coverage((np.abs(patch.v - 1.2) - 0.9) * _column(head.unit))
        shade = 0.9 * np.clip(1.75 - patch.v, 0.0, 1.0)
        patch.blend(cover, mix(self.skin, self.skin_shade * np.float32(0.9), shade))
        frame = head.upright(2.55)
        patch = self.canvas.patch(
            Frame(frame.origin, frame.axes * np.float32([1.5, 1.2])), 1, -1, 2.2
        )
        f, fu, fv, t = _pillar(patch, 1e3, 1.0)
        colour = self._lit(patch, f, t + 0.5, self.cloth * np.float32(0.66), self.cloth)
        patch.blend(*self._garment(patch, coverage(patch.distance(f, fu, fv)), colour))
        if CLOTHES[self.who["clothes"]] == "turtleneck":
            self._rollneck()

    def _garment(self, patch: Patch, cover, colour):
        """The shoulders' coverage and colour after pattern and neckline are cut into them."""
        kind = CLOTHES[self.who["clothes"]]
        trim = self.cloth * np.float32(0.72)
        pale = self.cloth + np.float32(0.6) * (WHITE - self.cloth)
        x, y = np.abs(patch.u) * 1.5, 2.55 + patch.v * 1.2  # head units, from the skull's middle
        unit = _column(self.head.unit)

        def ring(height, a, b):
            return patch.ellipse_distance(0.0, (height - 2.55) / 1.2, a / 1.5, b / 1.2) / unit

        def within(distance):
            return coverage(distance * unit)

        if kind == "striped":
            wave = np.abs((y + 0.12 * x * x) * 3.2 % 1.0 - 0.5) - 0.23
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
        patch = self.canvas.patch(self.head.upright(1.38), 0.55, -0.2, 0.4)
        side = np.abs(patch.u) - 0.42 - 0.2 * np.maximum(patch.v, 0.0)
        cover = coverage(patch.distance(side, np.sign(patch.u), 0.0))
        cover *= coverage((np.abs(patch.v - 0.1) - 0.24) * _column(self.head.unit))
        shade = np.clip(0.3 + 1.4 * np.abs(patch.u), 0.0, 1.0)
        patch.blend(cover, mix(self.cloth, self.cloth * np.float32(0.7), shade))

    def _ear(self, side: int):
        who, head = self.who, self.head
        size = who["ear_size"]
        x = side * (head.half_width - 0.01)
        frame = head.at((x, 0.1, -0.12), (0.17 * size, 0, -side * 0.16), (0, 0.25 * size, -0.02))
        patch = self.canvas.patch(frame, 1.0, -1.0, 1.0)
        colour = mix(
            self.skin, self.skin_shade, np.float32(0.25) + 0.3 * patch.blob(0, 0, 1.2, 1.2)
        )
        colour = mix(colour, self.skin_shade, 0.8 * patch.ellipse(side * 0.1, 0.0, 0.5, 0.58))
        patch.blend(patch.ellipse(), colour)

    # ---- the face

    def _outline(self):
        """The face's outline: patch, f, df/du, df/dv, height t (-1 crown, 0 eyes, 1 chin)."""
        head, who = self.head, self.who
        # The chin is in front of the skull's axis: turning moves it sideways, nodding up and down.
        chin_x, chin_y = head.project(0.0, head.chin, 0.3)
        shear, low = _column(chin_x / head.outline_a), _column(chin_y / head.outline_b)
        frame = head.plane((0.0, 0.0), (head.outline_a, 0.0), (0.0, head.outline_b))
        patch = self.canvas.patch(frame, 1.3, -1.02, 1.02 * float(low.max()))
        taper = 0.12 - 0.2 * who["jaw"]
        slope = np.where(patch.v > 0, 1.0 / low, np.float32(1))
        t = patch.v * slope
        below = np.clip(t, 0.0, 1.2)  # past the chin the width must stay positive
        below2 = below * below
        width = 1.0 - taper * below2
        r = (patch.u - shear * below2) / width
        f = r * r + t * t - 1.0
        r2 = 2.0 * r / width
        ft = 2.0 * t + r2 * below * (2.0 * taper * r - 2.0 * shear)
        return patch, f, r2, ft * slope, t

    def _face(self):
        patch, f, fu, fv, t = self._outline()
        self._face_cover = coverage(patch.distance(f, fu, fv))
        self._face_form = patch, f, t
        colour = self._lit(patch, f, t, self.skin_shade, self.skin)
        if self.style.volume:  # the hair's soft shadow
            depth = self._opening_distance(patch) / (0.14 * _column(self.head.unit))
            shadow = np.clip(1.0 + depth, 0.0, 1.0)
            colour = mix(colour, self.skin_shade * np.float32(0.75), 0.45 * shadow)
        patch.blend(self._face_cover, colour)

    def _cheek(self, side: int):
        patch = self.canvas.patch(self.head.on_face(side * 0.46, 0.42, 0.26, 0.2), 1.0, -1.0, 1.0)
        blush = self.skin * rgb("ffa59b")[0]
        patch.blend(patch.blob() * 0.6, blush)
        if self.who["freckles"]:
            spots = [(-0.55, -0.3), (0.0, -0.45), (0.5, -0.2), (-0.25, 0.15), (0.3, 0.3)]
            cover = sum(patch.ellipse(u * side, v, 0.1, 0.13) for u, v in spots)
            patch.blend(cover * 0.75, self.skin * rgb("b0755f")[0])

    def _eye(self, side: int):
        who, pose = self.who, self.pose
        size = who["eye_size"]
        closed = _column(pose["lid_left" if side < 0 else "lid_right"])
        tilt = -side * 0.16 * who["eye_tilt"]
        x = side * 0.37 * who["eye_spacing"]
        frame = self.head.on_face(x, 0.06, 0.21 * size, 0.2 * size, tilt=tilt)
        patch = self.canvas.patch(frame, 1.25, -1.3, 1.2)
        ball = patch.ellipse()
        # The upper lid comes down over the eyeball, from just under its top to past its bottom.
        arc, slope = _arc(patch.u)
        lid = closed * 1.95 - 0.8
        open_ = coverage(patch.distance(lid * arc - patch.v, lid * slope, -1.0))
        open_ += ball
        open_ = np.maximum(open_ - 1.0, 0.0)
        # Eyelid skin over the whole ball, then what the aperture shows.
        lid_skin = self.skin + np.float32(0.35) * (self.skin_shade - self.skin)
        patch.blend(ball, lid_skin)
        shadow = np.clip(0.5 * (1.0 + lid * arc - patch.v), 0.0, 1.0)
        colour = mix(WHITE, rgb("b9bccf")[0], shadow * shadow)
        iris = IRIS[who["iris_colour"]]
        gx, gy = 0.4 * _column(pose["gaze_x"]), 0.02 + 0.32 * _column(pose["gaze_y"])
        radius = 0.62
        disc = patch.blob(gx, gy + 0.55 * radius, 1.3 * radius, 1.1 * radius)
        tint = mix(iris * np.float32(0.72), iris + np.float32(0.35) * (WHITE - iris), disc)
        colour = mix(colour, iris * np.float32(0.45), patch.ellipse(gx, gy, radius, radius))
        colour = mix(colour, tint, patch.ellipse(gx, gy, radius * 0.86, radius * 0.86))
        colour = mix(colour, INK * np.float32(0.5), patch.ellipse(gx, gy, 0.31, 0.31))
        glint = 0.2 * who["light"]
        colour = mix(colour, WHITE, patch.ellipse(gx + glint, gy - 0.28, 0.19, 0.19))
        colour = mix(colour, WHITE, 0.6 * patch.ellipse(gx - glint, gy + 0.36, 0.1, 0.1))
        patch.blend(open_, colour)
        # Lashes along the lid, a little beyond the corners.
        bow, slope = _arc(patch.u / 1.1)
        edge = np.minimum(lid, 0.85)
        line = edge * bow * 0.98
        thick = 0.05 + 0.16 * bow
        slope = slope / 1.1
        within = patch.between(line - thick, line + 0.02, edge * slope, edge * slope)
        within *= np.abs(patch.u) < 1.1
        patch.blend(within * 0.92, INK)

    def _brow(self, side: int):
        who, pose = self.who, self.pose
        raised = _column(pose["brow_left" if side < 0 else "brow_right"])
        frame = self.head.on_face(side * 0.38 * who["eye_spacing"], -0.3, 0.23, 0.25)
        patch = self.canvas.patch(frame, 1.05, -1.2, 1.0)
        bow, slope = _bow(patch.u)
        # Raised, the whole brow goes up; in a frown the inner end goes down further.
        tip = 0.3 * np.minimum(raised, 0.0) - 0.1
        middle = 0.12 - 0.5 * raised - 0.36 * bow + side * tip * patch.u
        slope = side * tip - 0.36 * slope
        half = 0.16 * who["brow_thickness"] * (0.35 + 0.65 * bow) * np.sqrt(bow)
        patch.blend(patch.between(middle - half, middle + half, slope, slope), self.brow)

    def _nose(self):
        who, head = self.who, self.head
        wide, long = who["nose_width"], who["nose_length"]
        kind = NOSES[who["nose_shape"]]
        a = {"button": 0.13, "long": 0.115, "broad": 0.19}[kind] * wide
        b = {"button": 0.11, "long": 0.14, "broad": 0.11}[kind]
        y = 0.22 + 0.16 * long + (0.03 if kind == "long" else 0.0)
        # A soft bridge from between the eyes, a shadow below, the tip, two nostrils.
        lift = 0.16
        bridge = head.on_face(0.0, y * 0.6, 0.16 * wide, 0.32 * long, lift=lift * 0.6)
        patch = self.canvas.patch(bridge, 1.0, -1.0, 1.0)
        patch.blend(patch.blob() * 0.55, np.minimum(self.skin * np.float32(1.12), 1.0))
        frame = head.on_face(0.0, y, a, b, lift=lift)
        patch = self.canvas.patch(frame, 1.6, -1.4, 1.7)
        patch.blend(patch.blob(0.0, 0.55, 1.5, 1.1) * 0.8, self.skin_shade * np.float32(0.92))
        f = patch.u * patch.u + patch.v * patch.v - 1.0
        warm = self.skin * rgb("ffd9d0")[0]
        colour = self._lit(patch, f, patch.v * 1.4, self.skin_shade, warm)
        colour = mix(colour, WHITE, 0.35 * patch.blob(0.25 * who["light"], -0.4, 0.45, 0.4))
        patch.blend(patch.ellipse(), colour)
        gap = 0.5 if kind != "broad" else 0.6
        holes = patch.ellipse(-gap, 0.62, 0.2, 0.17) + patch.ellipse(gap, 0.62, 0.2, 0.17)
        patch.blend(np.minimum(holes, 1.0) * 0.7, self.skin_shade * np.float32(0.5))

    def _mouth(self):
        who, pose = self.who, self.pose
        open_, smile = _column(pose["mouth_open"]), _column(pose["smile"])
        half = 0.29 + 0.07 * smile - 0.05 * open_
        # u is scaled by hand, since the width moves; v is in head units.
        frame = self.head.on_face(0.0, 0.62, 1.0, 1.0)
        patch = self.canvas.patch(frame, 0.42, -0.25, 0.42)
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
        upper, lower = 0.045 * lip * bow, 0.065 * lip * bow
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

    def _beard(self):
        who, head = self.who, self.head
        kind = BEARDS[who["beard"]]
        colour = self.hair * np.float32(0.82)
        if kind != "goatee":
            frame = head.on_face(0.0, 0.49, 0.32, 0.36, lift=0.1)
            patch = self.canvas.patch(frame, 1.0, -0.4, 0.6)
            bow, slope = _bow(patch.u)
            top, bottom = 0.24 - 0.46 * bow, 0.24 - 0.08 * bow
            patch.blend(patch.between(top, bottom, -0.46 * slope, -0.08 * slope), colour)
        if kind == "moustache":
            return
        face, f, t = self._face_form
        colour = self._lit(face, f, t, colour * np.float32(0.6), self.hair)
        if kind == "full":
            opening = face.seen_from(head.on_face(0.0, 0.1, 0.74, 0.62))
            cover = 1.0 - opening.ellipse()
            cover *= np.clip((opening.v + 0.1) * 4.0, 0.0, 1.0)
        else:
            cover = face.seen_from(head.on_face(0.0, 0.98, 0.3, 0.3)).ellipse()
        face.blend(np.minimum(cover, self._face_cover), colour)

    def _opening_distance(self, patch: Patch):
        """Distance, in pixels, to the edge of the opening that the hair leaves for the face."""
        y, a, b = self.style.opening
        part = self.who["hair_part"]
        tilt = 0.0 if self.style.fringe else 0.3 * part
        c, s = float(np.cos(tilt)), float(np.sin(tilt))
        # Wider as the head turns: the hairline on the far side goes out of sight.
        a = a * self.head.half_width / 0.84 * (1.0 + 0.5 * self.head.sin["yaw"] ** 2)
        frame = self.head.at((0.12 * part, y, 0.5), (a * c, a * s, 0), (-b * s, b * c, 0))
        opening = patch.seen_from(frame)
        u, v = opening.u, np.minimum(opening.v, 0.0)  # an arch: open below
        u2, v2 = u * u, v * v
        if self.style.fringe:
            return opening.distance(u2 * u2 + v2 * v2 - 1.0, 4.0 * u2 * u, 4.0 * v2 * v)
        return opening.distance(u2 + v2 - 1.0, 2.0 * u, 2.0 * v)

    def _hair_front(self):
        head, style = self.head, self.style
        grow = 1.0 + self.volume
        frame = head.plane((0.0, -0.04), (head.outline_a * grow, 0.0), (0.0, head.outline_b * grow))
        patch = self.canvas.patch(frame, 1.15, -1.15, style.sides + style.round + 0.05)
        f, fu, fv, t = self._curled(patch, style.sides, style.round)
        cover = coverage(patch.distance(f, fu, fv))
        cover *= 1.0 - coverage(self._opening_distance(patch))
        colour = self._lit(patch, f, t, self.hair * np.float32(0.6), self.hair)
        band = np.maximum(1.0 - ((patch.v + 0.55 + 0.25 * patch.u**2) / 0.16) ** 2, 0.0)
        colour = mix(colour, WHITE, 0.16 * band * np.maximum(-f, 0.0))
        patch.blend(cover, colour)

    def _glasses(self):
        who, head = self.who, self.head
        square = GLASSES[who["glasses"]] == "square"
        x = 0.38 * who["eye_spacing"]
        for side in (-1, 1):
            frame = head.on_face(side * x, 0.08, 0.31, 0.28, lift=0.08)
            patch = self.canvas.patch(frame, 1.15, -1.15, 1.15)
            u, v = patch.u, patch.v
            if square:
                u2, v2 = u * u, v * v
                distance = patch.distance(u2 * u2 + v2 * v2 - 1.0, 4.0 * u2 * u, 4.0 * v2 * v)
            else:
                distance = patch.ellipse_distance()
            rim = 0.026 * _column(head.unit)
            glare = patch.blob(0.4 * who["light"], -0.4, 0.5, 0.3)
            patch.blend(coverage(distance) * (0.08 + 0.4 * glare), WHITE)
            cover = coverage(distance - rim) + coverage(-distance - rim) - 1.0
            patch.blend(np.maximum(cover, 0.0), INK)
        gap = max(x - 0.31, 0.02)
        patch = self.canvas.patch(head.on_face(0.0, 0.04, gap, 1.0, lift=0.12), 1.0, -0.1, 0.1)
        bow, _ = _bow(patch.u)
        inside = np.abs(patch.u) <= 1.0
        patch.blend(patch.between(-0.06 * bow - 0.02, -0.06 * bow + 0.03, 0.0, 0.0) * inside, INK)
