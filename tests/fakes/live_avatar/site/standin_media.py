"""The stand-in's moving pictures and its ffmpeg: a real mp4, small and fast."""

from __future__ import annotations

import errno
import os
import struct
import wave
from typing import NamedTuple

import standin

FPS = 25
OVERSHOOT_FRAMES = 2
"""`-shortest` keeps a little more than the sound: 292 frames of 11.6 s."""


class Pictures(NamedTuple):
    """What stands for the tensor of all frames."""

    frames: int
    height: int
    width: int


def seconds_of(audio: str) -> float:
    with wave.open(audio) as file:
        return file.getnframes() / file.getframerate()


def size_of(image: str) -> tuple[int, int]:
    """Height and width; of a PNG from its header, for that is quick."""
    with open(image, "rb") as file:
        start = file.read(24)
    if start[:8] == b"\x89PNG\r\n\x1a\n" and start[12:16] == b"IHDR":
        width, height = struct.unpack(">II", start[16:])
        return height, width
    from PIL import Image

    with Image.open(image) as opened:
        return opened.height, opened.width


def write_pictures(path: str, video: Pictures) -> None:
    """Write the frames without sound. A square walks over a plain ground."""
    from fractions import Fraction

    import av

    frames = video.frames // 2 if "short" in standin.MODES else video.frames
    with av.open("file:" + path, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "g": "25", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
        frame = av.VideoFrame(video.width, video.height, "yuv420p")
        for plane, level in zip(frame.planes, (128, 96, 160), strict=True):
            plane.update(bytes([level]) * plane.buffer_size)
        ground, line = bytearray(frame.planes[0]), frame.planes[0].line_size
        for number in range(frames):
            left, lit = number * 4 % (video.width - 16), bytearray(ground)
            for row in range(32, 48):
                lit[row * line + left : row * line + left + 16] = b"\xc8" * 16
            frame.planes[0].update(lit)
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    if standin.MODES & {"truncated", "disk_full"}:
        os.truncate(path, os.path.getsize(path) // 2)
        full = "disk_full" in standin.MODES
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else BrokenPipeError(errno.EPIPE, "Broken pipe")


def merge(silent: str, audio: str, target: str) -> None:
    """ffmpeg -y -i silent -i audio -c:v copy -c:a aac -shortest target."""
    if "missing_audio_track" in standin.MODES:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "ffmpeg")
    import av
    from av.error import FFmpegError

    keep = int(seconds_of(audio) * FPS + 1e-6) + OVERSHOOT_FRAMES
    try:
        with (
            av.open("file:" + silent) as pictures,
            av.open("file:" + audio) as sounds,
            av.open("file:" + target, "w", format="mp4") as file,
        ):
            video = file.add_stream_from_template(pictures.streams.video[0])
            sound = file.add_stream("aac", rate=sounds.streams.audio[0].rate, options={"aac_coder": "fast"})
            step = pictures.streams.video[0].duration // pictures.streams.video[0].frames
            for packet in pictures.demux(video=0):
                if packet.dts is not None and packet.pts < keep * step:
                    packet.stream = video
                    file.mux(packet)
            for frame in sounds.decode(audio=0):
                frame.pts = None
                file.mux(sound.encode(frame))
            file.mux(sound.encode(None))
    except FFmpegError as error:
        raise RuntimeError(f"FFmpeg execute failed: {error}") from None


def move(source: str, target: str) -> None:
    os.replace(source, target)
