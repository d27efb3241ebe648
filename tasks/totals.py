"""How much has happened in all: numbers that only grow, by engine and profile.

Tasks expire and are deleted, so their rows cannot be counted: what a task added would be taken away again with it. Each
change of a status adds to these rows in the transaction that writes it, so they are exact, whoever made the change and
whatever was restarted since. What a runner of a release before them does is not counted: it does not know them.

A spread (a histogram) is a row for each of its bounds that something fell under, counting what lies between it and the
bound below, and one for the sum.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from math import inf
from typing import Any, NamedTuple

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from tasks.model import OOM_REASON, Status, Task
from tasks.schema import totals


class Total(StrEnum):
    """What is counted, and what the label of its rows is."""

    SUBMITTED = "submitted"  # by priority, of no profile
    STARTED = "started"  # attempts
    REQUEUED = "requeued"  # attempts that ended without an end of the task, by cause
    ENDED = "ended"  # by status
    FAILED = "failed"  # by error code
    VIDEO_SECONDS = "video_seconds"  # of published videos
    WEBHOOKS = "webhook_attempts"  # by what became of the message, of no profile


class Cause(StrEnum):
    """Why an attempt was followed by another."""

    INTERRUPTED = "interrupted"  # its runner died
    OOM = "oom"  # the GPU's memory was too small: made again at the next smaller size
    RETRIED = "retried"  # it failed as its profile says is worth another


class Spread(StrEnum):
    """What is measured."""

    WAITING = "waiting"  # seconds in the queue, of each attempt
    LOADING = "loading"  # seconds to the first frame, of completed tasks
    RENDERING = "rendering"  # seconds from there to the end
    REALTIME = "realtime"  # seconds of processing for a second of video


_SECONDS = (0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14_400, 28_800)
BOUNDS: Mapping[Spread, tuple[float, ...]] = {
    Spread.WAITING: _SECONDS,
    Spread.LOADING: _SECONDS,
    Spread.RENDERING: _SECONDS,
    Spread.REALTIME: (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256),
}
"""Upper bounds; all but the last, which is infinity. Numbers under bounds of an earlier release are kept and told."""


class Key(NamedTuple):
    """Names one number."""

    name: str
    engine: str
    profile: str
    label: str = ""


def sum_of(spread: Spread) -> str:
    """Return the name under which the sum of what was measured is kept."""
    return f"{spread}_sum"


Growth = Mapping[Key, float]
_Grown = defaultdict[Key, float]


def submission(task: Task) -> Growth:
    """Return what a task that is accepted adds."""
    return {Key(Total.SUBMITTED, task.engine, "", task.priority.name.lower()): 1}


def change(before: Task, after: Task, load_seconds: float | None = None) -> Growth:
    """Return what a change of a task adds; nothing where its status stays.

    `load_seconds` is how long a completed task took to its first frame, as far as that is known.
    """
    grown = _Grown(float)
    if before.status is not after.status:
        _CHANGES[after.status](grown, before, after, load_seconds)
    return grown


def _started(grown: _Grown, before: Task, after: Task, load: float | None) -> None:
    grown[Key(Total.STARTED, after.engine, after.profile)] += 1
    _measure(grown, Spread.WAITING, after, _seconds(before.updated_at, after.start_time))


def _requeued(grown: _Grown, before: Task, after: Task, load: float | None) -> None:
    told = after.notes[len(before.notes) :]
    lowered = [one for one in after.adjustments[len(before.adjustments) :] if one.reason == OOM_REASON]
    cause = Cause.OOM if lowered else Cause.RETRIED if told else Cause.INTERRUPTED
    grown[Key(Total.REQUEUED, before.engine, before.profile, cause)] += 1


def _ended(grown: _Grown, before: Task, after: Task, load: float | None) -> None:
    grown[Key(Total.ENDED, after.engine, after.profile, after.status)] += 1
    if after.failure is not None:
        grown[Key(Total.FAILED, after.engine, after.profile, after.failure.code)] += 1
    if after.result is not None:
        _made(grown, after, after.result.video.duration_seconds, load)


def _made(grown: _Grown, task: Task, video_seconds: float, load: float | None) -> None:
    took = _seconds(task.start_time, task.finish_time)
    grown[Key(Total.VIDEO_SECONDS, task.engine, task.profile)] += video_seconds
    if video_seconds > 0:
        _measure(grown, Spread.REALTIME, task, took / video_seconds)
    if load is not None:
        _measure(grown, Spread.LOADING, task, min(load, took))
        _measure(grown, Spread.RENDERING, task, max(0.0, took - load))


_CHANGES: Mapping[Status, Callable[[_Grown, Task, Task, float | None], None]] = {
    Status.PROCESSING: _started,
    Status.QUEUED: _requeued,
    Status.COMPLETED: _ended,
    Status.FAILED: _ended,
    Status.CANCELLED: _ended,
}


def _measure(grown: _Grown, spread: Spread, task: Task, value: float) -> None:
    bounds = (*BOUNDS[spread], inf)
    bound = bounds[bisect_left(bounds, value)]
    grown[Key(spread, task.engine, task.profile, str(float(bound)))] += 1
    grown[Key(sum_of(spread), task.engine, task.profile)] += value


def _seconds(since: datetime | None, until: datetime | None) -> float:
    return max(0.0, (until - since).total_seconds()) if since and until else 0.0


# --- as rows ----------------------------------------------------------------------------------------------------------

_INSERTS: Mapping[str, Callable[..., Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def add(db: Connection, grown: Growth) -> None:
    """Add to the totals within a writing transaction."""
    if not grown:
        return
    rows = [{**key._asdict(), "value": value} for key, value in grown.items()]
    more = _INSERTS[db.dialect.name](totals).values(rows)
    sum_up = {"value": totals.c.value + more.excluded.value}
    db.execute(more.on_conflict_do_update(index_elements=list(totals.primary_key), set_=sum_up))


def read(db: Connection) -> Growth:
    """Return all totals."""
    return {Key(name, *rest): value for name, *rest, value in db.execute(select(totals))}
