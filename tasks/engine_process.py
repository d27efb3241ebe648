"""One engine at work: started, listened to, stopped.

The engine writes its log straight into a file, so that no reader's death can stop it, and its progress into a pipe of
lines. Its end is seen through SIGCHLD's wake-up descriptor; nothing here sleeps but who has killed what it left.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.engine_limits import NO_LIMITS, EngineLimits
from tasks.model import Note, Phase
from tasks.spec import AttemptSpec
from utils.process import die_with_parent, join_cgroup, kill_all

log = logging.getLogger("engine")

_LINE_LIMIT = 64 * 1024
_SWEEP_SECONDS = 10.0
_AGAIN_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """One `@progress` line: `fraction` (0 to 1) of `phase` is done."""

    phase: Phase
    fraction: float


class EngineProcess:
    """A started engine.

    Must be made by the main thread of a process that lives as long as the engine may: the engine gets SIGTERM when
    that thread ends. `limits` must be within this process's own.
    """

    def __init__(
        self, argv: Sequence[str], folder: Path, log: Path, environ: Mapping[str, str], inherit: Sequence[int],
        cgroup: Path | None = None, limits: EngineLimits = NO_LIMITS,
    ) -> None:  # fmt: skip
        def prepare() -> None:
            die_with_parent()
            limits.apply()
            if cgroup is not None:
                with suppress(OSError):  # then it is found by its parents and its marks only
                    join_cgroup(cgroup)

        read_end, write_end = os.pipe2(os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        os.set_blocking(read_end, False)
        self.channel = read_end
        self.closed = False  # whether every process that could say something has closed the channel
        self._pending = b""
        # Kept open, and read through this descriptor: the engine may remove or rename the file.
        self._log = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            self._process = subprocess.Popen(
                list(argv), cwd=folder, env={**environ, "AVATAR_PROGRESS_FD": str(write_end)},
                stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, pass_fds=(write_end, *inherit),
                start_new_session=True, preexec_fn=prepare,
            )  # fmt: skip
        finally:
            os.close(write_end)

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status once it has ended: negative is the signal that killed it."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask the process that the script exec'd into to stop."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    def log_bytes(self) -> int:
        return os.fstat(self._log).st_size

    def log_tail(self, most: int) -> str:
        """Return up to `most` last bytes of the log, also where the engine removed the file."""
        return os.pread(self._log, most, max(0, self.log_bytes() - most)).decode("utf-8", "replace")

    def read(self) -> list[Progress | Note]:
        """Return what the engine has said since the last call; lines that make no sense are passed over."""
        while True:
            try:
                chunk = os.read(self.channel, _LINE_LIMIT)
            except BlockingIOError:
                break
            if not chunk:
                self.closed = True
                break
            self._pending += chunk
            if len(self._pending) > 16 * _LINE_LIMIT:
                break
        *lines, self._pending = self._pending.split(b"\n")
        if len(self._pending) > _LINE_LIMIT:
            self._pending = b""
        return [said for said in map(parse_line, lines) if said is not None]


def parse_line(line: bytes) -> Progress | Note | None:
    """Return what one line of the progress channel says, None for any that is not of the contract."""
    word, _, rest = line.strip().partition(b" ")
    if word not in (b"@progress", b"@note"):
        return None
    try:
        said = json.loads(rest)
        if not isinstance(said, dict):
            return None
        return _progress(said) if word == b"@progress" else Note(_text(said["code"], 64), _text(said["message"], 500))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _progress(said: dict[str, Any]) -> Progress:
    done, total = float(said.get("done", 0)), float(said.get("total", 0))
    if not (math.isfinite(done) and math.isfinite(total)):
        raise ValueError("expected finite numbers")
    fraction = done / total if total > 0 else 0.0
    return Progress(Phase(said["phase"]), min(max(fraction, 0.0), 1.0))


def _text(value: object, longest: int) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("expected a printable text")  # lone surrogates and control characters are not
    return value[:longest]


def kill_engine(folder: Path, marks: Mapping[str, str]) -> bool:
    """SIGKILL all that the engine of an attempt, below this process, has started; say whether none is left.

    Nor is it said, after a pause, where this process has not what it takes to look, for that must cost no video.
    """
    try:
        cgroup = AttemptSpec.cgroup(folder)
        return kill_all(below=os.getpid(), marks=dict(marks), deadline=_SWEEP_SECONDS, cgroup=cgroup)
    except OSError as error:
        log.error("the engine's processes cannot be looked for: %s", error.strerror)
        threading.Event().wait(_AGAIN_SECONDS)
        return False
