"""The picture of a portrait whose face was found: mouth, eyes and head move, the rest is the portrait."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from engines.preview.eyes import LEVELS, blinks, both_eyes
from engines.preview.face import Face
from engines.preview.head import Head, movement
from engines.preview.local import Box
from engines.preview.mouth import Mouth
from engines.preview.portrait import Pixels, Planes, labelled
from engines.preview.speech import Speech
from utils.plan import VideoPlan

WIDTH_LEVELS = 5
HOLD = 2
"""Frames that the head stands still for. It moves a tenth of a pixel a frame: every second frame shows the same."""
REACH = 8
"""Pixels around a changed part that the head's movement may carry the change to."""


class TalkingScene:
    """Draws frame `index` of a portrait (height, width, 3) that speaks. Frames must be drawn in order."""

    def __init__(self, rgb: Pixels, face: Face, speech: Speech, plan: VideoPlan, seed: int) -> None:
        self._shown = Planes.from_rgb(labelled(rgb)[0])
        self._canvas = Planes.from_rgb(rgb)
        self._mouth = Mouth(rgb, face.points)
        self._head = Head(face.points, plan.width, plan.height, movement(face.points, speech.loud, plan.fps, seed))
        # Two thirds of a pixel of the gap a level: finer is not seen, coarser steps on large faces.
        levels = int(np.clip(round(1.5 * self._mouth.travel), 12, 48))
        self._opened = np.round(speech.open * (levels - 1)).astype(int).tolist()
        self._levels = levels
        reach = WIDTH_LEVELS // 2
        self._wide = np.round(speech.wide * reach).astype(int).tolist()
        self._mouths: dict[tuple[int, int], Planes] = {}
        # The weak search is not sure of the eyes' place; a lid in the wrong place is worse than none.
        self._eyes = both_eyes(rgb, face.points) if face.stage != "weak" else ()
        self._lids = [[_patch(eye.picture(level / LEVELS)) for level in range(LEVELS + 1)] for eye in self._eyes]
        self._blinks = blinks(plan.frames, plan.fps, seed).tolist()
        self._lid = 0
        self._mouth_now = (-1, 0)

    def draw(self, index: int, out: Planes) -> None:
        """Draw frame `index` over all of `out`."""
        changed = [*self._speak(index), *self._blink(self._blinks[index])]
        if index % HOLD == 0:
            self._head.turn(index)
            self._head.show(self._canvas, self._shown)
        else:
            for box in changed:
                self._head.show(self._canvas, self._shown, box.wider(REACH))
        self._shown.copy_to(out)

    def _speak(self, index: int) -> Iterator[Box]:
        key = self._opened[index], self._wide[index]
        if key != self._mouth_now:
            self._mouth_now = key
            _paste(self._canvas, self._mouth.box, self._mouth_picture(*key))
            yield self._mouth.box

    def _mouth_picture(self, opened: int, wide: int) -> Planes:
        key = opened, wide
        if key not in self._mouths:
            picture = self._mouth.picture(opened / (self._levels - 1), wide / (WIDTH_LEVELS // 2))
            self._mouths[key] = _patch(picture)
        return self._mouths[key]

    def _blink(self, level: int) -> Iterator[Box]:
        if level != self._lid:
            self._lid = level
            for eye, lids in zip(self._eyes, self._lids, strict=True):
                _paste(self._canvas, eye.box, lids[level])
                yield eye.box


def _patch(picture: Pixels) -> Planes:
    return Planes.from_rgb(np.ascontiguousarray(picture))


def _paste(canvas: Planes, box: Box, patch: Planes) -> None:
    canvas.y[box.luma] = patch.y
    canvas.u[box.chroma] = patch.u
    canvas.v[box.chroma] = patch.v
