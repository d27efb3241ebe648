"""Waking the scheduler, from any process of the host: a byte in a FIFO. A lost byte costs a delay, never a task."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def ring(fifo: Path) -> None:
    """Wake the scheduler if one listens; it looks at all rows when it starts, so nobody listening is no error."""
    # ENXIO: nobody listens. ENOENT: nobody ever did. EAGAIN: so many rings wait already that one more says nothing.
    with suppress(OSError):
        bell = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(bell, b"!")
        finally:
            os.close(bell)


class Bell:
    """The scheduler's end of the FIFO."""

    def __init__(self, fifo: Path) -> None:
        if not fifo.is_fifo():
            fifo.unlink(missing_ok=True)  # a backup that was restored may have made it a plain file
            os.mkfifo(fifo, 0o600)
        # Open for both ways, so that it never reads as closed when the last ringer leaves.
        self._descriptor = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        return self._descriptor

    def hush(self) -> None:
        """Take all rings that came so far."""
        with suppress(BlockingIOError):
            while os.read(self._descriptor, 4096):
                pass

    def close(self) -> None:
        os.close(self._descriptor)
