"""Whether lips and voice of a finished video agree, measured from the video file alone.

The mesh is followed from frame to frame; the area between the inner lips over the squared height of the face is how
open the mouth is. The voice is the root mean square of the 150-4000 Hz band, per frame. `r` is Pearson's correlation
of the two, `lag` the shift in frames (within 12 either way) at which it is highest, `control` the highest correlation
with the voice turned round by 30 frames or more, which is what chance gives.

It proves that the mouth moves with the sound; it cannot tell whether it shows the right phonemes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from engines.preview.face import Mesh, Mesher, find_face
from engines.preview.mouth import LOWER_INNER, UPPER_INNER

FPS = 25
RATE = 16_000
MAX_LAG, CONTROL_SHIFT = 12, 30
FOREHEAD, CHIN = 10, 152

Curve = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sync:
    r: float
    lag: int
    control: float


def measure(path: Path) -> Sync:
    """Return how well lips and voice of the video at `path` agree. Raises AssertionError when it shows no face."""
    return correlate(lip_openings(frames(path)), voice_levels(path))


def correlate(lips: Curve, voice: Curve) -> Sync:
    """Compare two curves of one value a frame; the longer one is cut."""
    count = min(len(lips), len(voice))
    lips, voice = lips[:count], voice[:count]
    by_lag = {lag: _pearson_at(lips, voice, lag) for lag in range(-MAX_LAG, MAX_LAG + 1)}
    controls = [_pearson(lips, np.roll(voice, shift)) for shift in range(CONTROL_SHIFT, count - CONTROL_SHIFT)]
    return Sync(by_lag[0], max(by_lag, key=by_lag.__getitem__), max(controls))


def frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield the video's frames as (height, width, 3) RGB."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def lip_openings(pictures: Iterator[NDArray[np.uint8]]) -> Curve:
    """Return the area between the inner lips over the face's height squared, per picture."""
    first = next(pictures)
    face = find_face(first)
    assert face is not None, "the first frame shows no face that can be followed"
    mesher = Mesher()
    mesh = Mesh(face.points, face.presence)
    openings = []
    for picture in itertools.chain([first], pictures):
        for _ in range(2):
            mesh = mesher.read(picture, [mesh.square()])[0]
        openings.append(_opening(mesh))
    return np.array(openings)


def _opening(mesh: Mesh) -> float:
    ring = mesh.points[[*UPPER_INNER, *LOWER_INNER[-2:0:-1]]].astype(float)
    x, y = ring.T
    area = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    height = float(np.linalg.norm(mesh.points[CHIN] - mesh.points[FOREHEAD]))
    return area / height**2


def samples(path: Path, rate: int = RATE) -> Curve:
    """Return the file's sound as one channel of -1..1."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("flt", "mono", rate)
        parts = [block.to_ndarray()[0] for frame in container.decode(audio=0) for block in resampler.resample(frame)]
        parts += [block.to_ndarray()[0] for block in resampler.resample(None)]
    return np.concatenate(parts).astype(np.float64)


def voice_levels(path: Path) -> Curve:
    """Return the square root of the smoothed level of the voice's band, per frame."""
    sound = samples(path)
    spectrum = np.fft.rfft(sound)
    hertz = np.fft.rfftfreq(len(sound), 1 / RATE)
    spectrum[(hertz < 150) | (hertz > 4000)] = 0
    band = np.fft.irfft(spectrum, len(sound))
    step = RATE // FPS
    whole = band[: len(band) // step * step].reshape(-1, step)
    level = np.sqrt((whole**2).mean(axis=1))
    return np.sqrt(np.convolve(np.pad(level, 1, mode="edge"), (0.25, 0.5, 0.25), "valid"))


def _pearson(one: Curve, other: Curve) -> float:
    if one.std() < 1e-12 or other.std() < 1e-12:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _pearson_at(lips: Curve, voice: Curve, lag: int) -> float:
    """Correlate the lips with the voice `lag` frames earlier: positive when the lips come late."""
    if lag >= 0:
        return _pearson(lips[lag:], voice[: len(voice) - lag])
    return _pearson(lips[:lag], voice[-lag:])
