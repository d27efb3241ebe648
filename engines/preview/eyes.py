"""Pictures of an eye with its lid lowered, made from the one portrait.

The upper lid comes down over an eye that stays where it is, as lids do. Its skin is the strip below the brow, unrolled
downwards, with a soft line of lashes along its edge. Squeezing the whole eye instead flattens the iris, which looks
like a wince. The mesh draws eyes a little small, so the lid starts above its line and ends below it: a lid that leaves
a rim of white looks broken, one that covers a lash too many does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.preview.face import Points
from engines.preview.local import Axes, Box, Grid, smooth
from engines.preview.portrait import Pixels


@dataclass(frozen=True, slots=True)
class Marks:
    """Indices of the mesh around one eye: upper and lower lid from left to right, lower edge of the brow, cheek."""

    upper: tuple[int, ...]
    lower: tuple[int, ...]
    brow: tuple[int, ...]
    cheek: int


LEFT = Marks(
    (33, 246, 161, 160, 159, 158, 157, 173, 133),
    (33, 7, 163, 144, 145, 153, 154, 155, 133),
    (46, 53, 52, 65, 55),
    50,
)
RIGHT = Marks(
    (362, 398, 384, 385, 386, 387, 388, 466, 263),
    (362, 382, 381, 380, 374, 373, 390, 249, 263),
    (285, 295, 282, 283, 276),
    280,
)

LEVELS = 5
"""How many positions of the lid there are below the open one."""
BLINK = (0.35, 0.85, 1.0, 1.0, 0.7, 0.35, 0.12)
"""How far the lid is down in the frames of one blink: it falls faster than it rises."""
PAUSE_SECONDS = (1.8, 4.8)
SKIN_SHARE = 0.35
ABOVE, BELOW = 0.24, 0.22
"""How far beyond the mesh's lids the eye is taken to reach, in heights of the eye."""
LASH_SHARE = 0.75


