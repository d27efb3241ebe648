"""What the voice does, frame by frame: how far the mouth is open, how wide it is, how loud the speaker is.

The theory: the louder the band of the voice, the wider the mouth is open; an onset opens it more than a held sound;
a high first formant (500-1100 Hz against 150-450 Hz) is an open vowel; hiss (4-7.5 kHz) is a fricative, spoken with the
teeth nearly shut; a high second formant (1.5-3.5 kHz against 0.3-1.2 kHz) is a spread mouth ("ee"), a low one a round
mouth ("oo"). It follows the sound, it knows no phonemes.

Loudness is measured against the recording itself (5th and 95th percentile), so a quiet speaker moves as much as a loud
one. That alone would hold the mouth open on a steady hum or hiss, hence two gates: an absolute one, and one that asks
whether the loudness varies as speech does, several times a second.

Only a few numbers a frame are kept; the samples are read in blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.preview.recording import Recording

Curve = NDArray[Any]
"""float32; cv2 and numpy do not say so in their types."""

WINDOW_SECONDS = 0.064
BLOCK_FRAMES = 250
VOICE_HZ = (150.0, 4000.0)
GATE_DB = (-58.0, -46.0)
"""Below the first the mouth is shut, above the second it is not held back (dB of a full-scale sine)."""
SPEECH_SWING_DB = (1.0, 3.0)
"""Standard deviation of the loudness within SWING_FRAMES: noise stays under the first, speech above the second."""
SWING_FRAMES = 25
SPAN_DB = (12.0, 26.0)
ATTACK, RELEASE = 0.8, 0.55


@dataclass(frozen=True, slots=True)
class Speech:
    """Three curves of one value a frame: `open` 0..1, `wide` -1..1 and `loud` 0..1 (slow, for head and meter)."""

    open: Curve
    wide: Curve
    loud: Curve


@dataclass(frozen=True, slots=True)
class _Features:
    level: Curve
    formant: Curve
    hiss: Curve
    spread: Curve


def listen(recording: Recording, frames: int, fps: int, pause: Callable[[], None] = lambda: None) -> Speech:
    """Return the curves of the first `frames` frames of `recording`; `pause` is called between blocks and may raise."""
    parts = []
    for start in range(0, frames, BLOCK_FRAMES):
        pause()
        parts.append(_measure(recording, start, min(start + BLOCK_FRAMES, frames), fps))
    table = np.concatenate(parts)
    return _drive(_Features(*(np.ascontiguousarray(column) for column in table.T)))


def _measure(recording: Recording, first: int, last: int, fps: int) -> Curve:
    """Return (last - first, 4) raw features of the frames first..last."""
    rate = recording.rate
    size = round(WINDOW_SECONDS * rate)
    centres = np.round((np.arange(first, last) + 0.5) * rate / fps).astype(np.int64)
    start = int(centres[0]) - size // 2
    sound = recording.read(start, int(centres[-1]) - size // 2 + size).astype(np.float32).mean(axis=1) / 32768
    windows = np.lib.stride_tricks.sliding_window_view(sound, size)[centres - size // 2 - start]
    # Twice over the sum of the window: a full-scale sine has power 1 (0 dB).
    hann = np.hanning(size).astype(np.float32)
    power = np.abs(np.fft.rfft((windows - windows.mean(axis=1, keepdims=True)) * hann, axis=1)) ** 2
    power *= (2 / hann.sum()) ** 2 / 1.5
    hertz = np.fft.rfftfreq(size, 1 / rate)

    def band(low: float, high: float) -> Curve:
        return np.asarray(power[:, (hertz >= low) & (hertz < high)].sum(axis=1) + 1e-12, np.float32)

    high, low = band(500, 1100), band(150, 450)
    hiss = band(4000, 7500)
    columns = (
        10 * np.log10(band(*VOICE_HZ)),
        high / (high + low),
        hiss / (hiss + band(150, 4000)),
        np.log(band(1500, 3500) / band(300, 1200)),
    )
    return np.stack(columns, axis=1).astype(np.float32)


def _drive(raw: _Features) -> Speech:
    level = _relative_level(raw.level)
    gate = _ramp(raw.level, *GATE_DB) * _ramp(_swing(raw.level), *SPEECH_SWING_DB)
    onset = level - _mean(level, 9)
    vowel = 0.55 + 0.45 * _ramp(raw.formant, 0.1, 0.75)
    shut = 1 - 0.6 * _ramp(raw.hiss, 0.15, 0.6)
    wanted = np.clip(level + 0.7 * onset, 0, 1) * vowel * shut
    speaking = wanted[wanted > 0.05]
    scale = float(np.percentile(speaking, 92)) if len(speaking) else 1.0
    opened = _follow(np.clip(wanted / max(scale, 0.2), 0, 1) * gate)
    return Speech(open=opened, wide=_width(raw.spread, level * gate), loud=_mean(level * gate, 15))


def _relative_level(decibels: Curve) -> Curve:
    quiet, loud = (float(value) for value in np.percentile(decibels, (5, 95)))
    span = min(max(loud - quiet, SPAN_DB[0]), SPAN_DB[1])
    return np.asarray(np.clip((decibels - (loud - span)) / span, 0, 1), np.float32)


def _width(spread: Curve, level: Curve) -> Curve:
    voiced = spread[level > 0.25]
    middle = float(np.median(voiced)) if len(voiced) else 0.0
    raw = np.clip((spread - middle) / 2.5, -1, 1) * _ramp(level, 0.05, 0.3)
    return np.asarray(_mean(raw, 5), np.float32)


def _swing(decibels: Curve) -> Curve:
    """Return the standard deviation of the loudness around each frame; silence counts as the gate's floor."""
    floored = np.maximum(decibels, GATE_DB[0])
    centred = floored - floored.mean()
    variance = _mean(centred**2, SWING_FRAMES) - _mean(centred, SWING_FRAMES) ** 2
    return np.asarray(np.sqrt(np.maximum(variance, 0)), np.float32)


def _follow(wanted: Curve) -> Curve:
    """Lips open faster than they close."""
    out = np.empty(len(wanted), np.float32)
    now = 0.0
    for index, target in enumerate(wanted.tolist()):
        now += (ATTACK if target > now else RELEASE) * (target - now)
        out[index] = now
    return out


def _mean(curve: Curve, size: int) -> Curve:
    """Return the running mean over `size` frames (odd), the ends repeated."""
    half = size // 2
    total = np.cumsum(np.concatenate(([0.0], np.pad(curve.astype(np.float64), half, mode="edge"))))
    return np.asarray((total[size:] - total[:-size]) / size, np.float32)


def _ramp(values: Curve, low: float, high: float) -> Curve:
    """Return 0 below `low`, 1 above `high` and a smooth step between."""
    part = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(part * part * (3 - 2 * part), np.float32)
