"""Long polls: many requests that wait for a change, one thread that looks for one.

A runner, or another web process, changes a row; SQLite tells of it by a counter (`Store.changes`). One thread in each
web process reads it every 50 ms while anyone waits, and wakes all waiters, who look whether the change was theirs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

log = logging.getLogger("web")

T = TypeVar("T")

LOOK_SECONDS = 0.05
RECOVERY_SECONDS = 1.0
"""Pause after the counter could not be read."""


class Waiting:
    """Holds up to `max_waiters` requests. The thread starts with the first of them."""

    def __init__(self, changes: Callable[[], Callable[[], bool]], max_waiters: int) -> None:
        self._changes, self._max_waiters = changes, max_waiters
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._waiters = 0
        self._changed = 0
        self._stopped = False
        self._closing: Callable[[], bool] = lambda: False

    def until(self, look: Callable[[], T], enough: Callable[[T], bool], seconds: float) -> tuple[T, bool]:
        """Return what `look` sees once that is `enough`, or what it saw last when `seconds` are over.

        The second value is true where the answer came at once because too many wait already. Whatever `look` raises
        ends the wait.
        """
        deadline = time.monotonic() + seconds
        with self._a_place() as admitted:
            while True:
                before = self._changed  # read before looking, so that no change falls between look and wait
                seen = look()
                if not admitted or enough(seen) or not self._next_change(before, deadline):
                    return seen, not admitted

    def stop_when(self, closing: Callable[[], bool]) -> None:
        """Stop by itself once `closing` is true: a server that shuts down waits for its requests, and so for ours."""
        self._closing = closing

    def stop(self) -> None:
        """End all waits, and let later ones end at once."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()

    @contextmanager
    def _a_place(self) -> Iterator[bool]:
        with self._condition:
            admitted = self._waiters < self._max_waiters
            self._waiters += admitted
            if admitted:
                self._start()
                self._condition.notify_all()
        try:
            yield admitted
        finally:
            with self._condition:
                self._waiters -= admitted

    def _next_change(self, before: int, deadline: float) -> bool:
        """Wait for a change after number `before`; return False when there is none in time."""
        with self._condition:
            left = deadline - time.monotonic()
            self._condition.wait_for(lambda: self._stopped or self._changed != before, max(left, 0.0))
            return not self._stopped and self._changed != before

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._watch, name="changes", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        changed: Callable[[], bool] | None = None
        while self._wanted():
            try:
                changed = changed or self._changes()
                news, pause = changed(), LOOK_SECONDS
            except Exception:
                # Without its counter a waiter sees a change late, when it looks by itself: better than never.
                log.exception("changes cannot be seen")
                changed, news, pause = None, True, RECOVERY_SECONDS
            if news:
                with self._condition:
                    self._changed += 1
                    self._condition.notify_all()
            time.sleep(pause)

    def _wanted(self) -> bool:
        """Wait until anyone waits; return False when it is over."""
        if self._closing():
            self.stop()
        with self._condition:
            self._condition.wait_for(lambda: self._stopped or self._waiters > 0)
            return not self._stopped
