"""Numbers of requests that all web workers add to, and any of them can tell.

They lie in memory that gunicorn's master shares with its workers: each worker has a seat, a row of numbers that it
alone writes, and a number is the sum of its column. A worker that dies leaves its row to the one that gets its seat, so
nothing that was counted is lost, whatever killed it; what was open in it is open no more.

Not prometheus_client's files for several processes: those grow with each worker that ever was, and a worker that writes
into one on a full disk is killed by SIGBUS.
"""

from __future__ import annotations

import mmap
import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from http import HTTPStatus

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of requests' durations in seconds; beyond the last is infinity."""

OTHER = "other"
METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", OTHER)
STATUSES = (*(str(status.value) for status in HTTPStatus), OTHER)
"""Whatever else a client sends or a handler answers counts as the last one: the number of series is fixed."""

SEATS = 128
"""More than there are workers, of which a reload has twice as many for a while."""


class Open(StrEnum):
    """What goes on in a worker."""

    REQUEST = "request"
    LONG_POLL = "long_poll"
    EVENT_STREAM = "event_stream"
    DECODER = "decoder"


_OPEN = tuple(Open)


@dataclass(frozen=True, slots=True)
class Durations:
    """Durations of the requests of a method and a route: how many under each bound, infinity last, and their sum."""

    counts: tuple[int, ...]
    seconds: float


class Tally:
    """The shared numbers, for requests to `routes` and to anything else."""

    def __init__(self, routes: Sequence[str], seats: int = SEATS) -> None:
        self.routes = (*routes, OTHER)
        self._pairs = len(METHODS) * len(self.routes)
        self._durations_at = self._pairs * len(STATUSES)
        self._open_at = self._durations_at + self._pairs * (len(BOUNDS) + 2)
        self._width = self._open_at + len(_OPEN) + 1
        # Of no file, and seen by all processes that are forked from this one. Untouched pages cost nothing.
        self._cells: memoryview[float] = memoryview(mmap.mmap(-1, 8 * (1 + seats * self._width))).cast("d")
        self._taken: set[int] = set()
        self._seats = seats

    def seat(self) -> Seat | None:
        """Give a seat to a worker that is about to be forked; None where all are taken."""
        free = next((number for number in range(self._seats) if number not in self._taken), None)
        if free is None:
            return None
        self._taken.add(free)
        self._cells[0] = max(self._cells[0], free + 1)  # those that were ever taken: no others need to be read
        return Seat(self, free)

    def first_seat(self) -> Seat:
        """Give the first seat, of a tally that nobody else has."""
        seat = self.seat()
        if seat is None:
            raise RuntimeError("all seats are taken")
        return seat

    # --- what is told --------------------------------------------------------------------------------------------

    def requests(self) -> Iterator[tuple[str, str, str, int]]:
        """Yield method, route and status of answered requests, and how many there were."""
        row = self._sum(0, self._durations_at)
        for index, count in enumerate(row):
            if count:
                pair, status = divmod(index, len(STATUSES))
                yield *self._pair(pair), STATUSES[status], int(count)

    def durations(self) -> Iterator[tuple[str, str, Durations]]:
        """Yield method and route of answered requests, and how long those took whose end was up to the service."""
        width = len(BOUNDS) + 2
        row = self._sum(self._durations_at, self._open_at)
        for pair in range(self._pairs):
            *counts, seconds = row[pair * width : (pair + 1) * width]
            if any(counts):
                yield *self._pair(pair), Durations(tuple(map(int, counts)), seconds)

    def open(self, what: Open) -> int:
        """Return how much of it goes on now, in all workers."""
        at = self._open_at + _OPEN.index(what)
        return int(self._sum(at, at + 1)[0])

    def workers(self) -> int:
        """Return how many workers have a seat."""
        return int(self._sum(self._width - 1, self._width)[0])

    def _pair(self, pair: int) -> tuple[str, str]:
        method, route = divmod(pair, len(self.routes))
        return METHODS[method], self.routes[route]

    def _sum(self, start: int, end: int) -> list[float]:
        rows = [self._row(number)[start:end].tolist() for number in range(int(self._cells[0]))]
        return [sum(column) for column in zip(*rows, strict=True)] or [0.0] * (end - start)

    def _row(self, number: int) -> memoryview[float]:
        first = 1 + number * self._width
        return self._cells[first : first + self._width]

    # --- for Seat ------------------------------------------------------------------------------------------------

    def places(self, method: str, route: str | None, status: int) -> tuple[int, int]:
        """Return where in a row requests of a kind are counted, and where their durations begin."""
        pair = _place(METHODS, method) * len(self.routes) + _place(self.routes, route or OTHER)
        return pair * len(STATUSES) + _place(STATUSES, str(status)), self._durations_at + pair * (len(BOUNDS) + 2)

    def open_place(self, what: Open) -> int:
        return self._open_at + _OPEN.index(what)

    def empty(self, number: int) -> None:
        """Forget what is open at a seat, and that a worker has it."""
        row = self._row(number)
        for place in range(self._open_at, self._width):
            row[place] = 0.0

    def give_back(self, number: int) -> None:
        self.empty(number)
        self._taken.discard(number)


@cache
def shared(routes: tuple[str, ...]) -> Tally:
    """Return the tally of this process and of all that it forks. A reload, which reads the settings anew, keeps it."""
    return Tally(routes)


class Seat:
    """One worker's row. Safe to share between its threads, not between processes."""

    def __init__(self, tally: Tally, number: int) -> None:
        self.tally, self._number = tally, number
        self._row = tally._row(number)
        self._lock = threading.Lock()

    def sit_down(self) -> None:
        """Say that a worker is here."""
        self.tally.empty(self._number)
        self._row[-1] = 1.0

    def leave(self) -> None:
        """Free the seat of a worker that is dead; for the process that gave it."""
        self.tally.give_back(self._number)

    def count(self, method: str, route: str | None, status: int, seconds: float | None) -> None:
        """Count an answered request; without `seconds` its duration is not measured."""
        at, durations = self.tally.places(method, route, status)
        with self._lock:
            self._row[at] += 1
            if seconds is not None:
                self._row[durations + bisect_left(BOUNDS, seconds)] += 1
                self._row[durations + len(BOUNDS) + 1] += seconds

    def change(self, what: Open, by: int) -> None:
        """Say that more of it goes on, or less."""
        with self._lock:
            self._row[self.tally.open_place(what)] += by

    @contextmanager
    def during(self, what: Open) -> Iterator[None]:
        """Say that it goes on, as long as the block does."""
        self.change(what, 1)
        try:
            yield
        finally:
            self.change(what, -1)


def _place(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names) - 1
