"""Work that of all processes of a host one does: whoever holds the lock of a file; the others wait to take over."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from utils.process import try_lock

_RETRY_SECONDS = 1.0


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
    while not stopping.is_set():
        pause = _RETRY_SECONDS
        try:
            lock = try_lock(lock_file)
            if lock is None:
                pause = takeover_seconds
            else:
                try:
                    work(lock)
                finally:
                    os.close(lock)
        except Exception:
            # Whatever it was, the thread must not end: nobody would notice that it has.
            log.exception("this process cannot do its work as the one of its host, trying again")
        stopping.wait(pause)
