"""From what an engine left behind to the outcome of its task. Pure: the log's tail and the file's facts are values."""

from __future__ import annotations

import re
import signal
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
    """What lay in the output folder: how many videos, and of a single one its frames and length, or its defect."""

    videos: int
    frames: int | None = None
    seconds: float | None = None
    defect: str = ""


@dataclass(frozen=True, slots=True)
class Planned:
    """What the video should be: `frames`, or up to `extra_frames` more; with a `tolerance`, `seconds` give or take it.

    The length counts instead of the frames where an engine has a frame rate of its own.
    """

    frames: int
    extra_frames: int = 0
    seconds: float = 0.0
    tolerance: float = 0.0


DISK_FULL = "the disk is full: free some space and submit the task again"
_FILE_TOO_LARGE = "the engine wrote a file past its limit of {limit}: submit a shorter video, or raise that limit"
_TOLD_TOO_LARGE = r"\bEFBIG\b|File too large|File size limit exceeded|SIGXFSZ"
_MODEL_FILES = r"ckpt/|\.pth|\.safetensors|config\.json|umt5|wav2vec"
_LORA = r"(?i:\blora\b[^\n]*(?:error|invalid|corrupt|mismatch|not found)|error[^\n]*\blora\b)"
_CAUSES: tuple[tuple[str, ErrorCode, str], ...] = (
    (
        r"OutOfMemoryError|CUDA out of memory",
        ErrorCode.OOM,
        "the GPU ran out of memory: choose a smaller size, or a larger GPU",
    ),
    (
        r"No space left on device|ENOSPC|Disk quota exceeded",
        ErrorCode.DISK_FULL,
        DISK_FULL,
    ),
    (
        _TOLD_TOO_LARGE,
        ErrorCode.ENGINE_FAILED,
        _FILE_TOO_LARGE,
    ),
    (
        r"EADDRINUSE|[Aa]ddress already in use",
        ErrorCode.PORT_IN_USE,
        "a port that the engine needs is in use by another process on this host",
    ),
    (
        # The base network's shards are of the same format; what is read while merging is the LoRA's file.
        rf"Merging LoRA weights(?:(?!LoRA merged)[\s\S])*SafetensorError|{_LORA}",
        ErrorCode.LORA_INVALID,
        "the LoRA file cannot be used: fetch it anew and check its path",
    ),
    (
        rf"missing weights: |SafetensorError|(?:FileNotFoundError|OSError|RuntimeError)[^\n]*(?:{_MODEL_FILES})",
        ErrorCode.WEIGHTS_MISSING,
        "files of the model are missing or damaged: `make doctor` lists them",
    ),
    (
        r"nccl(?:System|UnhandledCuda|Internal)Error|NCCL error|DistBackendError|ProcessGroupNCCL[^\n]*timeout",
        ErrorCode.NCCL_ERROR,
        "the GPUs lost touch with each other (NCCL): try again, and look at the driver's log if it stays",
    ),
)
"""Texts of a log that tell a cause, the most telling first: what one rank dies of makes the others report NCCL, so that
is a cause only where no rank died of something else."""

_SEE_LOG = "its log may tell why, and another attempt may help"
_FALSE_SUCCESSES: tuple[tuple[str, ErrorCode, str], ...] = (
    (r"No space left on device|ENOSPC|Disk quota exceeded", ErrorCode.DISK_FULL, DISK_FULL),
    (_TOLD_TOO_LARGE, ErrorCode.ENGINE_OUTPUT_INVALID, _FILE_TOO_LARGE),
    (
        r"save_video failed",
        ErrorCode.ENGINE_OUTPUT_INVALID,
        "the engine could not save its video: the log names the error",
    ),
    (
        r"merge_video_audio failed",
        ErrorCode.ENGINE_OUTPUT_INVALID,
        "the engine could not merge the sound: look whether ffmpeg is in its environment",
    ),
)
"""What the log of an engine that claims success tells of a failure: Live Avatar goes on to its end after these. What
it could not save it cannot merge either."""

_RANK_ERROR = re.compile(r"^(?:\[\w+\]:)?\[rank\d+\]: (\w[\w.]*(?:Error|Exception)\b[^\r\n]*)", re.MULTILINE)
# torchrun's line on the rank that it saw fail first, or a row of its table; SIGTERM is torchrun's own.
_RANK_KILLED = re.compile(r"local_rank: (?P<rank>\d+)\)\n  exitcode  : -(?!15 )(?P<signal>\d+) \(pid")
# Of the process itself, and as a shell tells it of its child's.
_TOO_LARGE_STATUSES = (-signal.SIGXFSZ, 128 + signal.SIGXFSZ)
_ECHO = re.compile(r"Connection (?:closed|reset) by peer|NCCL")


