"""Places for what takes long and holds a thread: fetching and decoding the media of a request.

A URL that answers slowly and a file that takes as long as decoding may are easily made. So that a tenant who sends many
of them neither takes all decoders nor all of the server's threads, no tenant has all places, and few may wait for one.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class AllBusy(Exception):
    """No place became free in time, or too many wait already."""


class Places:
    """So many places in this process, and so many requests that may wait for one; `each`: at most for one tenant."""

    def __init__(self, most: int, each: int, waiting: int = 0, each_waiting: int = 0) -> None:
        self._most, self._each, self._waiting, self._each_waiting = most, each, waiting, each_waiting
        self._changed = threading.Condition()
        self._taken, self._wait = Counter[str](), Counter[str]()

    @contextmanager
    def place(self, tenant: str, seconds: float) -> Iterator[None]:
        """Hold a place while the block runs. Raises AllBusy where none came free in so many seconds."""
        with self._changed:
            if not self._is_free(tenant) and not self._comes_free(tenant, seconds):
                raise AllBusy
            self._taken[tenant] += 1
        try:
            yield
        finally:
            with self._changed:
                self._taken -= Counter({tenant: 1})  # tenants that have none are forgotten
                self._changed.notify_all()

    def _is_free(self, tenant: str) -> bool:
        return self._taken.total() < self._most and self._taken[tenant] < self._each

    def _comes_free(self, tenant: str, seconds: float) -> bool:
        if self._wait.total() >= self._waiting or self._wait[tenant] >= self._each_waiting:
            return False
        self._wait[tenant] += 1
        try:
            return self._changed.wait_for(lambda: self._is_free(tenant), seconds)
        finally:
            self._wait -= Counter({tenant: 1})
