"""In which order queued tasks get their turn: by priority, then fairly between tenants, then as they were submitted.

A tenant's queued tasks of one priority are numbered as they were submitted, counting on from how many of its tasks run.
That number is a task's round, and all of a round come before all of the next: whoever has a thousand tasks in the queue
delays another's first by one at most. With one tenant it is the order of submission.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, select

from tasks.model import Status
from tasks.schema import tasks

_NEW = 2**63
"""Stands for the number of a task that has none yet: all others were submitted before it."""


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


@dataclass(frozen=True, slots=True)
class Line:
    """The queue at one moment: what waits, in the order of turn; how many tasks each tenant has running, and what is
    left of those in seconds by (engine, profile)."""

    waiting: Sequence[Turn]
    running: Mapping[str, int]
    left: Mapping[tuple[str, str], float]

    def before(self, wanted: Collection[int]) -> dict[int, Backlog]:
        """Return what stands before each of the tasks numbered `wanted`; those that do not wait are left out."""
        found: dict[int, Backlog] = {}
        seconds = defaultdict(float, self.left)
        for number, turn in enumerate(self.waiting):
            if turn.seq in wanted:
                found[turn.seq] = Backlog(number, dict(seconds))
            seconds[turn.engine, turn.profile] += turn.work_seconds
        return found

    def places(self, wanted: Collection[int]) -> dict[int, int]:
        """Return the position, from 1, of each of the tasks numbered `wanted`; those that do not wait are left out."""
        return {turn.seq: number for number, turn in enumerate(self.waiting, 1) if turn.seq in wanted}

    def before_new(self, priority: int, tenant: str) -> Backlog:
        """Return what will stand before a task that is submitted now."""
        own = sum(turn.tenant == tenant and turn.urgency == -priority for turn in self.waiting)
        mine = Turn(-priority, own + self.running.get(tenant, 0) + 1, _NEW, tenant, "", "", 0.0)
        return replace(self, waiting=sorted([*self.waiting, mine])).before([_NEW])[_NEW]

    def next_up(self, limit: int, profiles: Collection[tuple[str, str]], most_running: int) -> list[int]:
        """Return the numbers of the next `limit` tasks of these (engine, profile) pairs, in the order of turn.

        Tenants with `most_running` tasks running are passed over (0: none are).
        """
        may = (
            turn.seq
            for turn in self.waiting
            if (turn.engine, turn.profile) in profiles
            and not (most_running and self.running.get(turn.tenant, 0) >= most_running)
        )
        return list(islice(may, limit))


def read_line(db: Connection, now: datetime) -> Line:
    """Return the queue as it is at `now`."""
    running, left = Counter[str](), defaultdict[tuple[str, str], float](float)
    columns = (tasks.c.tenant, tasks.c.engine, tasks.c.profile, tasks.c.updated_at, tasks.c.eta_seconds)
    for tenant, engine, profile, told_at, eta in db.execute(_in(Status.PROCESSING, *columns)):
        running[tenant] += 1
        left[engine, profile] += max(0.0, (eta or 0.0) - (now - told_at).total_seconds())
    queued = _in(Status.QUEUED, *(tasks.c[name] for name in _READ)).order_by(tasks.c.priority, tasks.c.seq)
    return Line(in_turn(db.execute(queued), running), running, left)


def in_turn(queued: Iterable[Any], running: Mapping[str, int]) -> list[Turn]:
    """Return the order of turn. `queued` has rows of `_READ`, those of a priority as they were submitted."""
    rounds: Counter[tuple[str, int]] = Counter()
    turns = []
    for seq, priority, tenant, engine, profile, work_seconds in queued:
        rounds[tenant, priority] += 1
        number = rounds[tenant, priority] + running.get(tenant, 0)
        turns.append(Turn(-priority, number, seq, tenant, engine, profile, work_seconds))
    return sorted(turns)


def _in(status: Status, *columns: Any) -> Select[Any]:
    return select(*columns).where(tasks.c.status == status.value)
