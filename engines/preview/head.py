"""Small movements of the head: a smooth field that is strongest on the face and dies out into the background.

Moving the whole frame looks like a shaking camera. Here five fields (shift right, shift down, turn about the neck, and
yaw and pitch, which move the middle of the face more than its rim) are mixed per frame on a coarse grid, scaled up to a
map, and one remap of the head's box makes the frame.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.preview.face import Points
from engines.preview.local import Grid, smooth
from engines.preview.portrait import Planes
from engines.preview.speech import Curve

STEP = 8
"""Pixels between nodes of the grid; chroma has half as many."""
FOREHEAD, CHIN, LEFT_SIDE, RIGHT_SIDE = 10, 152, 234, 454
SPEEDS_HZ = ((0.11, 0.5), (0.23, 0.33), (0.47, 0.17))
"""The sines that each movement is the sum of: cycles a second, share."""
STRENGTHS = (0.55, 0.45, 0.75, 0.8, 0.55)
"""How far each movement goes at most, in units of AMPLITUDE."""
AMPLITUDE = 0.014
"""Pixels of movement for one pixel of face height: 1 to 2 on a face of a hundred."""
NOD = 0.9


class Head:
    """Moves the head of one portrait. Only the box `rows`, `columns` (multiples of STEP) changes."""

    def __init__(self, points: Points, width: int, height: int, movement: NDArray[np.float32]) -> None:
        self._movement = movement
        x, y, wide, tall = _oval(points)
        self._place(x, y, wide, tall, width, height)
        nodes_x = np.arange(self._left, self._right, STEP, dtype=np.float32) + (STEP - 1) / 2
        nodes_y = np.arange(self._top, self._bottom, STEP, dtype=np.float32) + (STEP - 1) / 2
        grid_x, grid_y = np.meshgrid(nodes_x, nodes_y)
        fields = _fields(grid_x, grid_y, (x, y, wide, tall), width, height)
        # A ring of nodes around the box: enlarging interpolates between nodes, and repeats them at its ends.
        self._fields = np.pad(fields, ((0, 0), (1, 1), (1, 1), (0, 0)))
        self._still = self._identity(STEP), self._identity(STEP // 2)

    def _place(self, x: float, y: float, wide: float, tall: float, width: int, height: int) -> None:
        def on_grid(low: float, high: float, limit: int) -> tuple[int, int]:
            return max(0, int(low) // STEP * STEP), min(limit, -int(-high // STEP) * STEP)

        self._left, self._right = on_grid(x - wide * FADE_END, x + wide * FADE_END, width // STEP * STEP)
        self._top, self._bottom = on_grid(y - tall * FADE_END, y + tall * FADE_END * BELOW, height // STEP * STEP)

    def _identity(self, step: int) -> Grid:
        rows, columns = self._fields.shape[1:3]
        x = (np.arange(columns, dtype=np.float32) - 1) * step + (step - 1) / 2
        y = (np.arange(rows, dtype=np.float32) - 1) * step + (step - 1) / 2
        return np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32)

    def move(self, index: int, picture: Planes, out: Planes) -> None:
        """Write `picture` with the head as it is in frame `index` over `out`; outside the box they must agree."""
        shift = np.tensordot(self._movement[index], self._fields, 1)
        whole, half = self._still
        where = _enlarged(whole + shift, STEP)
        box = np.s_[self._top : self._bottom, self._left : self._right]
        cv2.remap(picture.y[box], where, None, cv2.INTER_LINEAR, dst=out.y[box], borderMode=cv2.BORDER_REPLICATE)
        where = _enlarged(half + shift / 2, STEP // 2)
        box = np.s_[self._top // 2 : self._bottom // 2, self._left // 2 : self._right // 2]
        for plane, target in ((picture.u, out.u), (picture.v, out.v)):
            cv2.remap(plane[box], where, None, cv2.INTER_LINEAR, dst=target[box], borderMode=cv2.BORDER_REPLICATE)


FADE_START, FADE_END = 1.25, 2.1
"""Where, in half sides of the face's oval, the movement begins to die out and where it has."""
BELOW = 1.35
"""The same below the middle, as a multiple: neck and shoulders follow more than the wall behind."""
EDGE = 16.0
"""Pixels within which the movement dies out at the frame's edge."""


def _oval(points: Points) -> tuple[float, float, float, float]:
    """Return middle x, y and half sides of the head: the face's oval, with hair above it."""
    tall = float(np.linalg.norm(points[CHIN] - points[FOREHEAD])) * 0.62
    wide = max(float(np.linalg.norm(points[RIGHT_SIDE] - points[LEFT_SIDE])) * 0.58, 0.6 * tall)
    middle = points[FOREHEAD] * 0.56 + points[CHIN] * 0.44
    return float(middle[0]), float(middle[1]), wide, tall


def _fields(x: Grid, y: Grid, oval: tuple[float, float, float, float], width: int, height: int) -> NDArray[np.float32]:
    """Return (5, rows, columns, 2): where each pixel comes from, relative to itself, for each movement at 1 px."""
    middle_x, middle_y, wide, tall = oval
    along, down = (x - middle_x) / wide, (y - middle_y) / tall
    away = np.hypot(along, np.where(down > 0, down / BELOW, down))
    edges = np.minimum(np.minimum(x, width - 1 - x), np.minimum(y, height - 1 - y))
    mask = (1 - smooth(away, FADE_START, FADE_END)) * smooth(edges, 2, EDGE)
    dome = np.sqrt(np.maximum(0, 1 - (along**2 + down**2) / 1.3)) * mask
    none = np.zeros_like(x)
    neck = middle_y + 1.1 * tall
    turn_x, turn_y = -(y - neck) / tall * mask / 1.5, (x - middle_x) / tall * mask / 1.5
    pairs = ((mask, none), (none, mask), (turn_x, turn_y), (dome, none), (none, dome))
    return np.stack([np.stack(pair, axis=-1) for pair in pairs]).astype(np.float32)


def _enlarged(grid: Grid, step: int) -> Grid:
    rows, columns = grid.shape[:2]
    full = cv2.resize(grid, (columns * step, rows * step), interpolation=cv2.INTER_LINEAR)
    return full[step:-step, step:-step]


def movement(points: Points, loud: Curve, fps: int, seed: int) -> NDArray[np.float32]:
    """Return (frames, 5): how far (pixels) each movement is in each frame; the head nods a little with the voice."""
    random = np.random.default_rng([seed % 2**63, 2])
    seconds = np.arange(len(loud), dtype=np.float64) / fps
    tall = float(np.linalg.norm(points[CHIN] - points[FOREHEAD]))
    amplitude = min(max(AMPLITUDE * tall, 0.6), 5.0)
    columns = []
    for strength in STRENGTHS:
        column = np.zeros(len(loud))
        for hertz, share in SPEEDS_HZ:
            speed = hertz * random.uniform(0.8, 1.2)
            column += share * np.sin(2 * math.pi * (speed * seconds + random.uniform()))
        columns.append(column * strength * amplitude)
    columns[4] -= NOD * amplitude * (loud - float(loud.mean()))
    return np.stack(columns, axis=1).astype(np.float32)
