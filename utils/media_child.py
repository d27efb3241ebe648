"""The process that touches hostile bytes: it limits itself, then decodes and re-encodes, then is gone.

Started by `utils.media` with one JSON argument, `{"limits": {…}, "jobs": [{"kind", "source", "destination"}, …]}`;
source and destination are descriptors it inherited. On stdout it says `{"ready": true}` once it is limited, then one
line a job, in order: `{"facts": […]}`, `{"refused": "one line for the user"}` or `{"errno": n}` where storage failed.
It may die at any moment; the parent then reads what was said so far.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from utils.media_kinds import Kind, MediaError, MediaLimits, choose_decoder

Decoder = Callable[[BinaryIO, BinaryIO, str, MediaLimits], tuple[float, ...]]

PR_SET_NO_NEW_PRIVS = 38
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
WAV_BYTES_A_SECOND = 48_000 * 2 * 2
PNG_BYTES_A_PIXEL = 4
NICENESS = 5
"""Above the service's own, as that of engines is by default: who asks for a task waits for no decoder."""

NAMES = {"image": "image", "audio": "recording"}


def main(argument: str) -> None:
    """Do the jobs that `argument` lists."""
    order = json.loads(argument)
    limits = MediaLimits(**order["limits"])
    _limit(limits)
    decoders = {kind: _load(kind) for kind in sorted({job["kind"] for job in order["jobs"]})}
    _close_doors()
    _say({"ready": True})
    for job in order["jobs"]:
        _say(_do(job, decoders[job["kind"]], limits))


def _limit(limits: MediaLimits) -> None:
    """Bound time, memory and what may be written, before anything else happens."""
    cpu = math.ceil(limits.cpu_seconds)
    largest = int(limits.max_audio_seconds * WAV_BYTES_A_SECOND) + limits.max_image_pixels * PNG_BYTES_A_PIXEL + 2**20
    for what, soft, hard in (
        (resource.RLIMIT_AS, limits.memory_bytes, limits.memory_bytes),
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_FSIZE, largest, largest),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        _lower(what, soft, hard)
    os.nice(NICENESS)
    # For the case that the parent dies and nobody kills this process at the deadline. The default action ends it.
    signal.setitimer(signal.ITIMER_REAL, limits.wall_seconds + 1)


def _lower(what: int, soft: int, hard: int) -> None:
    had = resource.getrlimit(what)[1]
    most = hard if had == resource.RLIM_INFINITY else min(hard, had)
    try:
        resource.setrlimit(what, (min(soft, most), most))
    except (ValueError, OSError):
        # macOS knows no limit of address space; the others are set everywhere.
        if sys.platform == "linux":
            raise


def _close_doors() -> None:
    """From here on: no new file, socket or process, and no privileges from an executable."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _lower(resource.RLIMIT_NOFILE, 0, 0)
    _lower(resource.RLIMIT_NPROC, 0, 0)


def _load(kind: Kind) -> Decoder:
    """Import only what the jobs need: Pillow and FFmpeg each take a tenth of a second."""
    if kind == "image":
        from utils.media_image import normalise_image

        return normalise_image
    from utils.media_audio import normalise_audio

    return normalise_audio


def _do(job: dict[str, Any], decoder: Decoder, limits: MediaLimits) -> dict[str, object]:
    damaged = f"the {NAMES[job['kind']]} is cut off or damaged"
    try:
        return {"facts": _convert(job, decoder, limits)}
    except MediaError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"refused": f"the {NAMES[job['kind']]} needs too much memory to decode"}
    except OSError as error:
        if error.errno in STORAGE:
            return {"errno": error.errno}
        return {"refused": damaged, "cause": repr(error)}
    except Exception as error:
        return {"refused": damaged, "cause": repr(error)}


def _convert(job: dict[str, Any], decoder: Decoder, limits: MediaLimits) -> list[float]:
    size = os.fstat(job["source"]).st_size
    name = choose_decoder(job["kind"], size, lambda count, offset: os.pread(job["source"], count, offset))
    with (
        os.fdopen(job["source"], "rb", closefd=False) as source,
        os.fdopen(job["destination"], "wb", closefd=False) as destination,
    ):
        facts = decoder(cast(BinaryIO, source), cast(BinaryIO, destination), name, limits)
        destination.flush()
        os.fsync(destination.fileno())
    return list(facts)


def _say(message: dict[str, object]) -> None:
    os.write(sys.stdout.fileno(), json.dumps(message).encode() + b"\n")
