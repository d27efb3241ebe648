"""The arithmetic of a Live Avatar video: how many clips, frames and seconds, and how many pixels.

Every engine of the service, the CPU preview included, makes the video that Live Avatar would make from the same
portrait, recording and settings, so that a plan can be promised before any engine has run.

Source: Alibaba-Quark/LiveAvatar at 9c2c38d, `minimal_inference/s2v_streaming_interact.py` (frames per second, frames
per clip) and the causal S2V pipelines under `liveavatar/models/wan/` (number of clips, audio features at 30 a second,
`get_size_less_than_area`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FPS = 25
INFER_FRAMES = 48
"""Frames of one clip as the launch scripts set it; upstream's own default of 80 leaves frames undenoised."""

DROPPED_FRAMES = 3
"""Frames of the very first clip that the VAE's warm-up makes unusable and upstream drops."""

AUDIO_RATE = 16_000
"""Samples per second after upstream's resampling for wav2vec 2."""

MIN_AUDIO_SECONDS = 0.2

SIZES: dict[str, int] = {"720*400": 720 * 400, "704*384": 704 * 384, "688*368": 688 * 368, "384*256": 384 * 256}
"""The sizes that fit upstream's conditioning cache, as areas in pixels."""

SIZE_MULTIPLE = 64


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """What the published video will be: `frames` at `fps`, `width` x `height` pixels, from `clips` clips."""

    clips: int
    frames: int
    width: int
    height: int
    fps: int = FPS

    @property
    def video_seconds(self) -> float:
        return self.frames / self.fps


def clips_in_audio(seconds: float) -> int:
    """Return how many clips Live Avatar computes for a recording of `seconds`, when nothing limits them.

    wav2vec 2 gives one feature for 320 samples after a window of 400; upstream resamples the features from 50 to 30 a
    second and always computes the clip that holds the end of the recording.
    """
    samples = math.ceil(seconds * AUDIO_RATE)
    features = (samples - 400) // 320 + 1
    if features < 1:
        raise ValueError(f"a recording of {seconds} s is shorter than one audio feature (0.025 s)")
    at_30_hz = int(features / 50 * 30)
    return int(at_30_hz / (INFER_FRAMES * 1.2)) + 1


def fit_size(area: int, height: int, width: int) -> tuple[int, int]:
    """Return (height, width) in pixels of the video made from an image of `height` x `width` within `area`.

    Upstream's `get_size_less_than_area`: try 100 scales from the largest down, round both sides up to multiples of 64,
    take the first pair whose product does not pass `area`. An image smaller than the area is never enlarged, except
    that rounding up pads it.
    """
    if height * width <= area:
        highest, lowest = 1.0, 0.1
    else:
        pad = SIZE_MULTIPLE - 1
        a, b, c = height * width, pad * (height + width), pad * pad - area
        lowest = (-b + math.sqrt(b * b - 2 * a * c)) / (2 * a)
        highest = math.sqrt(area / a)
    for step in range(100):
        scale = highest - (highest - lowest) * step / 100
        fitted = tuple(math.ceil(int(side * scale) / SIZE_MULTIPLE) * SIZE_MULTIPLE for side in (height, width))
        if 0 < math.prod(fitted) <= area:
            return fitted[0], fitted[1]
    raise ValueError(f"no size within {area} pixels fits an image of {width} x {height}")


def plan_video(*, size: str, num_clip: int, image_width: int, image_height: int, audio_seconds: float) -> VideoPlan:
    """Plan the video of an image (pixels) and a recording (seconds).

    The clips are the fewer of `num_clip` and what the recording needs; their frames less the dropped ones are cut to
    the recording as `ffmpeg -shortest` cuts them: whole frames that begin before the sound ends.

    Raises ValueError for a size that is not in SIZES or an image that fits none.
    """
    if size not in SIZES:
        raise ValueError(f"size {size!r} is not one of {', '.join(SIZES)}")
    clips = min(num_clip, clips_in_audio(audio_seconds))
    made = clips * INFER_FRAMES - DROPPED_FRAMES
    # Rounding to 6 places keeps 0.28 * 25 = 7.000000000000001 from costing a frame.
    frames = min(made, max(1, math.floor(round(audio_seconds * FPS, 6))))
    height, width = fit_size(SIZES[size], image_height, image_width)
    return VideoPlan(clips=clips, frames=frames, width=width, height=height)
