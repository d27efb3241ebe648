"""Work that of all processes of a host one does: whoever holds the lock of a file; the others wait to take over.

The lock ends with its holder, so that two never work at once. A holder that was stopped (SIGSTOP) holds it all the
same: gunicorn's master kills such a worker after its timeout, but where the master was killed too, nobody does. So who
waits kills a holder that was seen stopped twice; never one that only is slow, or who only reads the file.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from utils.process import stopped_lockers, try_lock

_RETRY_SECONDS = 1.0
_CHECK_SECONDS = 20.0
"""From one look at the holder to the next. A terminal's `fg` continues all that its Ctrl-Z stopped, but not at once."""


def take_turns(
    lock_file: Path,
    stopping: threading.Event,
    takeover_seconds: float,
    work: Callable[[int], None],
    log: logging.Logger,
) -> None:
    """Do `work` with the lock's descriptor whenever this process holds it, until `stopping`; whatever it raises.

    `takeover_seconds` is how often a process looks whether the holder has gone.
    """
    guard = Guard(lock_file, log)
    while not stopping.is_set():
        pause = _RETRY_SECONDS
        try:
            lock = try_lock(lock_file)
            if lock is None:
                pause = takeover_seconds
                guard.look()
            else:
                try:
                    work(lock)
                finally:
                    os.close(lock)
        except Exception:
            # Whatever it was, the thread must not end: nobody would notice that it has.
            log.exception("this process cannot do its work as the one of its host, trying again")
        stopping.wait(pause)


class Guard:
    """Looks after the holder for one who waits."""

    def __init__(self, lock_file: Path, log: logging.Logger) -> None:
        self._lock_file, self._log = lock_file, log
        self._stopped: set[psutil.Process] = set()
        self._next_look = 0.0

    def look(self) -> None:
        """Kill who holds the lock and was stopped already at the look before. To be called often; it looks seldom."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _CHECK_SECONDS
        found = stopped_lockers(self._lock_file)
        for process in found & self._stopped:
            self._log.error("process %d holds %s, is stopped, and is killed", process.pid, self._lock_file.name)
            with suppress(psutil.Error):
                process.kill()
        self._stopped = found
