"""Draws anti-aliased shapes on many frames at once, on the pixel grid, in plain numpy.

A shape is defined in a local coordinate system (`Frame`) with its own origin and axes in every picture. `Canvas.patch`
selects the box of pixels that the shape can touch. The resulting `Patch` has the local coordinates of those pixels,
turns implicit functions into coverage, and blends colours in.

Coverage comes from the signed distance to the edge, in pixels, filtered with a box one pixel wide, without
supersampling. The value of a pixel depends on that pixel and its frame only, not on the box or on the frames drawn
together with it, so any subset of the frames gives the same result, bit for bit.

Shapes: t frames, s canvas side, h and w the box, 3 colour channels in [0, 1]; float32 throughout.
A "field" is a float32 array that broadcasts against (t, h, w): a scalar, (t, 1, 1) or (t, h, w).
A "colour" is a float32 array (3,), (t, 3) or (t, 3, h, w).
"""

import dataclasses
import functools

import numpy as np

_TINY = 1e-6


@dataclasses.dataclass(frozen=True)
class Frame:
    """A local coordinate system in each picture.

    Attributes:
      origin: (t, 2), the origin (x, y) in pixels, with pixel centres at k + 0.5.
      axes: (t, 2, 2), pixels per local unit; `axes[:, :, 0]` is the image of local u, `axes[:, :, 1]` that of local v.
    """

    origin: np.ndarray
    axes: np.ndarray


class Patch:
    """The pixels of one box per frame, with their local coordinates `u` and `v`, (t, h, w)."""

    def __init__(
        self, window: np.ndarray, index: tuple, frame: Frame, x: np.ndarray, y: np.ndarray
    ):
        a, b = frame.axes[:, 0, 0], frame.axes[:, 0, 1]
        c, d = frame.axes[:, 1, 0], frame.axes[:, 1, 1]
        det = a * d - b * c
        det = np.where(np.abs(det) < _TINY, np.float32(_TINY), det)
        self._ux, self._uy, self._vx, self._vy = map(column, (d / det, -b / det, -c / det, a / det))
        dx = (x - frame.origin[:, :1])[:, None, :]
        dy = (y - frame.origin[:, 1:])[:, :, None]
        self.u = self._ux * dx + self._uy * dy
        self.v = self._vx * dx + self._vy * dy
        self._window, self._index, self._frame, self._x, self._y = window, index, frame, x, y

    def seen_from(self, frame: Frame) -> "Patch":
        """Returns the same pixels in another frame's coordinates."""
        return Patch(self._window, self._index, frame, self._x, self._y)

    @functools.cached_property
    def _half_pixel(self):
        """Half a pixel in units of u and in units of v, as fields."""
        axes = self._frame.axes
        pixels = np.sqrt(axes[:, 0] * axes[:, 0] + axes[:, 1] * axes[:, 1])
        return [column(half) for half in (0.5 / np.maximum(pixels, _TINY)).T]

    def distance(self, f, fu, fv):
        """Returns the signed distance in pixels, to first order, to the edge f = 0 (negative inside).

        f, fu and fv are fields: an implicit function of (u, v) and its derivatives by u and v.
        """
        return f / self._steepness(fu, fv)

    def _steepness(self, fu, fv):
        """Returns the length of the gradient per pixel, given the derivatives by u and v."""
        gx = self._ux * fu + self._vx * fv
        gy = self._uy * fu + self._vy * fv
        gx *= gx
        gy *= gy
        gx += gy
        gx += _TINY * _TINY
        return np.sqrt(gx, out=gx)

    def ellipse_distance(self, u0=0.0, v0=0.0, a=1.0, b=1.0):
        """Returns the signed distance in pixels to the ellipse with half-axes a and b around (u0, v0)."""
        du, dv = self._within(u0, v0, a, b)
        f = du * du
        f += dv * dv
        f -= 1.0
        du *= 2.0
        du /= a
        dv *= 2.0
        dv /= b
        return self.distance(f, du, dv)

    def ellipse(self, u0=0.0, v0=0.0, a=1.0, b=1.0):
        """Returns the coverage in [0, 1], (t, h, w), of the ellipse with half-axes a and b around (u0, v0).

        An ellipse thinner than a pixel is widened to a pixel and dimmed in proportion, so that it fades rather than
        flickers.
        """
        least_a, least_b = self._half_pixel
        a_px, b_px = np.maximum(a, least_a), np.maximum(b, least_b)
        alpha = coverage(self.ellipse_distance(u0, v0, a_px, b_px))
        alpha *= (a / a_px) * (b / b_px)
        return alpha

    def between(self, top, bottom, top_slope, bottom_slope):
        """Returns the coverage of top(u) <= v <= bottom(u), given fields; it is exact in the limit of thin bands."""
        steepness = self._steepness(top_slope, -1.0)
        alpha = coverage((top - self.v) / steepness)
        if bottom_slope is not top_slope:
            steepness = self._steepness(bottom_slope, -1.0)
        alpha += coverage((self.v - bottom) / steepness)
        alpha -= 1.0
        return np.maximum(alpha, 0.0, out=alpha)

    def blob(self, u0=0.0, v0=0.0, a=1.0, b=1.0):
        """Returns the coverage of a soft spot: 1 at (u0, v0), falling smoothly to 0 at the edge of the ellipse."""
        du, dv = self._within(u0, v0, a, b)
        du *= du
        dv *= dv
        np.subtract(1.0, du, out=du)
        du -= dv
        np.maximum(du, 0.0, out=du)
        du *= du
        return du

    def _within(self, u0, v0, a, b):
        """Returns u and v relative to (u0, v0), in units of a and b, as two new arrays."""
        du, dv = self.u - u0, self.v - v0
        du /= a
        dv /= b
        return du, dv

    def blend(self, alpha, colour):
        """Paints `colour` over the canvas with opacity `alpha` (t, h, w)."""
        under = self._window[self._index]
        self._window[self._index] = mix(under, colour, alpha)


