"""Pictures of an eye with its lid lowered, made from the one portrait.

The upper lid comes down over an eye that stays where it is, as lids do. Its skin is the strip between brow and lash
line, unrolled downwards; the lash line itself rides on the lid's edge, unstretched. Squeezing the whole eye instead
flattens the iris, which looks like a wince.
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
    """Indices of the mesh around one eye: upper and lower lid from left to right, lower edge of the brow."""

    upper: tuple[int, ...]
    lower: tuple[int, ...]
    brow: tuple[int, ...]


LEFT = Marks(
    (33, 246, 161, 160, 159, 158, 157, 173, 133),
    (33, 7, 163, 144, 145, 153, 154, 155, 133),
    (46, 53, 52, 65, 55),
)
RIGHT = Marks(
    (362, 398, 384, 385, 386, 387, 388, 466, 263),
    (362, 382, 381, 380, 374, 373, 390, 249, 263),
    (285, 295, 282, 283, 276),
)

LEVELS = 5
"""How many positions of the lid there are below the open one."""
BLINK = (0.35, 0.85, 1.0, 1.0, 0.7, 0.35, 0.12)
"""How far the lid is down in the frames of one blink: it falls faster than it rises."""
PAUSE_SECONDS = (1.8, 4.8)
SKIN_SHARE = 0.35


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
        # Up to two thirds of the way to the brow: hair of the brow must not ride down on the lid.
        self._strip = float(np.clip(0.66 * (float(top[:, 1].min()) - brow_q), 0.35 * self._tall, 1.3 * self._tall))
        high = float(top[:, 1].min()) - self._strip - 2
        low = float(bottom[:, 1].max()) + 3
        p = np.array([-half, half, -half, half], np.float32) * np.float32(1.12)
        q = np.array([high, high, low, low], np.float32)
        self.box = Box.around(np.stack(axes.picture(p, q), axis=1), *rgb.shape[1::-1])
        local = axes.local(np.stack(self.box.pixels(), axis=-1))
        self._p, self._q = np.ascontiguousarray(local[..., 0]), np.ascontiguousarray(local[..., 1])
        self._upper = np.interp(self._p, *top.T).astype(np.float32)
        self._lower = np.maximum(np.interp(self._p, *bottom.T).astype(np.float32), self._upper)
        self._skin = self._lid_colour()

    def picture(self, closed: float) -> Pixels:
        """Return the box's pixels (height, width, 3) with the lid `closed` 0..1."""
        open_eye = self._rgb[self.box.luma]
        drop = closed * 0.94 * (self._lower - self._upper)
        edge = self._upper + drop
        above = edge - self._q
        lash = np.float32(0.14 * self._tall)
        # Above the lashes, the strip is unrolled over the strip and the drop; where the drop is 0, nothing moves.
        unrolled = lash + (above - lash) * (self._strip - lash) / (self._strip - lash + drop)
        from_q = self._upper - np.where(above < lash, above, np.minimum(unrolled, np.maximum(above - drop, unrolled)))
        from_q = np.where(above > self._strip + drop, self._q, from_q)
        x, y = self._axes.picture(self._p, from_q.astype(np.float32))
        lid = cv2.remap(self._rgb, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
        lid = self._evened(lid, above, drop)
        alpha = (np.clip(above + 0.5, 0, 1) * np.clip(drop, 0, 1))[..., None]
        mixed: Pixels = (lid * alpha + open_eye * (1 - alpha) + 0.5).astype(np.uint8)
        return mixed

    def _evened(self, lid: Grid, above: Grid, drop: Grid) -> Grid:
        """Mix the middle of the lid with its own mean colour: the shadow of the crease does not belong on it."""
        middle = smooth(above / (0.3 * self._tall)) * (1 - smooth(above / np.maximum(drop, 1e-3), 0.6, 1.2))
        share = SKIN_SHARE * middle * np.clip(drop / self._tall, 0, 1)
        return lid + (self._skin - lid) * share[..., None]

    def _lid_colour(self) -> Grid:
        strip = (self._upper - self._q > 0.3 * self._tall) & (np.abs(self._p) < self._axes.half)
        pixels = self._rgb[self.box.luma][strip]
        return np.median(pixels, axis=0).astype(np.float32) if len(pixels) else np.full(3, 128, np.float32)


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
