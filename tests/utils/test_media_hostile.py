"""Hostile and broken media: each is refused with its own reason, costs little, and leaves no file."""

from __future__ import annotations

import gzip
import io
import random
import struct
import wave
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
from PIL import Image

from utils.media import MediaError, MediaJob, MediaLimits, normalise

Kind = Literal["image", "audio"]
Data = bytes | Callable[[], bytes]
SECRET = "the neighbour's recording"


def wav(seconds: float = 0.5, rate: int = 8000, channels: int = 1) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(round(seconds * rate) * 2 * channels))
    return out.getvalue()


def patched(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def encoded(container: str, codec: str, seconds: float, **options: str) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=48000, layout="mono")
        time = np.arange(round(seconds * 48000))
        samples = (np.sin(time * 0.05) * 9000).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 48000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return out.getvalue()


def silent_film() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        file.mux(stream.encode(None))
    return out.getvalue()


def silence(container: str, seconds: int) -> bytes:
    """FLAC silence at 8 kHz whose few bytes unpack to hours: one packet of 65,535 samples, again and again."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream("flac", rate=8000, layout="mono", options={"frame_size": "65535"})
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 65535), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        packets: list[av.Packet[av.AudioStream]] = []
        for number in range(seconds * 8000 // 65535 + 1):
            frame.pts = number * 65535
            # A FLAC file numbers its frames; Matroska does not look, and one encoded packet serves for all.
            if container == "flac" or not packets:
                packets = [*stream.encode(frame), *([] if container == "flac" else stream.encode(None))]
            for packet in packets:
                packet.pts = packet.dts = number * 65535
                file.mux(packet)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, packed: bytes | None = None, extra: bytes = b"") -> bytes:
    """A grey PNG; `packed` replaces its compressed pixels."""
    if packed is None:
        packer = zlib.compressobj(1)
        packed = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    ends = chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + ends


def picture(kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((120, 100), 40).convert("RGB").save(out, kind, **options)
    return out.getvalue()


JUNK = random.Random(7).randbytes(50_000)
WAV = wav()
FFCONCAT = f"ffconcat version 1.0\nfile '{SECRET}.wav'\n".encode()
SDP = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nm=audio 5004 RTP/AVP 0\r\n"
SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
TEXTS: dict[str, tuple[Data, str]] = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello\n", "this is text"),
    "text in UTF-16": ("hällo".encode("utf-16"), "this is text"),
    "text with a mark": (b"\xef\xbb\xbfhello", "this is text"),
    "long text cut in a letter": (b"x" + "ä".encode() * 5000, "this is text"),
    "subtitles": (b"1\n00:00:01,000 --> 00:00:02,000\nhello\n", "this is text"),
    "JSON": (b'{"a": 1}', "this is text"),
    "concat script": (FFCONCAT, "a concat script"),
    "concat script with a mark": (b"\xef\xbb\xbf" + FFCONCAT, "a concat script"),
    "playlist": (b"#EXTM3U\n#EXTINF:1\n" + SECRET.encode() + b".ts\n", "a playlist"),
    "session description": (SDP, "a session description"),
    "SVG": (SVG, "an SVG drawing"),
    "DASH": (b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>', "a streaming manifest"),
    "HTML": (b"<!DOCTYPE html><script>alert(1)</script>", "a web page"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
    "ZIP": (b"PK\3\4" + JUNK, "a ZIP archive"),
    "gzipped WAV": (gzip.compress(WAV), "a gzip archive"),
    "program": (b"\x7fELF" + JUNK, "a program"),
    "AVI": (b"RIFF\xff\xff\0\0AVI LIST" + JUNK, "an AVI video"),
    "MPEG-TS": (b"".join(b"G" + JUNK[:187] for _ in range(9)) + b"\0", "an MPEG transport stream"),
    "noise": (b"\x01" + JUNK, "the format of this file is not known"),
    "zeros": (bytes(5000), "the format of this file is not known"),
    "one byte": (b"\0", "the format of this file is not known"),
}
AUDIO: dict[str, tuple[Data, str]] = TEXTS | {
    "a PNG": (picture("PNG"), "this is a PNG image, not audio"),
    "a JPEG": (picture("JPEG"), "this is a JPEG image, not audio"),
    "a HEIC": (b"\0\0\0\x18ftypheic" + JUNK, "this is a HEIC image, not audio"),
    "AIFF": (b"FORM\0\0\0\0AIFF" + JUNK, "an AIFF recording, which is not supported"),
    "MIDI": (b"MThd\0\0\0\6" + JUNK, "not supported"),
    "a codec outside the list": (encoded("matroska", "ac3", 0.5), "stored in a way that is not supported"),
    "MP4 without sound": (silent_film(), "no sound"),
    "noise after RIFF": (b"RIFF\xff\xff\0\0WAVE" + JUNK, "damaged"),
    "noise after fLaC": (b"fLaC" + JUNK, "damaged"),
    "noise after OggS": (b"OggS" + JUNK, "damaged"),
    "noise after EBML": (b"\x1a\x45\xdf\xa3" + JUNK, "damaged"),
    "noise after ftyp": (b"\0\0\0\x20ftypM4A " + JUNK, "damaged"),
    "noise after ID3": (b"ID3\4\0\0\0\0\0\0" + JUNK, "damaged"),
    "noise after an MP3 head": (b"\xff\xfb\x90\x64" + JUNK, "damaged"),
    "noise after an ADTS head": (b"\xff\xf1\x50\x80" + JUNK, "no sound"),
    "concat script behind RIFF": (b"RIFF\0\0\0\0WAVE" + FFCONCAT, "damaged"),
    "cut WAV": (WAV[: len(WAV) // 2], "cut off"),
    "cut FLAC": (encoded("flac", "flac", 1)[:-9000], "cut off"),
    "cut MP4": (encoded("mp4", "aac", 2)[:-900], "cut off"),
    "cut MP4, index first": (encoded("mp4", "aac", 2, movflags="frag_keyframe+empty_moov")[:-900], "cut off"),
    "cut WebM": (encoded("webm", "libopus", 2)[:-900], "cut off"),
    "WAV that promises more": (patched(WAV, 40, struct.pack("<I", 10**9)), "cut off"),
    "WAV with a head only": (WAV[:44], "cut off"),
    "WAV of no samples": (wav(0), "no sound"),
    "9 channels": (wav(channels=9), "the recording has 9 channels"),
    "255 channels": (wav(channels=255), "the recording has 255 channels"),
    "0 channels": (patched(WAV, 22, b"\0\0"), "damaged"),
    "1 sample a second": (patched(WAV, 24, struct.pack("<I", 1)), "the recording has 1 samples a second"),
    "4 GHz": (patched(WAV, 24, b"\xff\xff\xff\xff"), "damaged"),
    "0.19 s": (wav(0.19), "at least 0.2 s"),
    "a lying rate": (patched(wav(0.3), 24, struct.pack("<I", 48000)), "at least 0.2 s"),
    "10 h of silence": (lambda: silence("matroska", 36_000), "longer than 60 s"),
    "5 min of silence": (lambda: silence("flac", 300), "longer than 60 s"),
    "61 s": (wav(61), "longer than 60 s"),
    "61 s in little": (lambda: encoded("ogg", "libopus", 61), "longer than 60 s"),
}
IMAGES: dict[str, tuple[Data, str]] = TEXTS | {
    "a WAV": (WAV, "this is a WAV recording, not an image"),
    "an MP4": (encoded("mp4", "aac", 0.3), "this is an MP4 file, not an image"),
    "TIFF": (picture("TIFF"), "a TIFF image, which is not supported"),
    "AVIF": (b"\0\0\0\x20ftypavif" + JUNK, "an AVIF image, which is not supported"),
    "HEIC": (b"\0\0\0\x18ftypheic" + JUNK, "a HEIC image, which is not supported"),
    "icon": (b"\0\0\1\0\1\0" + JUNK, "an icon, which is not supported"),
    **{f"cut {kind}": (picture(kind)[:-400], "cut off") for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")},
    **{f"head of a {kind}": (picture(kind)[:30], "cut off") for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")},
    "PNG without its last byte": (picture("PNG")[:-1], "cut off"),
    "PNG of a signature": (b"\x89PNG\r\n\x1a\n", "cut off"),
    "PNG with wrong sums": (picture("PNG").replace(b"IHDR\0\0\0\x78", b"IHDR\0\0\0\x79"), "damaged"),
    "PNG of no width": (png(0, 100), "damaged"),
    "13,000 x 13,000": (lambda: png(13_000, 13_000), "13000 x 13000 pixels; no side may have more than 8192"),
    "a head that says so only": (png(100_000, 100_000, b""), "100000 x 100000 pixels"),
    "8,192 x 8,192": (png(8192, 8192, b""), "at most 40000000"),
    "pixels missing": (png(2000, 2000, zlib.compress(bytes(100))), "cut off or damaged"),
    "a text that unpacks to 100 MB": (
        png(100, 100, extra=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8)))),
        "dam",
    ),
    "1 x 1": (png(1, 1), "the image is 1 x 1 pixels; each side must have at least 64"),
    "63 x 64": (png(63, 64), "at least 64"),
    "too long": (png(64, 257), "at most 4 times the other"),
    "noise after JPEG": (b"\xff\xd8\xff\xe0" + JUNK, "damaged"),
    "noise after GIF": (b"GIF89a" + JUNK, "damaged"),
    "noise after WebP": (b"RIFF\xff\xff\0\0WEBPVP8 " + JUNK, "damaged"),
}
LIMITS = MediaLimits(max_audio_seconds=60.0)
Outcomes = Callable[[Kind, str], tuple[object, Path]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """All of one table go through one child process, so that each is judged beside the others."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / f"{SECRET}.wav").write_bytes(WAV)
    made: dict[tuple[Kind, str], tuple[object, Path]] = {}
    tables: tuple[tuple[Kind, dict[str, tuple[Data, str]]], ...] = (("audio", AUDIO), ("image", IMAGES))
    for kind, table in tables:
        jobs = [MediaJob(kind, folder / f"{kind}-{n}.wav", folder / f"{kind}-{n}.out") for n in range(len(table))]
        for job, (data, _) in zip(jobs, table.values(), strict=True):
            job.source.write_bytes(data() if callable(data) else data)
        for name, job, outcome in zip(table, jobs, normalise(jobs, LIMITS), strict=True):
            made[kind, name] = outcome, job.destination
    return lambda kind, name: made[kind, name]


CASES: list[tuple[Kind, str]] = [("audio", name) for name in AUDIO] + [("image", name) for name in IMAGES]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_hostile_medium_is_refused_in_one_line_with_its_own_reason(outcomes: Outcomes, kind: Kind, name: str) -> None:
    outcome, destination = outcomes(kind, name)
    assert isinstance(outcome, MediaError), outcome
    text = str(outcome)
    assert (AUDIO if kind == "audio" else IMAGES)[name][1] in text
    assert "\n" not in text
    assert not any(secret in text for secret in ("/", ".wav", "Errno", SECRET))
    assert not destination.exists()
