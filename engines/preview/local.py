"""A part of the face in its own coordinates: p along an axis (mouth or eye corner to corner), q across it, downwards.

Whatever the tilt of the head, a mouth opens along q. Both are in pixels of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.preview.face import Points

Grid = NDArray[Any]
"""float32; cv2 and numpy do not say so in their types."""


@dataclass(frozen=True, slots=True)
class Axes:
    """An origin and a unit axis; `half` is half the distance of the two points that made them."""

    x: float
    y: float
    cos: float
    sin: float
    half: float

    @classmethod
    def between(cls, left: Points, right: Points) -> Axes:
        """Put the origin midway between two points (2,), the axis p from `left` to `right`."""
        x, y = (float(value) for value in (left + right) / 2)
        along = (right - left).astype(float)
        length = max(float(np.hypot(*along)), 1e-3)
        return cls(x, y, along[0] / length, along[1] / length, length / 2)

    def local(self, points: Points) -> Points:
        """Return points (n, 2) of the picture as (p, q)."""
        x, y = points[..., 0] - self.x, points[..., 1] - self.y
        return np.stack([x * self.cos + y * self.sin, y * self.cos - x * self.sin], axis=-1).astype(np.float32)

    def picture(self, p: Grid, q: Grid) -> tuple[Grid, Grid]:
        """Return (p, q) as (x, y) of the picture."""
        x = p * np.float32(self.cos) - q * np.float32(self.sin) + np.float32(self.x)
        y = p * np.float32(self.sin) + q * np.float32(self.cos) + np.float32(self.y)
        return x, y


@dataclass(frozen=True, slots=True)
class Box:
    """A part of the picture whose sides are even, so that it has whole chroma pixels."""

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def around(cls, corners: Points, width: int, height: int) -> Box:
        """Return the smallest box around points (n, 2) that lies in a picture of width x height."""
        low, high = corners.min(axis=0), corners.max(axis=0)
        left, top = (max(0, int(np.floor(value)) // 2 * 2) for value in low)
        right, bottom = (-(-int(np.ceil(value)) // 2) * 2 for value in high)
        return cls(left, top, max(left + 2, min(right, width)), max(top + 2, min(bottom, height)))

    @property
    def luma(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def chroma(self) -> tuple[slice, slice]:
        return slice(self.top // 2, self.bottom // 2), slice(self.left // 2, self.right // 2)

    def common(self, other: Box) -> Box:
        """Return what this box and `other`, which overlap, share."""
        return Box(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        )

    def wider(self, by: int) -> Box:
        """Return the box with `by` (even) pixels more on each side."""
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def within(self, whole: Box) -> tuple[slice, slice]:
        """Return where this box lies in the pixels of `whole`, which contains it."""
        rows = slice(self.top - whole.top, self.bottom - whole.top)
        return rows, slice(self.left - whole.left, self.right - whole.left)

    def pixels(self) -> tuple[Grid, Grid]:
        """Return x and y of each pixel, both (height, width)."""
        x, y = np.meshgrid(
            np.arange(self.left, self.right, dtype=np.float32), np.arange(self.top, self.bottom, dtype=np.float32)
        )
        return x, y


def clipped(values: Grid) -> Grid:
    """Return the values limited to 0..1; np.clip takes twice as long for the small pictures of a mouth."""
    return np.minimum(np.maximum(values, np.float32(0)), np.float32(1))


def smooth(values: Grid, low: float = 0.0, high: float = 1.0) -> Grid:
    """Return 0 where values <= low, 1 where >= high, a smooth step between."""
    part = clipped((values - np.float32(low)) * np.float32(1 / (high - low)))
    return np.asarray(part * part * (3 - 2 * part))
