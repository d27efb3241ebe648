"""Media files taken apart into the parts they are made of, and put together with the right lengths and checksums."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

_MOST = 5000
"""Parts of one file; behind them it is left as it is."""


@dataclass(frozen=True, slots=True)
class Part:
    """A chunk, box, page or segment: its name (with whatever else its head holds), and its content."""

    name: bytes
    body: bytes

    def holding(self, body: bytes) -> Part:
        return replace(self, body=body)


@dataclass(frozen=True, slots=True)
class Form:
    """How files of one format are built. `nests`: the names of parts that are made of parts themselves."""

    split: Callable[[bytes], list[Part]]
    join: Callable[[list[Part]], bytes]
    nests: frozenset[bytes] = frozenset()


def form_of(data: bytes, *, inside: bool = False) -> Form | None:
    """Return how this file is built, None where that is not known. `inside`: it is what a box of MP4 holds."""
    if inside:
        return _MP4
    return next((form for offset, magic, form in _FORMS if data.startswith(magic, offset)), None)


def squeezed(packed: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Return zlib's stream with its content changed; where it cannot be unpacked, change the stream itself."""
    with suppress(zlib.error):
        return zlib.compress(change(zlib.decompressobj().decompress(packed)), 1)
    return change(packed)


_TAIL = b""
"""The name of what follows the last part that could be told apart."""


def _walk(data: bytes, start: int, step: Callable[[int], tuple[Part, int] | None]) -> list[Part]:
    """Split from `start` on; `step` returns the part at a position, and where the next one begins."""
    parts: list[Part] = []
    while start < len(data) and len(parts) < _MOST:
        found = step(start)
        if found is None:
            break
        part, start = found
        parts.append(part)
    return [*parts, Part(_TAIL, data[start:])] if start < len(data) else parts


# --- PNG: length, name, content, CRC ----------------------------------------------------------------------------------

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _split_png(data: bytes) -> list[Part]:
    def step(at: int) -> tuple[Part, int] | None:
        if at + 12 > len(data):
            return None
        size = int.from_bytes(data[at : at + 4], "big")
        return Part(data[at + 4 : at + 8], data[at + 8 : at + 8 + size]), at + 12 + size

    return _walk(data, 8, step)


def _join_png(parts: list[Part]) -> bytes:
    def one(part: Part) -> bytes:
        if part.name == _TAIL:
            return part.body
        crc = zlib.crc32(part.name + part.body)
        return struct.pack(">I", len(part.body)) + part.name + part.body + struct.pack(">I", crc)

    return _SIGNATURE + b"".join(map(one, parts))


# --- RIFF (WAV, WebP): name, length, content, to an even length -------------------------------------------------------


def _riff(kind: bytes) -> Form:
    def split(data: bytes) -> list[Part]:
        def step(at: int) -> tuple[Part, int] | None:
            if at + 8 > len(data):
                return None
            size = int.from_bytes(data[at + 4 : at + 8], "little")
            return Part(data[at : at + 4], data[at + 8 : at + 8 + size]), at + 8 + size + size % 2

        return _walk(data, 12, step)

    def join(parts: list[Part]) -> bytes:
        body = kind + b"".join(
            part.body if part.name == _TAIL
            else part.name + struct.pack("<I", len(part.body)) + part.body + bytes(len(part.body) % 2)
            for part in parts
        )  # fmt: skip
        return b"RIFF" + struct.pack("<I", len(body) & 0xFFFFFFFF) + body

    return Form(split, join)


# --- MP4: length, name, content; some boxes are made of boxes ---------------------------------------------------------


def _split_mp4(data: bytes) -> list[Part]:
    def step(at: int) -> tuple[Part, int] | None:
        size = int.from_bytes(data[at : at + 4], "big")
        if at + 8 > len(data) or size < 8:
            return None
        return Part(data[at + 4 : at + 8], data[at + 8 : at + size]), at + size

    return _walk(data, 0, step)


