"""The outbox: for each ended task with a webhook one row, written in the transaction that ends it.

So no end goes untold, whatever dies in between. A message is told at least once: a claim is a compare-and-set on the
row's version that moves the next attempt behind a lease, and the row is settled when the outcome is known. A deliverer
that dies leaves a row that comes due again, and the message keeps its id, by which a receiver knows it.

A row goes together with its task: what was deleted is not told any more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    FromClause,
    RowMapping,
    Select,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from tasks import totals
from tasks.model import LostRace, Status, Task
from tasks.schema import tasks, webhooks

LOG_LENGTH = 20
"""Attempts that are kept of one message: the last ones."""

PER_TENANT = 4
"""Messages of one tenant that are under way at once."""

PER_HOST = 2
"""Of these, to one host."""

_AT_ONCE = 500
"""Values in one query; rows of one look."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Delivery(StrEnum):
    """Whether a message has arrived."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"  # given up, until somebody asks for it again


class NoMessage(Exception):
    """There is no message of this task; the text says why."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try: when, how many milliseconds it took, and the status that was answered or why there was none."""

    at: datetime
    ms: int
    status_code: int | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One row: what is to be told of a task, and how far that is. `attempts` are those since it was last queued."""

    task_id: str
    tenant: str
    url: str
    host: str
    status: Delivery
    version: int
    attempts: int
    created_at: datetime
    next_attempt_at: datetime | None
    deliveries: tuple[Attempt, ...]

    @property
    def id(self) -> str:
        return message_id(self.task_id)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many messages there are of each status, since when the oldest pending one waits, and the first turn."""

    pending: int
    delivered: int
    failed: int
    oldest_pending: datetime | None
    first_turn: datetime | None


_PENDING = webhooks.c.status == Delivery.PENDING.value
_ORPHANED = ~exists().where(tasks.c.id == webhooks.c.task_id)


def message_id(task_id: str) -> str:
    """Return the id of the one message of a task: a task ends once."""
    return f"msg_{task_id}"


def put(db: Connection, task: Task, now: datetime) -> None:
    """Write the message of a task that ends in this very transaction, if it wants one."""
    if task.webhook_url is not None:
        db.execute(insert(webhooks).values(_fresh(task.id, task.tenant, task.webhook_url, now)))


def drop(db: Connection, task_id: str) -> None:
    """Remove the message of a task that is removed."""
    db.execute(delete(webhooks).where(webhooks.c.task_id == task_id))


def count(db: Connection) -> Counts:
    """Return how many messages there are, how old the oldest pending one is, and when the first turn is."""
    query = select(webhooks.c.status, func.count(), func.min(webhooks.c.created_at)).group_by(webhooks.c.status)
    found = {status: (number, oldest) for status, number, oldest in db.execute(query)}
    pending, delivered, failed = (found.get(status.value, (0, None)) for status in Delivery)
    first_turn: datetime | None = db.execute(select(func.min(webhooks.c.next_attempt_at)).where(_PENDING)).scalar()
    return Counts(pending[0], delivered[0], failed[0], pending[1], first_turn)


def _fresh(task_id: str, tenant: str, url: str, now: datetime) -> dict[str, Any]:
    return {
        "task_id": task_id, "tenant": tenant, "url": url, "host": urlsplit(url).hostname or "",
        "status": Delivery.PENDING.value, "version": 1, "attempts": 0, "created_at": now, "next_attempt_at": now,
        "deliveries": [],
    }  # fmt: skip


