"""In which order queued tasks get their turn: by priority, then fairly between tenants, then as they were submitted.

A tenant's queued tasks of one priority are numbered as they were submitted, counting on from how many of its tasks run.
That number is a task's round, and all of a round come before all of the next: whoever has a thousand tasks in the queue
delays another's first by one at most. With one tenant it is the order of submission.

A position depends on all that wait, and clients ask for it all the time. So the order that was read is kept, with what
answers each question in a few steps, and read anew only when the queue is another; what was submitted since is added.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Select, func, select

from tasks.model import Status, Task
from tasks.rows import task_from_row
from tasks.schema import tasks, totals
from tasks.totals import Total

_NEW = 2**63
"""Stands for the number of a task that has none yet: all others were submitted before it."""

_FEW = 8
"""Tasks that are read at once where not all may be wanted: few can start at once."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What stands before a task: how many queued ones, and the seconds of work expected, by (engine, profile).

    The work includes what is left of the tasks that run.
    """

    tasks: int
    seconds: Mapping[tuple[str, str], float]


NOTHING_AHEAD = Backlog(0, {})


class Turn(NamedTuple):
    """A queued task as far as its turn is concerned; turns compare as they follow each other."""

    urgency: int  # the priority, the highest first
    round: int
    seq: int
    tenant: str
    engine: str
    profile: str
    work_seconds: float


_READ = ("seq", "priority", "tenant", "engine", "profile", "work_seconds")


class Order:
    """The tasks that wait, in the order of turn, with what is asked of them. Not changed once it is made."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.turns = turns
        self.waiting = Counter((turn.tenant, -turn.urgency) for turn in turns)
        """How many tasks a tenant has waiting of a priority."""
        self._places = {turn.seq: number for number, turn in enumerate(turns)}
        self._work: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
        for number, turn in enumerate(turns):
            numbers, sums = self._work.setdefault((turn.engine, turn.profile), ([], [0.0]))
            numbers.append(number)
            sums.append(sums[-1] + turn.work_seconds)

    def place(self, seq: int) -> int | None:
        """Return how many come before the task of this number, None where it does not wait."""
        return self._places.get(seq)

    def work_before(self, place: int) -> dict[tuple[str, str], float]:
        """Return the seconds of work, by (engine, profile), of those that come before a place."""
        before = {kind: sums[bisect_left(numbers, place)] for kind, (numbers, sums) in self._work.items()}
        return {kind: seconds for kind, seconds in before.items() if seconds}


@dataclass(frozen=True, slots=True)
class Line:
    """The queue at one moment: who waits; how many tasks each tenant has running, and what is left of those in seconds
    by (engine, profile)."""

    order: Order
    running: Mapping[str, int]
    left: Mapping[tuple[str, str], float]

    def before(self, wanted: Collection[int]) -> dict[int, Backlog]:
        """Return what stands before each of the tasks numbered `wanted`; those that do not wait are left out."""
        places = {seq: self.order.place(seq) for seq in wanted}
        return {seq: self._backlog(place) for seq, place in places.items() if place is not None}

    def places(self, wanted: Collection[int]) -> dict[int, int]:
        """Return the position, from 1, of each of the tasks numbered `wanted`; those that do not wait are left out."""
        places = {seq: self.order.place(seq) for seq in wanted}
        return {seq: place + 1 for seq, place in places.items() if place is not None}

    def before_new(self, priority: int, tenant: str) -> Backlog:
        """Return what will stand before a task that is submitted now."""
        round_ = self.order.waiting[tenant, priority] + self.running.get(tenant, 0) + 1
        return self._backlog(bisect_left(self.order.turns, Turn(-priority, round_, _NEW, tenant, "", "", 0.0)))

    def next_up(self, limit: int, profiles: Collection[tuple[str, str]], most_running: int) -> list[int]:
        """Return the numbers of the next `limit` tasks of these (engine, profile) pairs, in the order of turn.

        Tenants with `most_running` tasks running are passed over (0: none are).
        """
        may = (
            turn.seq
            for turn in self.order.turns
            if (turn.engine, turn.profile) in profiles
            and not (most_running and self.running.get(turn.tenant, 0) >= most_running)
        )
        return list(islice(may, limit))

    def _backlog(self, place: int) -> Backlog:
        seconds = defaultdict(float, self.left)
        for kind, more in self.order.work_before(place).items():
            seconds[kind] += more
        return Backlog(place, dict(seconds))


class _Mark(NamedTuple):
    """By what a queue is known again: it is the same where all of these are."""

    changes: float  # how often a task started, ended or was queued anew, ever; other releases may not count it
    tasks: int
    seqs: int  # their sum
    last: int


@dataclass(frozen=True, slots=True)
class _Kept:
    mark: _Mark
    running: Mapping[str, int]
    order: Order


