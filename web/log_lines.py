"""An engine's log as lines of text, for whoever shows it as it grows."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from utils.file_handler import PathRefused, open_under
from web.tasks import whole_characters

PIECE_BYTES = 2**16
"""Most bytes of a log in one piece. A longer line comes in several, each as a line."""

_LINE_END = re.compile("\r\n|\n|\r")
"""A bar of progress is drawn anew after a CR: each state of it is a line."""

_UNSHOWN = re.compile("\x1b\\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Colours and cursor movements of a terminal, and control characters but tab."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Lines without their ends, the byte behind them, and the bytes of the whole log when they were read."""

    lines: tuple[str, ...]
    end: int
    size: int


def read_lines(path: Path, offset: int, complete: bool) -> Piece:
    """Return the whole lines of a log from byte `offset` on, up to PIECE_BYTES; none where there is no log (yet).

    What has no line's end is left for the next time, but where the log is `complete`. A log that is shorter than
    `offset` is read from its beginning.
    """
    try:
        with open_under(path.parent, path.name) as file:
            size = os.fstat(file.fileno()).st_size
            start = offset if offset <= size else 0
            file.seek(start)
            raw = file.read(PIECE_BYTES)
    except PathRefused:
        return Piece((), offset, 0)
    size = max(size, start + len(raw))
    text = raw[: _end_of_lines(raw, complete and start + len(raw) == size)]
    return Piece(_lines(text), start + len(text), size)


def _end_of_lines(raw: bytes, complete: bool) -> int:
    if complete:
        return len(raw)
    # A CR at the end may be the first half of a CRLF.
    end = max(raw.rfind(b"\n"), raw.rfind(b"\r", 0, -1)) + 1
    return end or (len(whole_characters(raw)) if len(raw) == PIECE_BYTES else 0)


def _lines(text: bytes) -> tuple[str, ...]:
    lines = _LINE_END.split(text.decode("utf-8", "replace"))
    if not lines[-1]:
        lines.pop()
    return tuple(_UNSHOWN.sub("", line) for line in lines)
