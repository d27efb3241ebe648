"""Lines that tell the runner how far the video is, and the user's log what was done.

The channel is a pipe whose reader may be slow or gone. The video matters more than the report on it: a line that
would block is dropped, and a broken pipe ends the reporting, not the rendering.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Mapping

INTERVAL = 0.3
"""Seconds between two reports of one phase."""


class Progress:
    """Reports on the file descriptor `fd`, or on stdout when it is None."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._phase = ""
        self._last = 0.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Progress:
        """Take the descriptor that AVATAR_PROGRESS_FD names; without the variable, use stdout.

        Raises ValueError when the variable is set and is not a whole number.
        """
        value = environment.get("AVATAR_PROGRESS_FD")
        return cls(int(value) if value else None)

    def phase(self, name: str, done: int, total: int) -> None:
        """Report `done` of `total` frames: at once when the phase is new, else at most a few times a second."""
        now = time.monotonic()
        if name == self._phase and now - self._last < INTERVAL:
            return
        self._phase, self._last = name, now
        self._send("@progress", {"phase": name, "done": done, "total": total})

    def note(self, code: str, message: str) -> None:
        """Tell what only the engine can know about the result."""
        self._send("@note", {"code": code, "message": message})

    def log(self, text: str) -> None:
        """Write one line for the user who reads the task's log."""
        try:
            print(text, flush=True)
        except OSError:
            self._silence_stdout()

    def _send(self, tag: str, body: dict[str, object]) -> None:
        line = f"{tag} {json.dumps(body)}"
        if self._fd is None:
            self.log(line)
            return
        try:
            # A pipe is writable when a whole short line fits, so a line is sent entire or not at all.
            if select.select([], [self._fd], [], 0)[1]:
                os.write(self._fd, line.encode() + b"\n")
        except (OSError, ValueError):
            self._fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    @staticmethod
    def _silence_stdout() -> None:
        # Else the interpreter flushes the broken stdout once more at exit and turns success into exit code 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
