"""From what an engine left behind to the outcome of its task. Pure: the log's tail and the file's facts are values."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tasks.model import ErrorCode, Failure

EXCERPT_LINES = 20
_LINE_CHARS = 300


class Stopped(Enum):
    """Why the runner stopped an engine that had not ended by itself."""

    CANCELLED = "cancelled"
    TIMED_OUT = "timed out"
    HUNG = "hung"
    INTERRUPTED = "interrupted"  # the runner itself was told to stop
    LOST = "lost"  # another writer owns the task now


@dataclass(frozen=True, slots=True)
class Output:
    """What lay in the output folder: how many videos, and of a single one its frames, or why it cannot be read."""

    videos: int
    frames: int | None = None
    defect: str = ""


def judge_exit(status: int, stopped: Stopped | None, limit_seconds: float, log_tail: str) -> Failure | None:
    """Return why an engine failed that ended with `status` (negative: the signal), or None: look at its output."""
    excerpt = excerpt_of(log_tail)
    if stopped is Stopped.TIMED_OUT:
        return Failure(ErrorCode.TIMED_OUT, f"the engine ran for more than its {limit_seconds:g} s", excerpt)
    if stopped is Stopped.HUNG:
        return Failure(ErrorCode.ENGINE_HUNG, f"the engine gave no sign of life for {limit_seconds:g} s", excerpt)
    if status == 0:
        return None
    if re.search(r"No space left on device|ENOSPC", log_tail):
        return Failure(ErrorCode.DISK_FULL, "the disk is full: free some space and submit the task again", excerpt)
    if status < 0:
        return Failure(ErrorCode.ENGINE_FAILED, f"the engine was killed by {_signal_name(-status)}", excerpt)
    cause = _last_line(log_tail)
    text = f"the engine ended with status {status}" + (f": {cause}" if cause else "")
    return Failure(ErrorCode.ENGINE_FAILED, text, excerpt)


def judge_output(output: Output, planned: int, extra: int, log_tail: str) -> Failure | None:
    """Return what is wrong with the output of an engine that claims success, or None when the video is as planned."""
    reason = _defect(output, planned, extra)
    return Failure(ErrorCode.ENGINE_OUTPUT_INVALID, reason, excerpt_of(log_tail)) if reason else None


def _defect(output: Output, planned: int, extra: int) -> str:
    if output.videos != 1:
        return f"the engine left {output.videos or 'no'} video{'s' if output.videos > 1 else ''} where one was expected"
    if output.defect:
        return f"the engine's video cannot be used: {output.defect}"
    if output.frames is None or not planned <= output.frames <= planned + extra:
        return f"the engine's video has {output.frames} frames where {planned} were planned"
    return ""


def redact(text: str, secrets: Sequence[tuple[str, str]]) -> str:
    """Replace the server's own paths by what they are to a reader; the longest first, for one may begin another."""
    for path, name in sorted(secrets, key=lambda pair: -len(pair[0])):
        text = text.replace(path, name)
    return text


def excerpt_of(log_tail: str) -> str:
    """Return the last lines of a log, without terminal control characters and with bounded lines."""
    lines = [_clean(line)[:_LINE_CHARS] for line in re.split(r"[\r\n]+", log_tail) if line.strip()]
    return "\n".join(lines[-EXCERPT_LINES:])


def _last_line(log_tail: str) -> str:
    lines = excerpt_of(log_tail).splitlines()
    return lines[-1].strip() if lines else ""


def _clean(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]", "", line).rstrip()


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (often: the machine ran out of memory)" if number == signal.SIGKILL else name
