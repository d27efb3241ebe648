"""Verbs on tasks that ended: their records go, their tombstones stay for a while, and what they keep is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from tasks import outbox
from tasks.disk import Ballast
from tasks.model import LostRace, Status, Task
from tasks.schema import idempotency_keys, tasks, tombstones

IDEMPOTENCY_TTL = timedelta(hours=24)
"""How long a key is kept after the end of its task."""

_AT_ONCE = 500
"""Rows in one transaction."""


@dataclass(frozen=True, slots=True)
class EndedTask:
    """What retention needs to know of a task. `stored_bytes` is None until they were counted."""

    id: str
    seq: int
    version: int
    tenant: str
    status: Status
    attempt: int
    finish_time: datetime
    stored_bytes: int | None


_COLUMNS = [tasks.c[name] for name in EndedTask.__dataclass_fields__]


class Ended:
    """The ended tasks of one database. Writes that make room are let have the ballast."""

    def __init__(self, engine: Engine, now: Callable[[], datetime], ballast: Ballast) -> None:
        self._engine, self._now, self._ballast = engine, now, ballast
        self._writing = engine.execution_options(write=True)

    def delete(self, task: Task) -> None:
        """Remove an ended task's record and leave its tombstone. Raises LostRace when it has changed."""
        if not task.status.ended or task.finish_time is None:
            raise ValueError("only an ended task can be deleted")
        only = EndedTask(
            task.id, task.seq, task.version, task.tenant, task.status, task.attempt, task.finish_time, None
        )
        if not self.remove([only]):
            raise LostRace

    def remove(self, ended: Sequence[EndedTask]) -> list[EndedTask]:
        """Remove records and leave tombstones, all at once; return those that were still there unchanged."""

        def work() -> list[EndedTask]:
            with self._writing.begin() as db:
                return [task for task in ended if self._remove(db, task)]

        return self._ballast.lend(work)

    def _remove(self, db: Connection, task: EndedTask) -> bool:
        if not db.execute(delete(tasks).where(tasks.c.id == task.id, tasks.c.version == task.version)).rowcount:
            return False
        outbox.drop(db, task.id)
        told = max(self._now(), task.finish_time)
        db.execute(insert(tombstones).values(id=task.id, tenant=task.tenant, deleted_at=told))
        mine = update(idempotency_keys).where(idempotency_keys.c.task_id == task.id)
        db.execute(mine.values(expires_at=task.finish_time + IDEMPOTENCY_TTL))
        return True

    def until(self, moment: datetime, limit: int, after: tuple[datetime, int] | None = None) -> list[EndedTask]:
        """Return up to `limit` tasks that ended at `moment` or before, the oldest end first.

        With `after`, the (finish_time, seq) of a task, only those behind it in that order.
        """
        query = select(*_COLUMNS).where(tasks.c.finish_time <= moment)
        if after is not None:
            # The first condition says nothing new, but it is the one that an index can answer.
            query = query.where(tasks.c.finish_time >= after[0], _is_behind(after))
        with self._engine.begin() as db:
            rows = db.execute(query.order_by(tasks.c.finish_time, tasks.c.seq).limit(limit))
            return [EndedTask(**{**row._mapping, "status": Status(row.status)}) for row in rows]

    def note_bytes(self, sizes: dict[str, int]) -> None:
        """Record how many bytes tasks keep on the disk, by id."""
        with self._writing.begin() as db:
            for task_id, size in sizes.items():
                db.execute(update(tasks).where(tasks.c.id == task_id).values(stored_bytes=size))

    def total_bytes(self) -> int:
        """Return how many bytes all ended tasks keep, as far as they were counted."""
        with self._engine.begin() as db:
            return int(db.execute(select(func.coalesce(func.sum(tasks.c.stored_bytes), 0))).scalar_one())

    def was_deleted(self, task_id: str, tenant: str | None) -> bool:
        """Say whether a task of this tenant (None: of any) was deleted or has expired."""
        found = select(tombstones.c.id).where(tombstones.c.id == task_id)
        if tenant is not None:
            found = found.where(tombstones.c.tenant == tenant)
        with self._engine.begin() as db:
            return db.execute(found).first() is not None

    def forget_tombstones(self, before: datetime) -> int:
        """Remove the tombstones of tasks that were deleted before then; return how many."""
        with self._writing.begin() as db:
            return db.execute(delete(tombstones).where(tombstones.c.deleted_at < before)).rowcount

    def forget_old_keys(self) -> int:
        """Remove idempotency keys whose task ended more than a day ago; return how many."""
        now = self._now()
        # Asked of each key, of which there are those of a day, not of all tasks that ever ended.
        ended = exists().where(tasks.c.id == idempotency_keys.c.task_id, tasks.c.finish_time < now - IDEMPOTENCY_TTL)
        name = (idempotency_keys.c.tenant, idempotency_keys.c.key)
        # Looked for without the lock of writers: with many keys it takes longer than a request should wait.
        with self._engine.begin() as db:
            old = db.execute(select(*name).where(or_(idempotency_keys.c.expires_at < now, ended))).all()
        for some in (old[at : at + _AT_ONCE] for at in range(0, len(old), _AT_ONCE)):
            with self._writing.begin() as db:
                db.execute(delete(idempotency_keys).where(tuple_(*name).in_([tuple(row) for row in some])))
        return len(old)


def _is_behind(position: tuple[datetime, int]) -> ColumnElement[bool]:
    moment, seq = position
    later: ColumnElement[bool] = tasks.c.finish_time > moment
    same = (tasks.c.finish_time == moment) & (tasks.c.seq > seq)
    return later | same
