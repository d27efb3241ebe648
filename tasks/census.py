"""What the rows tell of the service as a whole at one moment: the queue, what runs, and the totals.

Read in one transaction. It looks at open tasks only, by their index, so ended ones cost nothing however many they are,
but for their messages to webhooks, which are counted in an index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select

from tasks import clock, drain, outbox, quotas, settling, totals
from tasks.model import Priority, Status
from tasks.schema import tasks
from tasks.service_state import ServiceState


@dataclass(frozen=True, slots=True)
class Waiting:
    """Queued tasks of a kind: how many, and seconds since the first of them was queued (anew)."""

    tasks: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Running:
    """A processing task: what it holds, and seconds since its runner was last heard of."""

    engine: str
    profile: str
    gpus: tuple[str, ...]
    silent_seconds: float


@dataclass(frozen=True, slots=True)
class Webhooks:
    """Messages to webhooks by state, as far as they are kept.

    Also seconds since the oldest pending one was made, and for how long one has been due that nobody sends.
    """

    pending: int
    delivered: int
    failed: int
    oldest_seconds: float
    overdue_seconds: float


@dataclass(frozen=True, slots=True)
class Census:
    """`draining_seconds` is None while the service does not drain; `demand_bytes` what open tasks may still write."""

    waiting: Mapping[tuple[Priority, str], Waiting]
    running: tuple[Running, ...]
    totals: totals.Growth
    demand_bytes: int
    draining_seconds: float | None
    loans: settling.Loans
    sweeping_stopped: bool
    webhooks: Webhooks


def take(db: Connection, now: datetime) -> Census:
    """Return the census of `now`."""

    def age(moment: datetime | None) -> float:
        return max(0.0, (now - moment).total_seconds()) if moment else 0.0

    draining, told = drain.seen_by(db), outbox.count(db)
    return Census(
        waiting={
            (Priority(priority), engine): Waiting(count, age(oldest))
            for priority, engine, count, oldest in db.execute(_QUEUED)
        },
        running=tuple(
            Running(engine, profile, tuple(gpus or ()), age(heartbeat or start))
            for engine, profile, gpus, heartbeat, start in db.execute(_RUNNING)
        ),
        totals=totals.read(db),
        demand_bytes=quotas.demand(db, quotas.OPEN).bytes,
        draining_seconds=age(draining.since) if draining else None,
        loans=settling.from_state(ServiceState.seen_by(db, settling.STATE_NAME)),
        sweeping_stopped=ServiceState.seen_by(db, clock.STOPPED) is not None,
        webhooks=Webhooks(told.pending, told.delivered, told.failed, age(told.oldest_pending), age(told.first_turn)),
    )


# A task that is queued anew waits from then on: `updated_at` does not change while it is queued.
_QUEUED = (
    select(tasks.c.priority, tasks.c.engine, func.count(), func.min(tasks.c.updated_at, type_=tasks.c.updated_at.type))
    .where(tasks.c.status == Status.QUEUED.value)
    .group_by(tasks.c.priority, tasks.c.engine)
)
_RUNNING = select(tasks.c.engine, tasks.c.profile, tasks.c.gpus, tasks.c.heartbeat_at, tasks.c.start_time).where(
    tasks.c.status == Status.PROCESSING.value
)
