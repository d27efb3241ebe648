"""Who may decode now: so many children at once in this process, of which one tenant leaves one to the others.

A file that takes as long as decoding may, two minutes by default, is easily made; without that share, two of them would
keep everyone else's media waiting.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class AllBusy(Exception):
    """No decoder became free in time."""


class Decoders:
    """Places for `most` decoders. With `shared`, no tenant has all of them, unless there is only one."""

    def __init__(self, most: int, *, shared: bool) -> None:
        self._most, self._each = most, max(1, most - 1) if shared else most
        self._changed = threading.Condition()
        self._busy = Counter[str]()

    @contextmanager
    def place(self, tenant: str, seconds: float) -> Iterator[None]:
        """Hold a place while the block runs. Raises AllBusy where none came free in so many seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_free(tenant), seconds):
                raise AllBusy
            self._busy[tenant] += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy -= Counter({tenant: 1})  # tenants that have none are forgotten
                self._changed.notify_all()

    def _is_free(self, tenant: str) -> bool:
        return self._busy.total() < self._most and self._busy[tenant] < self._each