def _join_mp4(parts: list[Part]) -> bytes:
    return b"".join(
        part.body if part.name == _TAIL else struct.pack(">I", len(part.body) + 8) + part.name + part.body
        for part in parts
    )


# --- Ogg: pages with a table of lengths and a CRC of their own --------------------------------------------------------

_PAGE_HEAD = 26  # "OggS", version, flags, position, stream, number, CRC


def _split_ogg(data: bytes) -> list[Part]:
    def step(at: int) -> tuple[Part, int] | None:
        if data[at : at + 4] != b"OggS" or at + 27 > len(data):
            return None
        table = data[at + 27 : at + 27 + data[at + 26]]
        begins = at + 27 + len(table)
        return Part(data[at : at + _PAGE_HEAD] + table, data[begins : begins + sum(table)]), begins + sum(table)

    return _walk(data, 0, step)


def _join_ogg(parts: list[Part]) -> bytes:
    return b"".join(part.body if part.name == _TAIL else _page(part) for part in parts)


def _page(part: Part) -> bytes:
    head, table, body = part.name[:_PAGE_HEAD], part.name[_PAGE_HEAD:], part.body[: 255 * 254]
    if sum(table) != len(body):  # one packet of it all
        table = bytes([255] * (len(body) // 255) + [len(body) % 255])
    page = head[:22] + bytes(4) + bytes([len(table)]) + table + body
    return page[:22] + struct.pack("<I", _ogg_crc(page)) + page[26:]


def _ogg_crc(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc = (crc << 8) & 0xFFFFFFFF ^ _CRCS[crc >> 24 ^ byte]
    return crc


def _crc_of(byte: int) -> int:
    crc = byte << 24
    for _ in range(8):
        crc = (crc << 1 & 0xFFFFFFFF) ^ (0x04C11DB7 if crc >> 31 else 0)
    return crc


_CRCS = tuple(map(_crc_of, range(256)))


# --- JPEG: marker, length, content; then the picture ------------------------------------------------------------------


def _split_jpeg(data: bytes) -> list[Part]:
    def step(at: int) -> tuple[Part, int] | None:
        if data[at : at + 1] != b"\xff" or data[at : at + 2] == b"\xff\xda" or at + 4 > len(data):
            return None  # the picture has begun
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        return Part(data[at : at + 2], data[at + 4 : end]), max(end, at + 4)

    return _walk(data, 2, step)


def _join_jpeg(parts: list[Part]) -> bytes:
    return b"\xff\xd8" + b"".join(
        part.body if part.name == _TAIL
        else part.name + struct.pack(">H", min(len(part.body) + 2, 0xFFFF)) + part.body[:0xFFFD]
        for part in parts
    )  # fmt: skip


# --- FLAC: kind, length of 24 bits, content; then the sound -----------------------------------------------------------


def _split_flac(data: bytes) -> list[Part]:
    last = False

    def step(at: int) -> tuple[Part, int] | None:
        nonlocal last
        if last or at + 4 > len(data):
            return None
        last = bool(data[at] & 0x80)
        end = at + 4 + int.from_bytes(data[at + 1 : at + 4], "big")
        return Part(data[at : at + 1], data[at + 4 : end]), end

    return _walk(data, 4, step)


def _join_flac(parts: list[Part]) -> bytes:
    return b"fLaC" + b"".join(
        part.body if part.name == _TAIL else part.name + len(part.body).to_bytes(4, "big")[1:] + part.body
        for part in parts
    )


_MP4 = Form(_split_mp4, _join_mp4, frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"udta", b"edts", b"dinf"}))
_FORMS: tuple[tuple[int, bytes, Form], ...] = (
    (0, _SIGNATURE, Form(_split_png, _join_png)),
    (8, b"WAVE", _riff(b"WAVE")),
    (8, b"WEBP", _riff(b"WEBP")),
    (4, b"ftyp", _MP4),
    (0, b"OggS", Form(_split_ogg, _join_ogg)),
    (0, b"\xff\xd8\xff", Form(_split_jpeg, _join_jpeg)),
    (0, b"fLaC", Form(_split_flac, _join_flac)),
)
