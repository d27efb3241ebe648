"""What a medium may be and what its first bytes say it is. Shared by the server and the sandboxed child, hence light.

Names and declared types are never looked at: an `.wav` that is a playlist is a playlist.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["image", "audio"]
Peek = Callable[[int, int], bytes]
"""`peek(size, offset)` returns up to `size` bytes of the file from `offset` on."""

HEAD_BYTES = 2048
ACCEPTED: dict[Kind, str] = {
    "image": "a PNG, JPEG, WebP, GIF or BMP image",
    "audio": "a WAV, MP3, M4A, AAC, Ogg, FLAC or WebM recording",
}
WANTED: dict[Kind, str] = {"image": "an image", "audio": "audio"}


class MediaError(ValueError):
    """No engine could use this medium. The text is one line for the user and holds no path."""


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What is accepted, and what decoding may cost. Sides and pixels of the picture as stored, audio in seconds.

    `wall_seconds` bounds one call however many jobs it has, `cpu_seconds` and `memory_bytes` (address space) bound the
    child process.
    """

    min_image_side: int = 64
    max_image_side: int = 8192
    max_image_pixels: int = 40_000_000
    max_aspect: float = 4.0
    min_audio_seconds: float = 0.2
    max_audio_seconds: float = 3 * 3600.0
    wall_seconds: float = 120.0
    cpu_seconds: float = 100.0
    memory_bytes: int = 3 * 2**29


@dataclass(frozen=True, slots=True)
class Sniffed:
    """What bytes are: `what` in words; `decoder` as Pillow or FFmpeg calls it, "" where the service has none."""

    what: str
    kind: Kind | None
    decoder: str = ""


_MAGIC: tuple[tuple[int, bytes, Sniffed], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", Sniffed("a PNG image", "image", "PNG")),
    (0, b"\xff\xd8\xff", Sniffed("a JPEG image", "image", "JPEG")),
    (0, b"GIF87a", Sniffed("a GIF image", "image", "GIF")),
    (0, b"GIF89a", Sniffed("a GIF image", "image", "GIF")),
    (8, b"WEBPVP8", Sniffed("a WebP image", "image", "WEBP")),
    (8, b"WAVE", Sniffed("a WAV recording", "audio", "wav")),
    (8, b"AVI ", Sniffed("an AVI video", None)),
    (0, b"fLaC", Sniffed("a FLAC recording", "audio", "flac")),
    (0, b"OggS", Sniffed("an Ogg recording", "audio", "ogg")),
    (0, b"\x1a\x45\xdf\xa3", Sniffed("a WebM or Matroska file", "audio", "matroska")),
    (4, b"ftypavi", Sniffed("an AVIF image", "image")),
    (4, b"ftyphei", Sniffed("a HEIC image", "image")),
    (4, b"ftyphev", Sniffed("a HEIC image", "image")),
    (4, b"ftypmif1", Sniffed("a HEIC image", "image")),
    (4, b"ftypmsf1", Sniffed("a HEIC image", "image")),
    (4, b"ftyp", Sniffed("an MP4 file", "audio", "mov")),
    (0, b"II*\0", Sniffed("a TIFF image", "image")),
    (0, b"MM\0*", Sniffed("a TIFF image", "image")),
    (0, b"8BPS", Sniffed("a Photoshop image", "image")),
    (0, b"\0\0\1\0", Sniffed("an icon", "image")),
    (0, b"\0\0\0\x0cjP  ", Sniffed("a JPEG 2000 image", "image")),
    (0, b"\0\0\0\x0cJXL ", Sniffed("a JPEG XL image", "image")),
    (0, b"\xff\x0a", Sniffed("a JPEG XL image", "image")),
    (8, b"AIFF", Sniffed("an AIFF recording", "audio")),
    (8, b"AIFC", Sniffed("an AIFF recording", "audio")),
    (0, b"caff", Sniffed("a CAF recording", "audio")),
    (0, b"#!AMR", Sniffed("an AMR recording", "audio")),
    (0, b".snd", Sniffed("an AU recording", "audio")),
    (0, b"MThd", Sniffed("a MIDI file", "audio")),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Sniffed("a Windows Media file", "audio")),
    (0, b"FLV\1", Sniffed("a Flash video", None)),
    (0, b"\0\0\1\xba", Sniffed("an MPEG video", None)),
    (0, b"%PDF-", Sniffed("a PDF document", None)),
    (0, b"PK\3\4", Sniffed("a ZIP archive", None)),
    (0, b"\x1f\x8b", Sniffed("a gzip archive", None)),
    (0, b"BZh", Sniffed("a bzip2 archive", None)),
    (0, b"7z\xbc\xaf\x27\x1c", Sniffed("a 7z archive", None)),
    (0, b"\xfd7zXZ\0", Sniffed("an xz archive", None)),
    (0, b"Rar!\x1a\7", Sniffed("a RAR archive", None)),
    (0, b"\x7fELF", Sniffed("a program", None)),
    (0, b"MZ", Sniffed("a program", None)),
)  # fmt: skip

