"""Whether a container file is all there, judged from outside: where its outermost parts say they end.

A cut file is mostly readable, so decoders shrug and return less. The lengths at the very outside tell in microseconds,
whatever the file holds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_MOVIE_PARTS = frozenset({b"moov", b"mdat", b"moof"})
_MAX_PARTS = 100_000
"""A stranger's file may consist of eight-byte boxes; the walk ends long before they do."""

UNKNOWN_LENGTH = 0x7FFF_0000
"""Programs that write WAV into a pipe leave at least this, or 0, as the size of the data."""


def missing_bytes(file: BinaryIO, size: int) -> int:
    """Return how many bytes an mp4, Matroska or WAV file of `size` bytes lacks; 0 for whole ones and other formats."""
    file.seek(0)
    head = file.read(12)
    if head.startswith(EBML):
        ends = [end for name, end in _elements(file) if name == _SEGMENT]
    elif head[4:8] == b"ftyp":
        ends = [end for name, end in boxes(file) if name in _MOVIE_PARTS]
    elif head.startswith(b"RIFF"):
        ends = [end for name, end in _chunks(file) if name == b"data"][:1]
    else:
        ends = []
    file.seek(0)
    return max(0, *ends, size) - size


def boxes(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield name and end of the top-level boxes of ISO 14496-12."""
    position = 0
    for _ in range(_MAX_PARTS):
        head = _at(file, position, 16)
        if len(head) < 8:
            return
        size, name = struct.unpack(">I4s", head[:8])
        if size == 1 and len(head) == 16:
            size = int.from_bytes(head[8:], "big")
        # 0 stands for "to the end of the file"; less than a head cannot be.
        position += size if size >= 8 else 0
        yield name, position
        if size < 8:
            return


def _elements(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield id and end of the top-level elements of EBML (RFC 8794) with four-byte ids, up to one of unknown size."""
    position = 0
    for _ in range(_MAX_PARTS):
        head = _at(file, position, 12)
        if len(head) < 5 or not head[4]:
            return
        width = 9 - head[4].bit_length()
        most = (1 << 7 * width) - 1
        size = int.from_bytes(head[4 : 4 + width], "big") & most
        # All ones stand for "unknown": a live recording, or one that was never finished.
        if size == most:
            return
        position += 4 + width + size
        yield head[:4], position


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield name and end of the chunks of a RIFF file, up to one of unknown size."""
    position = 12
    for _ in range(_MAX_PARTS):
        head = _at(file, position, 8)
        if len(head) < 8:
            return
        name, size = struct.unpack("<4sI", head)
        if size >= UNKNOWN_LENGTH:
            return
        yield name, position + 8 + size
        position += 8 + size + size % 2


def _at(file: BinaryIO, position: int, count: int) -> bytes:
    # Seeking past what the platform's offsets hold is an error; no file is that long either.
    if position >= 1 << 62:
        return b""
    file.seek(position)
    return file.read(count)
