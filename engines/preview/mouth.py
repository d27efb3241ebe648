"""Pictures of the mouth region for any opening and width, made from the one portrait.

The theory. In the mouth's own axes (p corner to corner, q down) two curves bound the gap between the lips: `upper(p)`
and `lower(p)`. A mouth shape moves them apart: the upper lip takes a fifth, the lower lip the rest, the chin follows
with 80 % of the lower lip and carries the jaw with it; down the neck and out at the jaw's sides the movement dies out.
For each pixel of the new picture the formulas give where in the portrait it came from (a backward map without seams:
the only break is the gap itself). What the gap uncovers is painted: the portrait's own teeth, hung from the upper lip,
where it shows any; else teeth, tongue and darkness in the light of the portrait's cheeks.

A triangle mesh was tried first for this and left specks along the lips, and one seam a triangle.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from engines.preview.face import Points
from engines.preview.local import Axes, Box, Grid, clipped, smooth
from engines.preview.portrait import Pixels

UPPER_INNER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
UPPER_OUTER, LOWER_OUTER, NOSE_BASE, CHIN = 0, 17, 2, 152
JAW_SIDES = (172, 397)
CHEEKS = (50, 280, 205, 425)

UPPER_SHARE, CHIN_SHARE, CORNER_SHARE = 0.2, 0.8, 0.12
WIDEN, ROUND = 0.085, 0.05
OWN_GAP = 0.06
"""Above this part of the mouth's width the portrait's own mouth counts as open."""

NEUTRAL_SKIN = np.array([205, 160, 138], np.float32)
TEETH = np.array([226, 217, 205], np.float32)
SHADED_TEETH = np.array([72, 18, 14], np.float32)
"""Shade within a mouth is red: grey teeth look like metal."""
TONGUE = np.array([150, 74, 74], np.float32)
DEEP = np.array([42, 16, 16], np.float32)


@dataclass(frozen=True, slots=True)
class Shape:
    """One mouth: `gap` between the lips in pixels, `scale` of its width."""

    gap: float
    scale: float


class Mouth:
    """The mouth region of one portrait: `box` is what changes, `picture(open, wide)` shows it."""

    def __init__(self, rgb: Pixels, points: Points) -> None:
        self._rgb = rgb
        self._axes = axes = Axes.between(points[UPPER_INNER[0]], points[UPPER_INNER[-1]])
        self._half = axes.half
        self._own = _Gap(axes.local(points[list(UPPER_INNER)]), axes.local(points[list(LOWER_INNER)]), self._half)
        self._ideal = np.maximum(1 - (_knots(self._half) / self._half) ** 2, 0) ** np.float32(0.7)
        self._least, self._most = self._gaps()
        self._marks = marks = _Marks.make(axes, points, self._own.size)
        self.box = self._box(*marks.corners())
        self._lips = self._box(*marks.lip_corners(self._most)).common(self.box).within(self.box)
        local = axes.local(np.stack(self.box.pixels(), axis=-1))
        self._p, self._q = np.ascontiguousarray(local[..., 0]), np.ascontiguousarray(local[..., 1])
        self._weights = _Weights.make(self._p, self._q, self._lips, marks)
        self._colours = _Colours.under_light_of(rgb, points)

    def _box(self, p: Grid, q: Grid) -> Box:
        return Box.around(np.stack(self._axes.picture(p, q), axis=1), *self._rgb.shape[1::-1])

    @property
    def travel(self) -> float:
        """Return how many pixels the gap grows from shut to wide open."""
        return self._most - self._least

    def picture(self, opened: float, wide: float) -> Pixels:
        """Return the box's pixels (height, width, 3) with the mouth `opened` 0..1 and `wide` -1..1."""
        shape = Shape(self._least + opened * self.travel, 1 + WIDEN * wide - ROUND * opened)
        return self._draw(shape)

    def _gaps(self) -> tuple[float, float]:
        own, width = self._own.size, 2 * self._half
        if not own:
            return 0.0, 0.3 * width
        return 0.12 * own, max(0.3 * width, min(own, 0.55 * width))

    def _draw(self, shape: Shape) -> Pixels:
        weights, own = self._weights, self._own
        drop = self._limited((1 - UPPER_SHARE) * (shape.gap - own.size))
        jaw = CHIN_SHARE * drop
        p = self._p + (1 / shape.scale - 1) * weights.width
        q = self._q - (CORNER_SHARE * jaw) * weights.corner
        shift = jaw * weights.jaw
        lips = self._lips
        upper, lower, shift[lips] = self._lip_shift(p[lips], q[lips], jaw, shape)
        x, y = self._axes.picture(p, q - shift)
        skin = cv2.remap(self._rgb, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        self._paint(skin[lips], p[lips], q[lips], upper, lower)
        return skin

    def _lip_shift(self, p: Grid, q: Grid, jaw: float, shape: Shape) -> tuple[Grid, Grid, Grid]:
        """Return the curves of the gap at `p`, and how far each pixel around the lips has moved down."""
        weights = self._weights
        upper, lower, rise, fall = self._curves(p, shape)
        below = smooth(q - lower, 0, self._marks.blend)
        down = (fall + (jaw * weights.lips_jaw - fall) * below) * weights.lips_neck
        return upper, lower, np.where(q < (upper + lower) / 2, rise * weights.lips_nose, down)

    def _limited(self, drop: float) -> float:
        """Keep the chin's way well under the stretch of neck it folds into, or the neck would turn over."""
        most = 0.45 * (self._marks.end - self._marks.chin) / CHIN_SHARE
        return max(-most, min(drop, most))

    def _curves(self, p: Grid, shape: Shape) -> tuple[Grid, Grid, Grid, Grid]:
        """Return the new upper and lower curve at `p`, and how far each has moved."""
        own = self._own
        had_upper, had_lower = own.table
        had = had_lower - had_upper
        like_own = min(1.0, own.size / max(shape.gap, 1e-3))
        profile = like_own * had / max(own.size, 1e-3) + (1 - like_own) * self._ideal
        change = shape.gap * profile - had
        rise, fall = -UPPER_SHARE * change, (1 - UPPER_SHARE) * change
        upper, lower, rise, fall = _look_up(p, self._half, (had_upper + rise, had_lower + fall, rise, fall))
        return upper, lower, rise, fall

    def _paint(self, skin: Pixels, p: Grid, q: Grid, upper: Grid, lower: Grid) -> None:
        """Paint the inside of the mouth over `skin` where the lips are apart."""
        cover = clipped(q - upper + 0.5) * clipped(lower - q + 0.5) * clipped(lower - upper - 0.3)
        rows, columns = np.flatnonzero(cover.any(axis=1)), np.flatnonzero(cover.any(axis=0))
        if not len(rows):
            return
        part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        inside = self._inside(p[part], q[part], upper[part], lower[part])
        alpha = cover[part][..., None]
        skin[part] = (skin[part] + (inside - skin[part]) * alpha + 0.5).astype(np.uint8)

    def _inside(self, p: Grid, q: Grid, upper: Grid, lower: Grid) -> Grid:
        made = self._made_up(p, q, upper, lower)
        own = self._own
        if own.size < 2:
            return made
        own_upper, own_lower = _look_up(p, self._half, own.table)
        from_q = q - upper + own_upper
        x, y = self._axes.picture(p, from_q)
        teeth = cv2.remap(self._rgb, x, y, cv2.INTER_LINEAR).astype(np.float32)
        room = max(1.0, 0.15 * own.size)
        known = smooth((own_lower - from_q - 0.5) / room)[..., None]
        return np.asarray(teeth * known + made * (1 - known))

    def _made_up(self, p: Grid, q: Grid, upper: Grid, lower: Grid) -> Grid:
        """Return teeth, tongue and darkness (height, width, 3) for a mouth that never showed any."""
        width = 2 * self._half
        side = clipped(np.abs(p) / self._half)
        depth, gap = q - upper, np.maximum(lower - upper, 1e-3)
        colours = self._colours
        tongue = smooth((depth / gap - 0.55) / 0.45) * (1 - side**2) * 0.75
        colour = np.asarray(colours.deep + (colours.tongue - colours.deep) * tongue[..., None])
        if self._own.size:
            return colour
        tall = 0.13 * width * (1 - 0.45 * side**2)
        edge = max(1.0, 0.025 * width)
        teeth = clipped((tall - depth) / edge + 0.5) * smooth((1 - side) / 0.25)
        lit = (0.62 + 0.38 * smooth(depth / (0.1 * width))) * (1 - 0.45 * side**2) * self._between_teeth(p)
        # Between lips that hardly part, teeth are in the dark; painted there they look like metal.
        teeth = teeth * smooth(gap.max(), 0.03 * width, 0.14 * width)
        shown = colours.shaded_teeth + (colours.teeth - colours.shaded_teeth) * lit[..., None]
        return np.asarray(colour + (shown - colour) * teeth[..., None])

    def _between_teeth(self, p: Grid) -> Grid:
        """Return how light each place along the row of teeth is: a little darker where two teeth meet."""
        pitch = 0.23 * self._half
        away = np.abs((p / pitch + 0.5) % 1 - 0.5) * pitch
        strength = 0.22 * min(1.0, max(0.0, (pitch - 3) / 4))
        return np.asarray(1 - strength * clipped(1 - away / max(0.8, 0.13 * pitch)))


class _Gap:
    """The portrait's own gap between the lips, as curves over p."""

    def __init__(self, upper: Points, lower: Points, half: float) -> None:
        knots = _knots(half)
        top, bottom = _curve(upper, knots), _curve(lower, knots)
        middle, gap = (top + bottom) / 2, np.maximum(bottom - top, 0)
        # In shut lips the mesh sees a gap of a pixel or two.
        if gap.max() < OWN_GAP * 2 * half:
            gap = np.zeros_like(gap)
        self.table = middle - gap / 2, middle + gap / 2
        self.size = float(gap.max())


def _curve(points: Points, knots: Grid) -> Grid:
    """Return q at `knots` along mesh points (n, 2), rounded so that the points leave no corners."""
    order = np.argsort(points[:, 0])
    line = np.interp(knots, points[order, 0], points[order, 1])
    kernel = np.hanning(9)[1:-1]
    rounded = np.convolve(np.pad(line, 3, mode="reflect", reflect_type="odd"), kernel / kernel.sum(), "valid")
    return rounded.astype(np.float32)


def _knots(half: float) -> Grid:
    """Return the places p from corner to corner at which curves are kept."""
    return np.linspace(-half, half, 65, dtype=np.float32)


def _look_up(p: Grid, half: float, curves: tuple[Grid, ...]) -> tuple[Grid, ...]:
    """Return `curves`, given at _knots(half), at `p`; their ends go on outside."""
    table = np.stack(curves, axis=-1)[None]
    place = (p + np.float32(half)) * np.float32((table.shape[1] - 1) / (2 * half))
    # remap is the quickest interpolation at hand: a curve is a picture of one row.
    found = cv2.remap(table, place, np.zeros_like(place), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return tuple(found[..., index] for index in range(len(curves)))


@dataclass(frozen=True, slots=True)
class _Weights:
    """How each movement acts on every pixel of the box; none of it depends on the mouth's shape.

    `width` is the way along p at twice the width, `corner` and `jaw` are parts 0..1 of the way down. The rest is for
    the pixels around the lips only: `lips_jaw` has no regard for the lips, `lips_neck` and `lips_nose` fade the lips'
    way out below and above.
    """

    width: Grid
    corner: Grid
    jaw: Grid
    lips_jaw: Grid
    lips_neck: Grid
    lips_nose: Grid

    @classmethod
    def make(cls, p: Grid, q: Grid, lips: tuple[slice, slice], marks: _Marks) -> _Weights:
        beside = np.abs(p) / marks.half
        around = (1 - smooth(q, marks.lip_bottom, marks.chin)) * smooth(q, marks.nose, marks.lip_top)
        jaw = 0.5 + 0.5 * np.cos(np.pi * np.clip(np.abs(p) / np.where(p < 0, marks.left, marks.right), 0, 1))
        neck = 1 - smooth(q, 0.97 * marks.chin, marks.end)
        corner = np.exp(-(((beside - 1) / 0.5) ** 2) - (q / (0.6 * marks.half)) ** 2) * around
        weights = (
            p * (1 - smooth(beside, 1.0, 2.2)) * around,
            corner,
            jaw * neck * smooth(q, 0, marks.blend),
            jaw[lips],
            neck[lips],
            smooth(q, marks.nose, marks.lip_top)[lips],
        )
        return cls(*(np.ascontiguousarray(weight, np.float32) for weight in weights))


@dataclass(frozen=True, slots=True)
class _Marks:
    """Places on the face in the mouth's axes, in pixels, kept apart also where the mesh is odd.

    Along p: `half` the mouth's width, `left` and `right` the jaw's reach. Along q: `nose` its base, `lip_top`,
    `lip_bottom`, `chin`, and `end`, where down the neck the movement has died out. `blend` is how far below the gap
    the lip's movement has become the jaw's.
    """

    half: float
    left: float
    right: float
    nose: float
    lip_top: float
    lip_bottom: float
    chin: float
    end: float
    blend: float

    @classmethod
    def make(cls, axes: Axes, points: Points, gap: float) -> _Marks:
        half = axes.half
        nose, top, bottom, chin = axes.local(points[[NOSE_BASE, UPPER_OUTER, LOWER_OUTER, CHIN]])[:, 1].tolist()
        left, right = axes.local(points[list(JAW_SIDES)])[:, 0].tolist()
        top = min(top, -0.12 * half)
        bottom = max(bottom, gap + 0.12 * half)
        chin = max(chin, bottom + 0.5 * half)
        return cls(
            half=half,
            left=max(-left, 1.4 * half),
            right=max(right, 1.4 * half),
            nose=min(nose, top - 0.2 * half),
            lip_top=top,
            lip_bottom=bottom,
            chin=chin,
            end=chin + 0.5 * (chin - top),
            blend=1.2 * (bottom - gap) + 0.35 * half,
        )

    def corners(self) -> tuple[Grid, Grid]:
        """Return p and q of the corners of all that moves."""
        left, right = (1.1 * max(side, 2.2 * self.half) for side in (self.left, self.right))
        return np.array([-left, right, -left, right]), np.array([self.nose, self.nose, self.end, self.end])

    def lip_corners(self, gap: float) -> tuple[Grid, Grid]:
        """Return p and q of the corners of what moves with the lips, when they are at most `gap` apart."""
        left, low = 1.15 * self.half, gap + self.lip_bottom + self.blend
        return np.array([-left, left, -left, left]), np.array([self.nose, self.nose, low, low])


@dataclass(frozen=True, slots=True)
class _Colours:
    """What the inside of a mouth looks like in the light of one portrait; each is (3,), RGB."""

    teeth: Grid
    shaded_teeth: Grid
    tongue: Grid
    deep: Grid

    @classmethod
    def under_light_of(cls, rgb: Pixels, points: Points) -> _Colours:
        """Take the light from the cheeks: what they show, over what a neutral skin would."""
        spots = []
        height, width = rgb.shape[:2]
        for x, y in points[list(CHEEKS)].astype(int).tolist():
            column, row = min(max(x, 1), width - 2), min(max(y, 1), height - 2)
            spots.append(rgb[row - 1 : row + 2, column - 1 : column + 2].mean(axis=(0, 1)))
        skin = np.median(spots, axis=0)
        light = np.clip(skin / NEUTRAL_SKIN, 0.25, 1.2)
        # Skin without colour is a picture in black and white: so are its teeth and tongue.
        colour = min(1.0, float(np.ptp(skin)) / max(float(skin.max()), 1) / 0.12)
        lit = (np.minimum(value * light, 250) for value in (TEETH, SHADED_TEETH, TONGUE, DEEP))
        return cls(*(np.asarray(value.mean() + (value - value.mean()) * colour, np.float32) for value in lit))