class Lines:
    """Reads the queue of one database. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of all that want the queue after a change, one reads it
        self._kept: _Kept | None = None

    def read(self, db: Connection, now: datetime) -> Line:
        """Return the queue as it is at `now` for the transaction `db`, in which nothing was written yet."""
        running, left = _read_running(db, now)
        mark = _read_mark(db)
        with self._lock:
            kept = self._kept
            if kept is None or kept.mark != mark or kept.running != running:
                order = (kept and _grown(db, kept, mark, running)) or _read_order(db, running)
                self._kept = kept = _Kept(mark, running, order)
        return Line(kept.order, running, left)


class Queue:
    """The queue of one database for who starts tasks: nothing is taken on trust, nothing read that is not wanted.

    While all slots are taken, each submit still leads to a look; to read two hundred tasks at each of them, of which
    none could start, took more of the processor than to serve the requests. `most_running` is of each tenant (0: any
    number).
    """

    def __init__(self, engine: Engine, now: Callable[[], datetime], most_running: int) -> None:
        self._engine, self._now, self._most_running = engine, now, most_running

    def engines(self) -> set[str]:
        """Return the names of the engines that tasks wait for."""
        with self._engine.begin() as db:
            return set(db.execute(_in(Status.QUEUED, tasks.c.engine).distinct()).scalars())

    def next_up(self, limit: int, profiles: Collection[tuple[str, str]]) -> Iterator[Task]:
        """Yield the next `limit` queued tasks of these (engine, profile) pairs in the order of their turn.

        Tenants that have as many running as they may are passed over. The queue is read when the first is asked for,
        and then a few tasks at a time.
        """
        with self._engine.begin() as db:
            seqs = _read_line(db, self._now()).next_up(limit, profiles, self._most_running)
        for few in (seqs[start : start + _FEW] for start in range(0, len(seqs), _FEW)):
            with self._engine.begin() as db:
                rows = db.execute(_in(Status.QUEUED, tasks).where(tasks.c.seq.in_(few)))
                found = {row.seq: task_from_row(row) for row in rows}
            yield from (found[seq] for seq in few if seq in found)


def _read_line(db: Connection, now: datetime) -> Line:
    running, left = _read_running(db, now)
    return Line(_read_order(db, running), running, left)


def _read_running(db: Connection, now: datetime) -> tuple[Counter[str], dict[tuple[str, str], float]]:
    running, left = Counter[str](), defaultdict[tuple[str, str], float](float)
    columns = (tasks.c.tenant, tasks.c.engine, tasks.c.profile, tasks.c.updated_at, tasks.c.eta_seconds)
    for tenant, engine, profile, told_at, eta in db.execute(_in(Status.PROCESSING, *columns)):
        running[tenant] += 1
        left[engine, profile] += max(0.0, (eta or 0.0) - (now - told_at).total_seconds())
    return running, left


def _read_order(db: Connection, running: Mapping[str, int]) -> Order:
    return Order(in_turn(db.execute(_QUEUED.order_by(tasks.c.priority, tasks.c.seq)), running, Counter()))


def _read_mark(db: Connection) -> _Mark:
    """An index has all of it but the changes, which are few rows."""
    seqs = (func.count(), func.coalesce(func.sum(tasks.c.seq), 0), func.coalesce(func.max(tasks.c.seq), 0))
    number, total, last = db.execute(_in(Status.QUEUED, *seqs)).one()
    return _Mark(float(db.execute(_CHANGES).scalar_one()), number, int(total), last)


def _grown(db: Connection, kept: _Kept, mark: _Mark, running: Mapping[str, int]) -> Order | None:
    """Return the order with what was submitted since it was kept; None where anything else has happened as well."""
    if kept.mark.changes != mark.changes or kept.running != running:
        return None
    new = db.execute(_QUEUED.where(tasks.c.seq > kept.mark.last).order_by(tasks.c.seq)).all()
    if (kept.mark.tasks + len(new), kept.mark.seqs + sum(row.seq for row in new)) != (mark.tasks, mark.seqs):
        return None
    return Order(sorted([*kept.order.turns, *in_turn(new, running, kept.order.waiting)]))


def in_turn(queued: Iterable[Any], running: Mapping[str, int], before: Counter[tuple[str, int]]) -> list[Turn]:
    """Return the order of turn. `queued` has rows of `_READ`, those of a priority as they were submitted.

    `before` is how many of a tenant and a priority wait that were submitted before them.
    """
    rounds = Counter(before)
    turns = []
    for seq, priority, tenant, engine, profile, work_seconds in queued:
        rounds[tenant, priority] += 1
        number = rounds[tenant, priority] + running.get(tenant, 0)
        turns.append(Turn(-priority, number, seq, tenant, engine, profile, work_seconds))
    return sorted(turns)


def _in(status: Status, *columns: Any) -> Select[Any]:
    return select(*columns).where(tasks.c.status == status.value)


_QUEUED = _in(Status.QUEUED, *(tasks.c[name] for name in _READ))
_CHANGES = select(func.coalesce(func.sum(totals.c.value), 0.0)).where(
    totals.c.name.in_([Total.STARTED, Total.REQUEUED, Total.ENDED])
)