def judge_exit(
    status: int,
    stopped: Stopped | None,
    limit_seconds: float,
    log_tail: str,
    disk_full: bool = False,
    file_bytes: int = 0,
) -> Failure | None:
    """Return why an engine failed that ended with `status` (negative: the signal), or None: look at its output.

    `file_bytes` is how large a file it might write (0: not limited by a setting).
    """
    if stopped is Stopped.TIMED_OUT:
        excerpt = excerpt_of(log_tail)
        return Failure(ErrorCode.TIMED_OUT, f"the engine ran for more than its {limit_seconds:g} s", excerpt)
    if stopped is Stopped.HUNG:
        text = f"the engine gave no sign of life for {limit_seconds:g} s and was stopped: the log ends where it hung"
        return Failure(ErrorCode.ENGINE_HUNG, text, excerpt_of(log_tail))
    if status == 0:
        return None
    if status in _TOO_LARGE_STATUSES:
        return Failure(ErrorCode.ENGINE_FAILED, _sentence(_FILE_TOO_LARGE, file_bytes), excerpt_of(log_tail))
    if disk_full:
        return Failure(ErrorCode.DISK_FULL, DISK_FULL, excerpt_of(log_tail))
    for pattern, code, sentence in _CAUSES:
        found = re.search(pattern, log_tail)
        if found and not (code is ErrorCode.NCCL_ERROR and _died_otherwise(log_tail)):
            return Failure(code, _sentence(sentence, file_bytes), _around(log_tail, found.end()))
    if status < 0:
        text = f"the engine was killed by {_signal_name(-status)}"
        return Failure(ErrorCode.ENGINE_FAILED, text, excerpt_of(log_tail))
    cause, excerpt = _cause(log_tail)
    text = f"the engine ended with status {status}" + (f": {cause}" if cause else "")
    return Failure(ErrorCode.ENGINE_FAILED, text, excerpt)


def _cause(log_tail: str) -> tuple[str, str]:
    """Return the line that names the error, and the lines that show it.

    Of several processes it is the last that is no echo of another's death, or else what torchrun says of a rank that
    a signal killed: behind both, torchrun's table would fill an excerpt of the end.
    """
    if named := _own_errors(log_tail):
        return _clean(named[-1][1])[:_LINE_CHARS], _around(log_tail, named[-1].start())
    if killed := _RANK_KILLED.search(log_tail):
        name = _signal_name(int(killed["signal"]))
        return f"process {killed['rank']} of it was killed by {name}", _around(log_tail, killed.end())
    lines = [line for line in excerpt_lines(log_tail) if line.strip("=- ")]  # not the rules of torchrun's table
    return (lines[-1].strip() if lines else ""), excerpt_of(log_tail)


def _own_errors(log_tail: str) -> list[re.Match[str]]:
    return [found for found in _RANK_ERROR.finditer(log_tail) if not _ECHO.search(found[1])]


def _died_otherwise(log_tail: str) -> bool:
    """Say whether a rank died of something of its own, of which what others say of NCCL is the echo."""
    return bool(_own_errors(log_tail) or _RANK_KILLED.search(log_tail))


def _around(log_tail: str, position: int) -> str:
    """Return the lines up to the one at `position` and a few after it, so that the excerpt shows the cause."""
    after = log_tail.find("\n", position)
    for _ in range(3):
        after = log_tail.find("\n", after + 1) if after >= 0 else -1
    return excerpt_of(log_tail if after < 0 else log_tail[:after])


def _sentence(cause: str, file_bytes: int) -> str:
    limit = f"{file_bytes} bytes (runner.limits.file_bytes)" if file_bytes else "as many bytes as the service may write"
    return cause.format(limit=limit)


def judge_output(output: Output, planned: Planned, log_tail: str, file_bytes: int = 0) -> Failure | None:
    """Return what is wrong with the output of an engine that claims success, or None when the video is as planned."""
    reason = _defect(output, planned)
    if not reason:
        return None
    for pattern, code, advice in _FALSE_SUCCESSES:
        if found := re.search(pattern, log_tail):
            return Failure(code, f"{reason}; {_sentence(advice, file_bytes)}", _around(log_tail, found.start()))
    return Failure(ErrorCode.ENGINE_OUTPUT_INVALID, f"{reason}; {_SEE_LOG}", excerpt_of(log_tail))


def _defect(output: Output, planned: Planned) -> str:
    if output.videos != 1:
        return f"the engine left {output.videos or 'no'} video{'s' if output.videos > 1 else ''} where one was expected"
    if output.defect:
        return f"the engine's video cannot be used: {output.defect}"
    if planned.tolerance > 0:
        seconds = output.seconds or 0.0
        fits = abs(seconds - planned.seconds) <= planned.tolerance
        return "" if fits else f"the engine's video is {seconds:.2f} s long where {planned.seconds:.2f} s were planned"
    if output.frames is None or not planned.frames <= output.frames <= planned.frames + planned.extra_frames:
        return f"the engine's video has {output.frames} frames where {planned.frames} were planned"
    return ""


_FOLDERS = re.compile(r"(?<![\w.:/<>-])/(?:[^\s/'\":,;()<>|]+/)+")


def redact(text: str) -> str:
    """Leave of each absolute path its last part: a reader needs the file's name, not how the server is laid out."""
    return _FOLDERS.sub("…/", text)


def excerpt_of(log_tail: str) -> str:
    """Return the last lines of a log, without terminal control characters and with bounded lines."""
    return "\n".join(excerpt_lines(log_tail)[-EXCERPT_LINES:])


def excerpt_lines(log_tail: str) -> list[str]:
    """Return the lines of a log that hold anything, cleaned and bounded."""
    return [_clean(line)[:_LINE_CHARS] for line in re.split(r"[\r\n]+", log_tail) if line.strip()]


def _clean(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]", "", line).rstrip()


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (often: the machine ran out of memory)" if number == signal.SIGKILL else name