class Canvas:
    """The t square pictures of side s to draw on: `rgb` is (t, 3, s, s) float32 in [0, 1], changed in place."""

    def __init__(self, background: np.ndarray):
        """Wraps `background` (t, 3, s, s) float32 without a copy, so that drawing changes it."""
        self.rgb = background

    def patch(self, frames: np.ndarray, frame: Frame, u: float, v0: float, v1: float) -> Patch:
        """Returns the box of pixels around local |u| <= `u`, `v0` <= v <= `v1` (scalars), in some of the pictures.

        `frames` are the numbers of the pictures, and `frame` is the local coordinate system in each of them.
        """
        t, _, s, _ = self.rgb.shape
        along = frame.axes[:, :, 1, None] * np.float32([v0, v1])
        along += frame.origin[:, :, None]
        reach = np.abs(frame.axes[:, :, 0]) * u + 1.0
        first = np.floor(along.min(2) - reach).clip(0, s).astype(np.intp)
        last = np.ceil(along.max(2) + reach).clip(0, s).astype(np.intp)
        w, h = np.maximum((last - first).max(0), 1).tolist()
        low = np.minimum(first, [s - w, s - h]).T
        # A view of every possible (h, w) box; indexing it with the boxes' corners gathers the boxes.
        st, sc, sy, sx = self.rgb.strides
        window = np.ndarray(
            (t, s - h + 1, s - w + 1, 3, h, w), np.float32, self.rgb, 0, (st, sy, sx, sc, sy, sx)
        )
        x, y = (
            np.add(corner[:, None], np.arange(0.5, side), dtype=np.float32)
            for corner, side in zip(low, (w, h))
        )
        return Patch(window, (frames, low[1], low[0]), frame, x, y)

    def to_uint8(self) -> np.ndarray:
        """Returns the pictures as (t, s, s, 3) uint8, rounded; this overwrites `rgb`."""
        rgb = self.rgb
        rgb *= 255.0
        rgb += 0.5
        np.clip(rgb, 0.0, 255.0, out=rgb)
        return rgb.transpose(0, 2, 3, 1).astype(np.uint8, order="C")


def column(x):
    """Turns an array of one value per frame, (t,), into a float32 field; a number is returned as it is."""
    return np.float32(x)[:, None, None] if isinstance(x, np.ndarray) else x


def coverage(distance):
    """Returns the share of a pixel that lies inside an edge `distance` pixels away: clip(1/2 - d, 0, 1)."""
    alpha = np.subtract(np.float32(0.5), distance)
    return np.clip(alpha, 0.0, 1.0, out=alpha)


def mix(under, over, alpha):
    """Mixes two colours by an alpha (t, h, w) in [0, 1]: under + alpha * (over - under), (t, 3, h, w)."""
    fields = under.ndim == 4 or over.ndim == 4
    under, over = (c if c.ndim == 4 else c[..., None, None] for c in (under, over))
    out = over - under
    if fields:
        out *= alpha[:, None]
    else:
        out = alpha[:, None] * out
    out += under
    return out