class Outbox:
    """The messages of one database."""

    def __init__(self, engine: Engine, now: Callable[[], datetime]) -> None:
        self._engine, self.now = engine, now
        self._writing = engine.execution_options(write=True)

    # --- reading -------------------------------------------------------------------------------------------------

    def of(self, task_ids: Sequence[str]) -> dict[str, Message]:
        """Return the messages of these tasks, by the task's id."""
        found = {}
        with self._engine.begin() as db:
            for some in (task_ids[at : at + _AT_ONCE] for at in range(0, len(task_ids), _AT_ONCE)):
                for row in db.execute(select(webhooks).where(webhooks.c.task_id.in_(some))):
                    found[row.task_id] = _message(row._mapping)
        return found

    def newest(self, limit: int, statuses: Collection[Delivery] = ()) -> list[Message]:
        """Return the newest messages, of any of `statuses` (none: all)."""
        query = select(webhooks).order_by(webhooks.c.created_at.desc(), webhooks.c.task_id).limit(limit)
        if statuses:
            query = query.where(webhooks.c.status.in_([status.value for status in statuses]))
        with self._engine.begin() as db:
            return [_message(row._mapping) for row in db.execute(query)]

    # --- delivering ----------------------------------------------------------------------------------------------

    def due(self, horizon: timedelta) -> list[Message]:
        """Return messages whose turn has come, tenants by turns, so that nobody's thousand hide another's one.

        Of a tenant only what may be under way at once and somewhat more, of its messages to one host the first few. A
        turn that is further off than `horizon`, the longest wait there is, was set before the clock was set back.
        """
        if not self._is_anything_pending():
            return []
        now = self.now()
        # A receiver that is dead has thousands due. They are passed over in the index of receivers, of which each then
        # gives its first few: to number them all, and look at two, took a quarter of a second for 31,000.
        to = select(webhooks.c.tenant, webhooks.c.host).where(_PENDING).distinct().subquery()
        first = or_(
            webhooks.c.task_id.in_(_first_to(to, lambda turn: turn <= now)),
            webhooks.c.task_id.in_(_first_to(to, lambda turn: turn > now + horizon)),
        )
        turn = func.row_number().over(partition_by=webhooks.c.tenant, order_by=webhooks.c.next_attempt_at)
        found = select(webhooks, turn.label("turn")).select_from(to.join(webhooks, first)).subquery()
        query = select(found).where(found.c.turn <= 4 * PER_TENANT).order_by(found.c.turn, found.c.next_attempt_at)
        with self._engine.begin() as db:
            return [_message(row._mapping) for row in db.execute(query.limit(_AT_ONCE))]

    def _is_anything_pending(self) -> bool:
        """Where nobody wants to be told, this is asked after each write: building the query of `due` takes 3 ms."""
        with self._engine.begin() as db:
            return db.execute(select(webhooks.c.task_id).where(_PENDING).limit(1)).first() is not None

    def next_turn(self) -> datetime | None:
        """Return when the next message that is not due yet will be."""
        query = select(func.min(webhooks.c.next_attempt_at)).where(_PENDING, webhooks.c.next_attempt_at > self.now())
        with self._engine.begin() as db:
            found: datetime | None = db.execute(query).scalar()
            return found

    def claim(self, message: Message, lease: timedelta) -> Message:
        """Begin an attempt: nobody else will before the lease runs out. Raises LostRace."""
        until = self.now() + lease
        with self._writing.begin() as db:
            return _change(db, message, attempts=message.attempts + 1, next_attempt_at=until)

    def settle(self, claimed: Message, attempt: Attempt, status: Delivery, again_at: datetime | None) -> Message:
        """Record how a claimed attempt went. Raises LostRace where the lease ran out, or the task is gone."""
        kept = (*claimed.deliveries, attempt)[-LOG_LENGTH:]
        values = [
            {"at": (one.at - _EPOCH) // _MICROSECOND, "ms": one.ms, "status_code": one.status_code, "error": one.error}
            for one in kept
        ]
        with self._writing.begin() as db:
            settled = _change(db, claimed, status=status.value, next_attempt_at=again_at, deliveries=values)
            totals.add(db, {totals.Key(totals.Total.WEBHOOKS, "", "", status): 1})
            return settled

    def forget(self, message: Message) -> None:
        """Remove the message of a task that is no more; a release before webhooks removes a task without it."""
        self._forget([message.task_id])

    def forget_orphans(self) -> int:
        """Remove some of the messages whose task is no more, also those that are not told any more; return how many."""
        # Looked for without the lock of writers: there may be tens of thousands of messages, and mostly no orphan.
        with self._engine.begin() as db:
            found = list(db.execute(select(webhooks.c.task_id).where(_ORPHANED).limit(_AT_ONCE)).scalars())
        return self._forget(found) if found else 0

    def _forget(self, task_ids: Sequence[str]) -> int:
        with self._writing.begin() as db:
            return db.execute(delete(webhooks).where(webhooks.c.task_id.in_(task_ids), _ORPHANED)).rowcount

    def redeliver(self, task_id: str) -> Message:
        """Queue a message anew, whatever became of it, with all its attempts before it. Raises NoMessage."""
        anew = update(webhooks).where(webhooks.c.task_id == task_id)
        values = {"status": Delivery.PENDING.value, "attempts": 0, "next_attempt_at": self.now()}
        with self._writing.begin() as db:
            row = db.execute(anew.values(version=webhooks.c.version + 1, **values).returning(webhooks)).first()
            if row is None:
                raise NoMessage(_why_none(db, task_id))
            return _message(row._mapping)

    def adopt(self, since: datetime | None) -> int:
        """Write the messages that are missing of tasks that ended at `since` or later (None: ever); return how many.

        The runner of a release before webhooks ends a task without writing one.
        """
        untold = ~exists().where(webhooks.c.task_id == tasks.c.id)
        ended = (tasks.c.webhook_url.is_not(None), tasks.c.finish_time.is_not(None), untold)
        query = select(tasks.c.id, tasks.c.tenant, tasks.c.webhook_url).where(*ended)
        if since is not None:
            query = query.where(tasks.c.finish_time >= since)
        # Looked for without the lock of writers, then asked again with it: a task may have been removed meanwhile.
        with self._engine.begin() as db:
            found = list(db.execute(query.with_only_columns(tasks.c.id)).scalars())
        if not found:
            return 0
        with self._writing.begin() as db:
            rows = db.execute(query.where(tasks.c.id.in_(found[:_AT_ONCE]))).all()
            for row in rows:
                db.execute(insert(webhooks).values(_fresh(*row, self.now())))
            return len(rows)


def _change(db: Connection, before: Message, **values: Any) -> Message:
    as_read = (webhooks.c.task_id == before.task_id, webhooks.c.version == before.version, _PENDING)
    changed = update(webhooks).where(*as_read).values(version=before.version + 1, **values)
    row = db.execute(changed.returning(webhooks)).first()
    if row is None:
        raise LostRace(f"the message of task {before.task_id} changed")
    return _message(row._mapping)


_MICROSECOND = timedelta(microseconds=1)


def _first_to(to: FromClause, has_come: Callable[[ColumnElement[datetime]], ColumnElement[bool]]) -> Select[Any]:
    """Return the ids of the first few whose turn `has_come`, of a tenant to a host, which are columns of `to`."""
    one = webhooks.alias()
    mine = (one.c.status == Delivery.PENDING.value, one.c.tenant == to.c.tenant, one.c.host == to.c.host)
    turn = one.c.next_attempt_at
    return select(one.c.task_id).where(*mine, has_come(turn)).order_by(turn).limit(PER_HOST).correlate(to)


def _message(row: RowMapping) -> Message:
    values = {name: row[name] for name in Message.__dataclass_fields__}
    kept = (Attempt(**{**one, "at": _EPOCH + one["at"] * _MICROSECOND}) for one in values["deliveries"])
    return Message(**values | {"status": Delivery(values["status"]), "deliveries": tuple(kept)})


def _why_none(db: Connection, task_id: str) -> str:
    row = db.execute(select(tasks.c.status, tasks.c.webhook_url).where(tasks.c.id == task_id)).first()
    if row is None:
        return f"there is no task {task_id}"
    if row.webhook_url is None:
        return f"task {task_id} has no webhook_url"
    return f"task {task_id} has not ended" if not Status(row.status).ended else f"task {task_id} has no message yet"
