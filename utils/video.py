"""Finished videos: check them, picture them, make them ready for the web. For files an engine of the service wrote.

Success is a file that opens, with one picture and one sound stream and every frame it claims. Counting packets finds
missing ones cheaply; decoding the first and the last group of pictures finds the rest of what a cut or a crash leaves.
Files are opened as everywhere in the service: the two known containers only, and no protocol that opens others.
"""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error

from utils.containers import boxes, missing_bytes
from utils.file_handler import FULL, StorageFull, created, write_atomic

MAX_LAST_FRAMES = 1500
"""At most so many frames are decoded at each end: an encoder may have put a single key frame into hours of video."""

CODEC_NAMES = {"h264": "h264", "vp9": "vp9", "libvpx-vp9": "vp9", "aac": "aac", "opus": "opus", "libopus": "opus"}
VP9 = {"deadline": "realtime", "cpu-used": "8", "row-mt": "1", "tile-columns": "2", "crf": "33", "b": "0"}
OPUS_RATE = 48_000
OPUS_BITS = 96_000
JPEG_QUALITY = 85


class VideoError(ValueError):
    """The file is no finished video. The text is one line and holds no path."""


class VideoStopped(Exception):
    """The work was given up because the caller's `should_stop` said so; nothing is left of it."""


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What a video file holds: pixels, frames (counted), frames a second, seconds of picture, bytes."""

    width: int
    height: int
    fps: float
    frames: int
    duration_seconds: float
    size_bytes: int
    video_codec: str
    audio_codec: str
    container: str


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    options = {"format_whitelist": "mov,matroska", "protocol_whitelist": "none"}
    with path.open("rb") as file:
        if missing_bytes(file, path.stat().st_size):
            raise VideoError("the video is cut off: its end is missing")
        try:
            with av.open(file, "r", container_options=options, metadata_errors="ignore") as container:
                yield container
        except (av.error.FFmpegError, OSError) as error:
            if error.errno in FULL:
                raise StorageFull from None
            # An offset out of a damaged file comes back as Python's own EINVAL; what else Python says is the disk's.
            if not isinstance(error, av.error.FFmpegError) and error.errno != errno.EINVAL:
                raise
            raise VideoError("the file is damaged or no video") from None


def inspect_video(path: Path) -> VideoFacts:
    """Count, decode at both ends, and describe the video at `path`.

    Raises VideoError unless it holds exactly one video and one audio stream and all it claims; OSError for the file.
    """
    with _opened(path) as container:
        picture, sound = _streams(container)
        groups = _count(container, picture, sound)
        _decode(container, picture, groups.first_key, groups.first_frames)
        if groups.last_key != groups.first_key:
            _decode(container, picture, groups.last_key, groups.last_frames)
        fps = float(picture.average_rate or 0)
        if not fps:
            raise VideoError("the video does not say how fast it runs")
        return VideoFacts(
            width=picture.width,
            height=picture.height,
            fps=fps,
            frames=groups.frames,
            duration_seconds=groups.frames / fps,
            size_bytes=path.stat().st_size,
            video_codec=_codec_name(picture),
            audio_codec=_codec_name(sound),
            container="mp4" if "mp4" in container.format.name else "webm",
        )


def _streams(container: av.container.InputContainer) -> tuple[av.VideoStream, av.AudioStream]:
    pictures, sounds = container.streams.video, container.streams.audio
    if len(pictures) != 1 or len(sounds) != 1:
        raise VideoError(f"the file holds {len(pictures)} video and {len(sounds)} audio streams instead of one of each")
    # A damaged picture is an error here, not something to paint over.
    pictures[0].codec_context.options = {"err_detect": "explode"}
    pictures[0].thread_type = "AUTO"
    return pictures[0], sounds[0]


def _codec_name(stream: av.VideoStream | av.AudioStream) -> str:
    return CODEC_NAMES.get(stream.codec_context.name, stream.codec_context.name)


@dataclass(slots=True)
class _Groups:
    """What one pass over the packets found: all frames, and the first and the last group that a key frame begins."""

    frames: int = 0
    sound_packets: int = 0
    first_key: int = 0
    first_frames: int = 0
    last_key: int = 0
    last_frames: int = 0

    def add(self, packet: av.Packet[Any]) -> None:
        if packet.is_keyframe:
            self.last_key, self.last_frames = packet.pts or 0, 0
        if not self.frames:
            self.first_key = packet.pts or 0
        self.frames += 1
        self.last_frames += 1
        if self.frames == self.last_frames:
            self.first_frames = self.frames


def _count(container: av.container.InputContainer, picture: av.VideoStream, sound: av.AudioStream) -> _Groups:
    """Read every packet, decode none. Raises VideoError where some are missing or cut."""
    groups = _Groups()
    for packet in container.demux(picture, sound):
        if packet.is_corrupt:
            raise VideoError("the video is cut off or damaged")
        if not packet.size:
            continue
        if packet.stream_index == picture.index:
            groups.add(packet)
        else:
            groups.sound_packets += 1
    if not groups.frames or not groups.sound_packets:
        raise VideoError("the video has no pictures or no sound")
    # mp4 says in its index how many there are; WebM says nothing, and 0 stands for that.
    if picture.frames > groups.frames or sound.frames > groups.sound_packets:
        raise VideoError(f"the video is cut off: {groups.frames} of {picture.frames} frames are there")
    return groups


def _decode(container: av.container.InputContainer, picture: av.VideoStream, key: int, frames: int) -> None:
    """Decode the group of `frames` frames that the key frame at `key` begins; raise VideoError if one is missing."""
    wanted = min(frames, MAX_LAST_FRAMES)
    container.seek(key, stream=picture)
    decoded = 0
    for frame in container.decode(picture):
        if frame.is_corrupt:
            raise VideoError("a picture of the video is damaged")
        decoded += frame.pts is None or frame.pts >= key
        if decoded >= wanted:
            return
    raise VideoError(f"only {decoded} of {wanted} frames of the video can be decoded")


def write_poster(video: Path, destination_jpg: Path, *, max_side: int = 1280) -> None:
    """Write the first frame as JPEG, no side over `max_side` pixels. Raises VideoError, StorageFull."""
    with _opened(video) as container:
        picture, _ = _streams(container)
        for frame in container.decode(picture):
            image = frame.to_image()  # type: ignore[no-untyped-call]
            break
        else:
            raise VideoError("the video has no frames")
    image.thumbnail((max_side, max_side))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=JPEG_QUALITY)
    write_atomic(destination_jpg, encoded.getvalue())


def to_webm(source: Path, destination: Path, *, should_stop: Callable[[], bool]) -> None:
    """Encode `source` as VP9 and Opus into the new file `destination`, frame for frame, in bounded memory.

    Raises VideoStopped as soon as `should_stop()` is true, VideoError, StorageFull; then no file is left.
    """
    with created(destination) as file, _opened(source) as reading:
        picture, sound = _streams(reading)
        with av.open(file, "w", format="webm") as writing:
            _transcode(reading, picture, sound, writing, should_stop)


def _transcode(
    reading: av.container.InputContainer,
    picture: av.VideoStream,
    sound: av.AudioStream,
    writing: av.container.OutputContainer,
    should_stop: Callable[[], bool],
) -> None:
    rate = picture.average_rate or Fraction(25)
    video = writing.add_stream("libvpx-vp9", rate=rate, options=VP9)
    video.width, video.height, video.pix_fmt = picture.width, picture.height, "yuv420p"
    audio = writing.add_stream("libopus", rate=OPUS_RATE)
    audio.bit_rate = OPUS_BITS
    frames = 0
    for packet in reading.demux(picture, sound):
        if should_stop():
            raise VideoStopped
        for frame in packet.decode():
            if isinstance(frame, av.VideoFrame):
                frame.pts, frame.time_base = frames, 1 / rate
                frames += 1
                writing.mux(video.encode(frame))
            elif isinstance(frame, av.AudioFrame):
                frame.pts = None
                writing.mux(audio.encode(frame))
    writing.mux(video.encode(None))
    writing.mux(audio.encode(None))


def to_faststart(source: Path, destination: Path) -> None:
    """Copy an mp4's streams into the new file `destination` with the index in front; nothing is encoded again."""
    # FFmpeg opens the file a second time to move the index, so it needs a name; `file:` keeps that a file name.
    with created(destination), _opened(source) as reading:
        picture, sound = _streams(reading)
        with av.open(f"file:{destination}", "w", format="mp4", options={"movflags": "+faststart"}) as writing:
            copies = {stream.index: writing.add_stream_from_template(stream) for stream in (picture, sound)}
            for packet in reading.demux(picture, sound):
                if packet.dts is not None:
                    packet.stream = copies[packet.stream.index]
                    writing.mux(packet)


def is_faststart(path: Path) -> bool:
    """Tell whether an mp4's index (moov) stands before its data (mdat), so that a browser plays while it loads."""
    with path.open("rb") as file:
        for name, _ in boxes(file):
            if name in (b"moov", b"mdat"):
                return name == b"moov"
    return False
