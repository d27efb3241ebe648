"""Images and recordings of unknown origin, made canonical: 8-bit RGB PNG and 16-bit PCM WAV.

Engines, and FFmpeg inside them, only ever see files that the service has written itself, for a hostile file aims at
the program that reads it: a playlist named `.wav` makes an engine read another tenant's recording, a small picture
unpacks to gigabytes. So all decoding happens in a child process that limits itself (`utils.media_child`), gets open
descriptors and no names, and is killed with everything below it when its time is up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from utils.file_handler import FULL, StorageFull, created, open_under, sync
from utils.media_kinds import Kind, MediaError, MediaLimits

__all__ = [
    "AudioFacts", "ImageFacts", "MediaError", "MediaJob", "MediaLimits", "MediaUnavailable", "normalise", "read_facts",
]  # fmt: skip

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from utils.media_child import main; main(sys.argv[2])"
"""Run with -I, so that neither the environment nor the working folder chooses what is imported."""

ENVIRONMENT = {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
MAX_REPLY_BYTES = 1 << 16
TOO_LONG = "the {} takes too long to decode"
DAMAGED = "the {} is cut off or damaged"
_DEATHS = {-signal.SIGKILL: "the {} needs too much time or memory to decode", -signal.SIGXCPU: TOO_LONG,
           -signal.SIGALRM: TOO_LONG}  # fmt: skip
_NAMES: dict[Kind, str] = {"image": "image", "audio": "recording"}


class MediaUnavailable(RuntimeError):
    """The child process could not be started or did not get ready: the service's fault, not the file's."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """A canonical picture's size in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """A canonical recording: `samples` per channel at `sample_rate` a second, `seconds` long."""

    seconds: float
    sample_rate: int
    channels: int
    samples: int


@dataclass(frozen=True, slots=True)
class MediaJob:
    """Make `source`, a regular file the service has stored, into the new file `destination`."""

    kind: Kind
    source: Path
    destination: Path


Outcome = ImageFacts | AudioFacts | MediaError


def normalise(jobs: Sequence[MediaJob], limits: MediaLimits) -> list[Outcome]:
    """Decode and re-encode the media of one request in one child process; return an outcome for each job, in order.

    A medium that is refused is returned as a MediaError and leaves no file. Raises MediaUnavailable, StorageFull,
    FileExistsError; then no destination is left.
    """
    with contextlib.ExitStack() as files:
        pairs = [
            (files.enter_context(open_under(job.source.parent, job.source.name)),
             files.enter_context(created(job.destination)))
            for job in jobs
        ]  # fmt: skip
        outcomes = _decode_all(jobs, pairs, limits)
    for job, outcome in zip(jobs, outcomes, strict=True):
        if isinstance(outcome, MediaError):
            job.destination.unlink(missing_ok=True)
        else:
            sync(job.destination.parent)
    return outcomes


def read_facts(path: Path, kind: Kind) -> ImageFacts | AudioFacts:
    """Read the header of a canonical file. Raises MediaError for any other file; nothing is decoded."""
    try:
        return _png_facts(path) if kind == "image" else _wav_facts(path)
    except (wave.Error, EOFError, ValueError):
        raise MediaError(f"this is not a stored {_NAMES[kind]}") from None


def _png_facts(path: Path) -> ImageFacts:
    with path.open("rb") as file:
        head = file.read(26)
    # Signature, IHDR, then width, height, depth 8 and colour type 2 (RGB).
    if len(head) < 26 or not head.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR") or head[24:] != b"\x08\x02":
        raise ValueError
    return ImageFacts(int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"))


def _wav_facts(path: Path) -> AudioFacts:
    with wave.open(str(path), "rb") as file:
        rate, channels, samples = file.getframerate(), file.getnchannels(), file.getnframes()
        if file.getsampwidth() != 2 or not rate:
            raise ValueError
    return AudioFacts(samples / rate, rate, channels, samples)


# -- the child -----------------------------------------------------------------------------------------------------


def _decode_all(
    jobs: Sequence[MediaJob], pairs: Sequence[tuple[BinaryIO, BinaryIO]], limits: MediaLimits
) -> list[Outcome]:
    """Give the jobs to a child; when one kills it, go on with the jobs behind that one."""
    deadline = time.monotonic() + limits.wall_seconds
    outcomes: list[Outcome] = []
    while len(outcomes) < len(jobs):
        rest = slice(len(outcomes), None)
        if time.monotonic() >= deadline:
            outcomes += [MediaError(TOO_LONG.format(_NAMES[job.kind])) for job in jobs[rest]]
            break
        replies, status = _run_child(jobs[rest], pairs[rest], limits, deadline)
        outcomes += [_outcome(job, reply) for job, reply in zip(jobs[rest], replies, strict=False)]
        if len(outcomes) < len(jobs):
            name = _NAMES[jobs[len(outcomes)].kind]
            log.warning("the media child died with status %d on a %s", status, name)
            outcomes.append(MediaError(_DEATHS.get(status, DAMAGED).format(name)))
    return outcomes


def _outcome(job: MediaJob, reply: dict[str, Any]) -> Outcome:
    if "errno" in reply:
        raise StorageFull if reply["errno"] in FULL else OSError(reply["errno"], os.strerror(reply["errno"]))
    if "refused" in reply:
        if "cause" in reply:
            log.info("a %s was refused: %s", _NAMES[job.kind], reply["cause"])
        return MediaError(reply["refused"])
    return ImageFacts(*reply["facts"]) if job.kind == "image" else AudioFacts(*reply["facts"])


def _run_child(
    jobs: Sequence[MediaJob], pairs: Sequence[tuple[BinaryIO, BinaryIO]], limits: MediaLimits, deadline: float
) -> tuple[list[dict[str, Any]], int]:
    """Return what the child said of each job it finished, and its exit status (negative: the signal)."""
    order = {
        "limits": dataclasses.asdict(limits),
        "jobs": [
            {"kind": job.kind, "source": source.fileno(), "destination": destination.fileno()}
            for job, (source, destination) in zip(jobs, pairs, strict=True)
        ],
    }
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", BOOT, str(ROOT), json.dumps(order)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd="/",
        pass_fds=[file.fileno() for pair in pairs for file in pair], start_new_session=True,
    )  # fmt: skip
    with child:
        try:
            said = _read_until_end(child, deadline)
        finally:
            # Before it is waited for: until then its number, and its group's, cannot belong to anyone else.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            status = child.wait()
    replies = [json.loads(line) for line in said.split(b"\n")[:-1]]
    if not replies:
        raise MediaUnavailable(f"the media child did not start (status {status})")
    return replies[1:], status


def _read_until_end(child: subprocess.Popen[bytes], deadline: float) -> bytes:
    """Read the child's stdout to its end, at most to the deadline and MAX_REPLY_BYTES."""
    assert child.stdout is not None  # noqa: S101 - Popen was told to make the pipe
    said = b""
    poll = select.poll()
    poll.register(child.stdout, select.POLLIN)
    while len(said) < MAX_REPLY_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            break
        piece = os.read(child.stdout.fileno(), MAX_REPLY_BYTES)
        if not piece:
            break
        said += piece
    return said