_TEXTS: tuple[tuple[str, str], ...] = (
    (r"\s*#EXTM3U|\s*\[playlist\]", "a playlist"),
    (r"\s*ffconcat", "a concat script"),
    (r"\s*v=0\s*[\r\n]+o=", "a session description"),
    (r"(?s).*<svg[\s>]", "an SVG drawing"),
    (r"(?s).*<MPD[\s>]", "a streaming manifest"),
    (r"(?s).*<(!doctype\s+html|html|script)", "a web page"),
    (r"\s*<\?xml", "an XML document"),
)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def sniff(size: int, peek: Peek) -> Sniffed:
    """Say what a file of `size` bytes is. Raises MediaError for an empty one."""
    if not size:
        raise MediaError("the file is empty")
    head = peek(HEAD_BYTES, 0)
    for offset, magic, sniffed in _MAGIC:
        if head.startswith(magic, offset) and _container_holds(head, magic):
            return sniffed
    return _tagged_audio(head, peek) or _mpeg_audio(head) or _weak(head) or _text(head) or Sniffed("", None)


def choose_decoder(kind: Kind, size: int, peek: Peek) -> str:
    """Return the name of the one decoder for these bytes. Raises MediaError unless they are of `kind` and supported."""
    sniffed = sniff(size, peek)
    if sniffed.kind == kind and sniffed.decoder:
        return sniffed.decoder
    if sniffed.kind == kind:
        raise MediaError(f"this is {sniffed.what}, which is not supported; send {ACCEPTED[kind]}")
    if sniffed.what:
        raise MediaError(f"this is {sniffed.what}, not {WANTED[kind]}; send {ACCEPTED[kind]}")
    raise MediaError(f"the format of this file is not known; send {ACCEPTED[kind]}")


def _container_holds(head: bytes, magic: bytes) -> bool:
    """Four letters at offset 8 count only inside the container that puts them there."""
    if magic in (b"WEBPVP8", b"AVI "):
        return head.startswith(b"RIFF")
    if magic == b"WAVE":
        return head.startswith((b"RIFF", b"RF64"))
    return magic not in (b"AIFF", b"AIFC") or head.startswith(b"FORM")


def _tagged_audio(head: bytes, peek: Peek) -> Sniffed | None:
    """Look behind an ID3v2 tag, which programs put before MP3 and, against the rules, before FLAC and AAC."""
    if not head.startswith(b"ID3") or len(head) < 10:
        return None
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    behind = peek(16, size + 10)
    if behind.startswith(b"fLaC"):
        return Sniffed("a FLAC recording", "audio", "flac")
    return _mpeg_audio(behind) or Sniffed("an MP3 recording", "audio", "mp3")


def _mpeg_audio(head: bytes) -> Sniffed | None:
    """Recognise the frame header of MPEG layer III or of AAC in ADTS, reserved values excluded."""
    if len(head) < 4 or head[0] != 0xFF:
        return None
    if head[1] & 0xF6 == 0xF0 and head[2] >> 2 & 0x0F < 13:
        return Sniffed("an AAC recording", "audio", "aac")
    layer_3 = head[1] & 0xE6 == 0xE2 and head[1] >> 3 & 3 != 1
    if layer_3 and head[2] >> 4 not in (0, 15) and head[2] >> 2 & 3 != 3:
        return Sniffed("an MP3 recording", "audio", "mp3")
    return None


def _weak(head: bytes) -> Sniffed | None:
    """Signatures too short to trust alone."""
    if head.startswith(b"BM") and head[6:10] == bytes(4) and len(head) > 26:
        return Sniffed("a BMP image", "image", "BMP")
    if head[:1] == head[188:189] == head[376:377] == b"G" and b"\0" in head:
        return Sniffed("an MPEG transport stream", None)
    return None


def _text(head: bytes) -> Sniffed | None:
    encoding = "utf-16" if head.startswith(_UTF16) else "utf-8"
    # The last character may be cut in two by the end of the head.
    text = head.decode(encoding, errors="ignore")
    lost = len(head) - len(text.encode(encoding, errors="ignore"))
    if lost > 3 or _CONTROL.search(text):
        return None
    for pattern, what in _TEXTS:
        if re.match(pattern, text.lstrip("\ufeff"), re.IGNORECASE):
            return Sniffed(what, None)
    return Sniffed("text", None)