class Eye:
    """One eye of a portrait: `box` is what changes, `picture(closed)` shows it."""

    def __init__(self, rgb: Pixels, points: Points, marks: Marks) -> None:
        self._rgb = rgb
        self._axes = axes = Axes.between(points[marks.upper[0]], points[marks.upper[-1]])
        top, bottom = axes.local(points[list(marks.upper)]), axes.local(points[list(marks.lower)])
        half = axes.half
        knots = np.linspace(-half, half, 33)
        self._tall = max(float((np.interp(knots, *bottom.T) - np.interp(knots, *top.T)).max()), 1.0)
        brow_q = float(axes.local(points[list(marks.brow)])[:, 1].mean())
        crown = float(top[:, 1].min()) - ABOVE * self._tall
        brow_q = float(axes.local(points[list(marks.brow)])[:, 1].mean())
        # Up to two thirds of the way to the brow: hair of the brow must not ride down on the lid.
        self._strip = float(np.clip(0.66 * (crown - brow_q), 0.3 * self._tall, 1.2 * self._tall))
        low = float(bottom[:, 1].max()) + BELOW * self._tall + 3
        p = np.array([-half, half, -half, half], np.float32) * np.float32(1.3)
        q = np.array([crown - self._strip - 2, crown - self._strip - 2, low, low], np.float32)
        self.box = Box.around(np.stack(axes.picture(p, q), axis=1), *rgb.shape[1::-1])
        local = axes.local(np.stack(self.box.pixels(), axis=-1))
        self._p, self._q = np.ascontiguousarray(local[..., 0]), np.ascontiguousarray(local[..., 1])
        arch = np.sqrt(np.maximum(1 - (self._p / (1.18 * half)) ** 2, 0)) * self._tall
        self._upper = np.interp(self._p, *top.T).astype(np.float32) - np.float32(ABOVE) * arch
        lower = np.interp(self._p, *bottom.T).astype(np.float32) + np.float32(BELOW) * arch
        self._lower = np.maximum(lower, self._upper)
        self._skin, self._lash = self._lid_colour(_colour(rgb, points[marks.cheek])), self._lash_colour(top[1:-1])

    def picture(self, closed: float) -> Pixels:
        """Return the box's pixels (height, width, 3) with the lid `closed` 0..1."""
        open_eye = self._rgb[self.box.luma]
        drop = closed * (self._lower - self._upper)
        above = self._upper + drop - self._q
        # The strip is unrolled over itself and the drop; where the drop is 0, nothing moves.
        unrolled = np.minimum(above * self._strip / (self._strip + drop), above)
        x, y = self._axes.picture(self._p, self._upper - unrolled)
        lid = cv2.remap(self._rgb, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
        lid = self._lashed(self._evened(lid, above, drop), above, drop)
        alpha = np.clip(above + 0.5, 0, 1) * np.clip(self._strip + drop - above, 0, 1) * np.clip(drop, 0, 1)
        mixed: Pixels = (lid * alpha[..., None] + open_eye * (1 - alpha[..., None]) + 0.5).astype(np.uint8)
        return mixed

    def _evened(self, lid: Grid, above: Grid, drop: Grid) -> Grid:
        """Mix the lid with one colour, the more so where it is dark: crease and brow do not belong on it."""
        dark = np.clip(1.15 - lid.sum(axis=2) / self._skin.sum(), 0, 0.4)
        on_lid = (1 - smooth(above / np.maximum(drop, 1e-3), 0.6, 1.25)) * np.clip(drop / self._tall, 0, 1)
        return np.asarray(lid + (self._skin - lid) * ((SKIN_SHARE + dark) * on_lid)[..., None])

    def _lashed(self, lid: Grid, above: Grid, drop: Grid) -> Grid:
        """Draw the lashes along the lid's edge, thinning out to the corners."""
        thick = max(1.0, 0.16 * self._tall)
        line = np.clip(1 - np.abs(above - 0.4 * thick) / thick, 0, 1) * smooth(drop / (0.35 * self._tall))
        return np.asarray(lid + (self._lash - lid) * (LASH_SHARE * line)[..., None])

    def _lash_colour(self, lashes: Points) -> Grid:
        """Return the darkest colour near the mesh's upper lid, as most of its points see it."""
        height, width = self._rgb.shape[:2]
        found = []
        for up in (0.0, 0.12, 0.24, 0.36):
            x, y = self._axes.picture(lashes[:, 0], lashes[:, 1] - np.float32(up * self._tall))
            row, column = np.clip(np.round(y), 0, height - 1), np.clip(np.round(x), 0, width - 1)
            found.append(self._rgb[row.astype(int), column.astype(int)])
        colours = np.stack(found)
        darkest = colours.sum(axis=2).argmin(axis=0)
        colour = np.median(colours[darkest, np.arange(colours.shape[1])], axis=0)
        return np.asarray(colour, np.float32)

    def _lid_colour(self, cheek: Grid) -> Grid:
        """Return the colour of the lid: that of the skin above, but no darker than a shaded cheek."""
        strip = (self._upper - self._q > 0) & (np.abs(self._p) < self._axes.half)
        pixels = self._rgb[self.box.luma][strip]
        skin = np.percentile(pixels, 55, axis=0) if len(pixels) else cheek
        lighter = max(1.0, 0.6 * float(cheek.sum() / max(skin.sum(), 1)))
        return (skin * lighter).astype(np.float32)


def _colour(rgb: Pixels, point: Points) -> Grid:
    """Return the mean colour around a point."""
    height, width = rgb.shape[:2]
    x, y = min(max(int(point[0]), 2), width - 3), min(max(int(point[1]), 2), height - 3)
    return np.asarray(rgb[y - 2 : y + 3, x - 2 : x + 3].mean(axis=(0, 1)), np.float32)


def both_eyes(rgb: Pixels, points: Points) -> tuple[Eye, Eye]:
    """Return the eyes of a face, left and right in the picture."""
    return Eye(rgb, points, LEFT), Eye(rgb, points, RIGHT)


def blinks(frames: int, fps: int, seed: int) -> NDArray[np.uint8]:
    """Return the lid's level 0..LEVELS in each frame: a blink every few seconds, at times that `seed` fixes."""
    random = np.random.default_rng([seed % 2**63, 1])
    levels = np.zeros(frames + len(BLINK), np.uint8)
    shape = np.round(np.array(BLINK) * LEVELS).astype(np.uint8)
    at = int(random.uniform(*PAUSE_SECONDS) * 0.6 * fps)
    while at < frames:
        levels[at : at + len(shape)] = shape
        at += int(random.uniform(*PAUSE_SECONDS) * fps)
    return levels[:frames]
