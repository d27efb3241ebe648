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
from engines.preview.local import Box, Grid, smooth
from engines.preview.portrait import Pixels, Planes
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
    """Moves the head of one portrait; `movement` is (frames, 5), `box` is what changes."""

    def __init__(self, points: Points, width: int, height: int, movement: Grid) -> None:
        self._movement = movement
        # Nodes lie in the middle of blocks of STEP pixels: then enlarging by STEP puts each pixel's value exactly
        # where it belongs, and what does not move stays as sharp as it was.
        nodes_x = np.arange(0, width, STEP, dtype=np.float32) + (STEP - 1) / 2
        nodes_y = np.arange(0, height, STEP, dtype=np.float32) + (STEP - 1) / 2
        grid_x, grid_y = np.meshgrid(nodes_x, nodes_y)
        fields = _fields(grid_x, grid_y, _oval(points), width, height)
        rows, columns = _extent(np.abs(fields).max(axis=(0, 3)) > 0.003)
        left, top, right, bottom = (int(node) * STEP for node in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        self.box = Box(left, top, right, bottom)
        # A ring of nodes around: enlarging interpolates between nodes, and only repeats them at its ends.
        rows, columns = (np.concatenate(([line[0] - 1], line, [line[-1] + 1])) for line in (rows, columns))
        inside = np.ix_(np.clip(rows, 0, fields.shape[1] - 1), np.clip(columns, 0, fields.shape[2] - 1))
        self._fields = np.stack([field[inside] for field in fields]).reshape(len(fields), -1)
        self._still = _still(rows, columns, STEP), _still(rows, columns, STEP // 2)
        self.turn(0)

    def turn(self, index: int) -> None:
        """Put the head where it is in frame `index`."""
        luma, chroma = self._still
        shift = (self._movement[index] @ self._fields).reshape(luma.shape)
        self._luma = _enlarged(luma + shift, STEP)
        self._chroma = _enlarged(chroma + shift / 2, STEP // 2)

    def show(self, picture: Planes, out: Planes, part: Box | None = None) -> None:
        """Write `picture`, as the head stands, over the box of `out`, or over `part` of the box."""
        part = self.box.common(part) if part else self.box
        rows, columns = part.luma
        where = self._luma[_less(rows, self.box.top), _less(columns, self.box.left)]
        _remap(picture.y, where, out.y[rows, columns])
        rows, columns = part.chroma
        where = self._chroma[_less(rows, self.box.top // 2), _less(columns, self.box.left // 2)]
        _remap(picture.u, where, out.u[rows, columns])
        _remap(picture.v, where, out.v[rows, columns])


NO_SECOND_MAP = np.empty(0, np.int16)


def _remap(plane: Pixels, where: Grid, out: Pixels) -> None:
    cv2.remap(plane, where, NO_SECOND_MAP, cv2.INTER_LINEAR, out, cv2.BORDER_REPLICATE)


def _less(part: slice, start: int) -> slice:
    return slice(part.start - start, part.stop - start)


def _extent(moved: Grid) -> tuple[Grid, Grid]:
    """Return the rows and columns of nodes that move, or one node where none does."""
    rows, columns = np.flatnonzero(moved.any(axis=1)), np.flatnonzero(moved.any(axis=0))
    if not len(rows):
        return np.array([0]), np.array([0])
    return np.arange(rows[0], rows[-1] + 1), np.arange(columns[0], columns[-1] + 1)


def _still(rows: Grid, columns: Grid, step: int) -> Grid:
    """Return (rows, columns, 2): x and y of each node, in pixels of a plane that has `step` of them a node."""
    x, y = columns * step + (step - 1) / 2, rows * step + (step - 1) / 2
    return np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32)


FADE_START, FADE_END = 1.15, 1.65
"""Where, in half sides of the face's oval, the movement begins to die out and where it has."""
BELOW = 1.25
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
