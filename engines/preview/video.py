"""The finished file: H.264/AAC in mp4 or VP9/Opus in webm, sound and picture of the same length.

The settings come from trials on two cores: `veryfast` is the fastest x264 preset that does not pay with two to four
times the bytes, and its `subme=1` takes a quarter off the time for a tenth more bytes, at the same PSNR around the
face; PyAV's own thread type (SLICE) costs a third of the speed; FFmpeg's default AAC search costs three times its
`fast` one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.plane import VideoPlane
from av.video.stream import VideoStream
from numpy.typing import NDArray

from engines.preview.portrait import Pixels, Planes
from engines.preview.recording import Recording
from utils.plan import VideoPlan

SOUND_RATE = 48_000
COMMENT = "preview"

Format = Literal["mp4", "webm"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How one container is written: codecs, their options, sample format of the sound, options of the muxer."""

    video: str
    video_options: dict[str, str]
    audio: str
    audio_options: dict[str, str]
    sample_format: str
    container_options: dict[str, str]


SETTINGS: dict[Format, Settings] = {
    "mp4": Settings(
        "libx264",
        {"preset": "veryfast", "crf": "23", "x264-params": "subme=1"},
        "aac",
        {"aac_coder": "fast"},
        "fltp",
        {"movflags": "+faststart"},
    ),
    "webm": Settings(
        "libvpx-vp9",
        {"deadline": "realtime", "cpu-used": "8", "row-mt": "1", "tile-columns": "2", "crf": "33", "b": "0"},
        "libopus",
        {},
        "flt",
        {},
    ),
}


class Video:
    """A video file that is being written: `write` each frame in turn, then `close`.

    The sound goes in beside the picture, a frame's worth at a time, so that neither waits in memory for the other.
    """

    def __init__(self, path: Path, kind: Format, plan: VideoPlan, recording: Recording) -> None:
        settings = SETTINGS[kind]
        self._plan = plan
        self._done = self._sounded = 0
        self._container = av.open(str(path), "w", format=kind, options=settings.container_options)
        self._container.metadata["comment"] = COMMENT
        self._video = self._add_video(settings)
        self._audio = self._add_audio(settings, recording.channels)
        self._sound = _sound(recording, settings.sample_format, plan)

    def _add_video(self, settings: Settings) -> VideoStream:
        added = self._container.add_stream(settings.video, rate=self._plan.fps, options=settings.video_options)
        stream = cast(VideoStream, added)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = self._plan.width, self._plan.height, "yuv420p"
        context.thread_type = "AUTO"
        context.time_base = Fraction(1, self._plan.fps)
        # cv2 converts to BT.601 limited range; a player that is not told guesses BT.709 and shows other colours.
        context.colorspace = 5
        context.color_range = 1
        context.color_primaries = 1
        context.color_trc = 1
        return stream

    def _add_audio(self, settings: Settings, channels: int) -> AudioStream:
        added = self._container.add_stream(settings.audio, rate=SOUND_RATE, options=settings.audio_options)
        stream = cast(AudioStream, added)
        stream.codec_context.layout = _layout(channels)
        stream.codec_context.format = av.AudioFormat(settings.sample_format)
        stream.codec_context.bit_rate = 64_000 * (1 + channels) // 2
        return stream

    def frame(self) -> tuple[av.VideoFrame, Planes]:
        """Return a new frame of the video's size and its planes, to be drawn on."""
        frame = av.VideoFrame(self._plan.width, self._plan.height, "yuv420p")
        return frame, Planes(*(_view(plane) for plane in frame.planes))

    def write(self, frame: av.VideoFrame) -> None:
        """Encode the next frame and the sound that belongs to it."""
        frame.pts = self._done
        frame.time_base = Fraction(1, self._plan.fps)
        self._container.mux(self._video.encode(frame))
        self._done += 1
        due = self._done * SOUND_RATE // self._plan.fps
        while self._sounded < due and (block := next(self._sound, None)):
            self._container.mux(self._audio.encode(block))
            self._sounded += block.samples

    def close(self) -> None:
        """Write what the encoders still hold and the container's end."""
        for block in self._sound:
            self._container.mux(self._audio.encode(block))
        self._container.mux(self._video.encode(None))
        self._container.mux(self._audio.encode(None))
        self._container.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._container.close()


def _view(plane: VideoPlane) -> Pixels:
    """Return the plane's own memory as (height, width), without the padding at the end of each line."""
    rows: Pixels = np.frombuffer(cast(memoryview, plane), np.uint8).reshape(-1, plane.line_size)
    return rows[: plane.height, : plane.width]


def _sound(recording: Recording, sample_format: str, plan: VideoPlan) -> Iterator[av.AudioFrame]:
    """Yield the recording at 48 kHz, about a second at a time, padded or cut to exactly the length of the picture."""
    wanted = plan.frames * SOUND_RATE // plan.fps
    made = 0
    for block in _resampled(recording):
        part = block[:, : wanted - made]
        if part.shape[1]:
            yield _audio_frame(part, made, sample_format)
        made += part.shape[1]
        if made == wanted:
            return
    while made < wanted:
        silence = np.zeros((recording.channels, min(SOUND_RATE, wanted - made)), np.float32)
        yield _audio_frame(silence, made, sample_format)
        made += silence.shape[1]


def _resampled(recording: Recording) -> Iterator[NDArray[Any]]:
    """Yield the recording at 48 kHz as blocks of (channels, n) samples."""
    layout = _layout(recording.channels)
    resampler = av.AudioResampler("fltp", layout, SOUND_RATE)
    for samples in recording.blocks(recording.rate):
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "s16", layout)
        frame.sample_rate = recording.rate
        yield from (made.to_ndarray() for made in resampler.resample(frame))
    yield from (made.to_ndarray() for made in resampler.resample(None))


def _audio_frame(samples: NDArray[Any], pts: int, sample_format: str) -> av.AudioFrame:
    planar = sample_format.endswith("p")
    array = samples if planar else samples.T.reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(array), sample_format, _layout(len(samples)))
    frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, pts, Fraction(1, SOUND_RATE)
    return frame


def _layout(channels: int) -> str:
    return "mono" if channels == 1 else "stereo"
