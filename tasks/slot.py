"""Taking the locks of an attempt's place, whose last user may still be on the way out.

Whoever waits here has no engine yet but a task all the same: it looks at the row, for a cancel or the loss of its
attempt, as often as it will once its engine runs, and shows that it lives.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from tasks.model import Status
from tasks.spec import BEAT_FILE, AttemptSpec
from tasks.store import Store
from utils.process import try_lock

log = logging.getLogger("runner")

WAIT_SECONDS = 60.0
_RETRY_SECONDS = 0.02
"""flock has no wait with a deadline."""

_BUSY_SECONDS = 0.5


def take(spec: AttemptSpec, url: str) -> list[int] | None:
    """Return descriptors that hold the slot, or each of its GPUs, once no other process does.

    None, and nothing held, where that takes too long or the task no longer wants it: its row tells which.
    """
    paths, locks = [Path(path) for path in spec.slot_locks], list[int]()
    if _take_free(paths, locks):  # as nearly always: then the engine starts before the database is asked for anything
        return locks
    if _wait(spec, url, paths, locks):
        return locks
    for lock in locks:
        os.close(lock)
    return None


def _take_free(paths: Sequence[Path], locks: list[int]) -> bool:
    """Add to `locks` one after the other; say whether all are held.

    The paths are in one order for all runners, so that two of them never wait for each other.
    """
    for path in paths[len(locks) :]:
        lock = try_lock(path)
        if lock is None:
            return False
        locks.append(lock)
    return True


def _wait(spec: AttemptSpec, url: str, paths: Sequence[Path], locks: list[int]) -> bool:
    store = Store(url, Path(spec.lock_folder), busy_seconds=_BUSY_SECONDS, prepare=False)
    ends = time.monotonic() + WAIT_SECONDS
    next_look = 0.0
    try:
        while not _take_free(paths, locks):
            now = time.monotonic()
            if now >= ends:
                return False
            if now >= next_look:
                next_look = now + spec.poll_seconds
                if not _is_wanted(spec, store):
                    return False
                with suppress(OSError):
                    os.utime(Path(spec.folder) / BEAT_FILE)
            time.sleep(_RETRY_SECONDS)
        return True
    finally:
        store.close()


def _is_wanted(spec: AttemptSpec, store: Store) -> bool:
    """Say whether the row wants this attempt still; where the database does not answer, that it does."""
    try:
        task = store.get(spec.task_id)
    except DBAPIError as error:
        log.warning("the database does not answer, going on: %s", error.orig)
        return True
    if task is None or task.cancel_requested:
        return False
    return task.status is Status.PROCESSING and task.attempt == spec.attempt
