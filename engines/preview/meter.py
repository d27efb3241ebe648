"""The picture for a portrait without a face that can be found: it moves slowly as a whole, above a speech meter.

No mouth is guessed: a mouth painted where none was found looks wrong at once, a meter says what it is.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from engines.preview.portrait import Pixels, Planes, labelled
from engines.preview.speech import Speech
from utils.plan import VideoPlan

BARS = 33
ZOOM = 0.045
"""How much of the picture the slow movement crops at most."""
PERIOD_SECONDS = 24.0
HOLD = 2
"""Frames between two steps of the slow movement, which are a quarter of a pixel: it costs the encoder half."""
DARK, LIGHT = 45, 215


class MeterScene:
    """Draws frame `index` of a portrait (height, width, 3) that only pans, zooms and shows how loud the voice is."""

    def __init__(self, rgb: Pixels, speech: Speech, plan: VideoPlan, seed: int) -> None:
        self._base = Planes.from_rgb(rgb)
        self._shown = self._base.copy()
        with_label, (rows, columns) = labelled(rgb)
        self._label = Planes.from_rgb(np.ascontiguousarray(with_label[rows, columns]))
        self._label_luma = rows, columns
        self._label_chroma = slice(rows.start // 2, rows.stop // 2), slice(columns.start // 2, columns.stop // 2)
        self._speech = speech
        self._plan = plan
        self._phases = np.random.default_rng(seed).uniform(0, 2 * math.pi, 2)
        self._bars = np.random.default_rng(seed + 1).uniform(0.35, 1.0, BARS)

    def draw(self, index: int, out: Planes) -> None:
        """Draw frame `index` over all of `out`."""
        if index % HOLD == 0:
            self._move(index, self._shown)
        self._shown.copy_to(out)
        self._meter(index, out)
        out.y[self._label_luma] = self._label.y
        out.u[self._label_chroma] = self._label.u
        out.v[self._label_chroma] = self._label.v

    def _move(self, index: int, out: Planes) -> None:
        turn = 2 * math.pi * index / (self._plan.fps * PERIOD_SECONDS)
        scale = 1 - ZOOM * (0.5 - 0.5 * math.cos(turn))
        spare = 1 - scale
        x = spare * (0.5 + 0.5 * math.sin(turn * 0.7 + self._phases[0]))
        y = spare * (0.5 + 0.5 * math.sin(turn * 0.5 + self._phases[1]))
        for plane, target in ((self._base.y, out.y), (self._base.u, out.u), (self._base.v, out.v)):
            height, width = plane.shape
            matrix = np.array([[scale, 0, x * width], [0, scale, y * height]])
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            cv2.warpAffine(plane, matrix, (width, height), dst=target, flags=flags, borderMode=cv2.BORDER_REPLICATE)

    def _meter(self, index: int, out: Planes) -> None:
        height, width = out.y.shape
        step = width * 0.6 / BARS
        thick = max(1, int(step * 0.55))
        bottom = height - max(2, height // 24)
        loudness = max(float(self._speech.loud[index]), float(self._speech.open[index]))
        for bar in range(BARS):
            middle = 1 - abs(bar - BARS // 2) / (BARS // 2 + 1)
            wave = 0.6 + 0.4 * math.sin(index * 0.55 + bar * 1.7)
            tall = max(2, round(height * 0.16 * loudness * middle * self._bars[bar] * wave))
            left = round(width * 0.2 + bar * step)
            out.y[bottom - tall - 1 : bottom + 1, left - 1 : left + thick + 1] = DARK
            out.y[bottom - tall : bottom, left : left + thick] = LIGHT
            box = np.s_[(bottom - tall) // 2 : bottom // 2, left // 2 : (left + thick + 1) // 2]
            out.u[box] = 128
            out.v[box] = 128
