"""The rows, and the verbs that change them. The row is the truth; everything else about a task is a hint.

Every change of a task goes through `_write`: it names the status, version and attempt that were read, and raises
LostRace when no row matches any more. Writers that only tell (`report`, `note_runner`) name the attempt: a runner that
lost its attempt learns it from its next word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Column, Connection, Row, and_, func, insert, select, union_all, update

from tasks import idempotency, outbox, quotas, totals
from tasks.census import Census
from tasks.census import take as take_census
from tasks.condition import Condition
from tasks.disk import BALLAST_FILE, Ballast, Demand
from tasks.drain import FACT as DRAIN
from tasks.ended import Ended
from tasks.estimate import Learned, Lesson
from tasks.idempotency import IdempotencyKey
from tasks.keys import ApiKeys
from tasks.learning import learn, learned
from tasks.model import CancelWanted, Event, Facts, LostRace, Note, Phase, RunnerId, Status, Task, advance
from tasks.policy import NO_QUOTAS, Quotas
from tasks.rows import changes, row_from_task, task_from_row
from tasks.schema import open_database, tasks
from tasks.service_state import ServiceState
from tasks.turns import NOTHING_AHEAD, Backlog, Lines, Queue
from tasks.upgrade import make_ready
from tasks.uploads import Uploads
from tasks.webhook_secrets import WebhookSecrets
from utils.failpoint import Point, reach

T = TypeVar("T")

_AT_ONCE = 500
"""Values in one query; SQLite has a limit."""


class QueueFull(Exception):
    """As many tasks wait as are allowed to."""


def utc_now() -> datetime:
    return datetime.now(UTC)


class Store:
    """All reads and writes of one database. Safe to share between threads; not to carry over a fork.

    The database is first brought to this release, which raises DataRefused where that cannot be. Without `prepare` it
    is taken as it is: a runner may find that of a newer release, and goes on with it.
    """

    def __init__(
        self,
        url: str,
        data: Path,
        now: Callable[[], datetime] = utc_now,
        busy_seconds: float = 30.0,
        ballast_bytes: int = 0,
        prepare: bool = True,
        tenant_quotas: Quotas = NO_QUOTAS,
    ) -> None:
        self._engine = open_database(url, busy_seconds)
        self._writing = self._engine.execution_options(write=True)
        self._now = now
        self._quotas, self._lines = tenant_quotas, Lines()
        self.ballast = Ballast(data / BALLAST_FILE, ballast_bytes)
        self.state = ServiceState(self._engine, now)
        self.keys = ApiKeys(self._engine, now)
        self.outbox = outbox.Outbox(self._engine, now)
        self.webhook_secrets = WebhookSecrets(self._engine, now)
        self.condition = Condition(self._engine)
        self.uploads = Uploads(self._engine, now, tenant_quotas)
        self.ended = Ended(self._engine, now, self.ballast)
        self.queue = Queue(self._engine, now, tenant_quotas.running_tasks)
        if prepare:
            make_ready(self._engine, data, lend=self.ballast.lend)

    def changes(self) -> Callable[[], bool]:
        """Return a function that says whether anyone else committed since it was last called.

        It owns a connection of its own, on which nothing is ever written: SQLite's data_version counts the commits of
        all others, in this process and in any other.
        """
        connection = self._engine.raw_connection()
        connection.detach()
        last = -1

        def changed() -> bool:
            nonlocal last
            now = connection.cursor().execute("PRAGMA data_version").fetchone()[0]
            before, last = last, now
            return bool(now != before)

        return changed

    def close(self) -> None:
        self._engine.dispose()

    # --- accepting -----------------------------------------------------------------------------------------------

    def add(
        self,
        prepare: Callable[[Backlog, datetime], Task],
        answer: Callable[[Task, int], str],
        *,
        priority: int,
        max_queued: int,
        tenant: str,
        key: IdempotencyKey | None = None,
    ) -> tuple[Task, int]:
        """Insert the task that `prepare` makes of the queue as it is, and its idempotency key with the answer.

        All in one transaction, so that the time, the position and the estimate are of the moment that counts. Returns
        the task and its position in the queue, from 1. Raises QueueFull or QuotaExceeded;
        AlreadyAccepted or KeyReused where the key was seen.
        """
        with self._writing.begin() as db:
            if key is not None:
                idempotency.check(db, tenant, key)
            if self._count(db, Status.QUEUED) >= max_queued:
                raise QueueFull
            ahead = self._lines.read(db, self._now()).before_new(priority, tenant)
            task = prepare(ahead, self._now())
            quotas.take(db, self._quotas, task, self._now())
            seq = db.execute(insert(tasks).values(row_from_task(task)).returning(tasks.c.seq)).scalar_one()
            totals.add(db, totals.submission(task))
            task, position = replace(task, seq=seq), ahead.tasks + 1
            if key is not None:
                idempotency.keep(db, tenant, key, task.id, answer(task, position))
            reach(Point.ROW_WRITTEN)
            return task, position

    def check_quotas(self, tenant: str, more_bytes: int | None = None) -> None:
        """Raise QuotaExceeded where the tenant may not store `more_bytes` (None: may have no further task wait)."""
        with self._engine.begin() as db:
            if more_bytes is None:
                quotas.check_tasks(db, self._quotas, tenant)
            else:
                quotas.check_bytes(db, self._quotas, tenant, more_bytes)

    def check_key(self, tenant: str, key: IdempotencyKey) -> None:
        """Raise AlreadyAccepted or KeyReused where the key was seen; a look before work is spent on a request."""
        with self._engine.begin() as db:
            idempotency.check(db, tenant, key)

    def check_asked(self, tenant: str, key: str, asked: str) -> None:
        """Raise AlreadyAccepted where the key was seen with the same words; a look before any medium is touched."""
        with self._engine.begin() as db:
            idempotency.check_asked(db, tenant, key, asked)

    def knows_key(self, tenant: str, key: str) -> bool:
        """Say whether a request with this idempotency key was accepted, whatever it asked for."""
        with self._engine.begin() as db:
            return idempotency.find(db, tenant, key) is not None

    # --- reading -------------------------------------------------------------------------------------------------

    def get(self, task_id: str) -> Task | None:
        with self._engine.begin() as db:
            return self._read(db, task_id)

    def get_with_backlog(self, task_id: str) -> tuple[Task, Backlog] | None:
        """Return a task and, of the same moment, what stands before it in the queue (nothing once it started)."""
        with self._engine.begin() as db:
            task = self._read(db, task_id)
            return (task, self._ahead_of(db, [task])[0]) if task else None

    def page(
        self, tenant: str | None, statuses: Sequence[Status], limit: int, before_seq: int | None
    ) -> list[tuple[Task, Backlog]]:
        """Return up to `limit` of a tenant's tasks with their backlogs, newest first, older than `before_seq`.

        `tenant` None is all tenants.
        """
        newest = select(tasks.c.seq).order_by(tasks.c.seq.desc()).limit(limit)
        if tenant is not None:
            newest = newest.where(tasks.c.tenant == tenant)
        if before_seq is not None:
            newest = newest.where(tasks.c.seq < before_seq)
        # Each status by itself: an index then leads to the few failed ones of many tasks.
        parts = [newest.where(tasks.c.status == status.value) for status in set(statuses)] or [newest]
        seqs = union_all(*(select(part.subquery().c.seq) for part in parts))
        query = select(tasks).where(tasks.c.seq.in_(seqs)).order_by(tasks.c.seq.desc()).limit(limit)
        with self._engine.begin() as db:
            found = [task_from_row(row) for row in db.execute(query)]
            return list(zip(found, self._ahead_of(db, found), strict=True))

    def processing(self) -> list[Task]:
        running = select(tasks).where(tasks.c.status == Status.PROCESSING.value)
        with self._engine.begin() as db:
            return [task_from_row(row) for row in db.execute(running)]

    def counts(self) -> dict[Status, int]:
        """Return how many tasks are queued and how many are processing."""
        with self._engine.begin() as db:
            return {status: self._count(db, status) for status in (Status.QUEUED, Status.PROCESSING)}

    def census(self) -> Census:
        """Return what all rows tell at this moment."""
        with self._engine.begin() as db:
            return take_census(db, self._now())

    def known(self, task_ids: Sequence[str]) -> set[str]:
        """Return those of `task_ids` that have a row."""
        with self._engine.begin() as db:
            return {row.id for row in _of(db, task_ids, tasks.c.id)}

    def moments(self, task_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return, of those of `task_ids` that have a row, the version and the position in the queue, 0 for none."""
        with self._engine.begin() as db:
            found = list(_of(db, task_ids, tasks.c.id, tasks.c.seq, tasks.c.version, tasks.c.status))
            queued = {row.seq for row in found if row.status == Status.QUEUED.value}
            places = self._lines.read(db, self._now()).places(queued) if queued else {}
            return {row.id: (row.version, places.get(row.seq, 0)) for row in found}

    def learned(self, profile: str) -> Learned | None:
        """Return what finished tasks taught about a profile (`engine/profile`)."""
        with self._engine.begin() as db:
            return learned(db, profile)

    def demand(self) -> Demand:
        """Return what the tasks that are queued or processing may still write."""
        with self._engine.begin() as db:
            return quotas.demand(db, quotas.OPEN)

    # --- the life of a task --------------------------------------------------------------------------------------

    def happen(self, task: Task, event: Event, facts: Facts | None = None) -> Task:
        """Make `event` happen to `task` as the caller read it.

        Raises LostRace when it has changed since, or when it is to start while the service drains.
        """

        def work(db: Connection) -> Task:
            # Asked for the time once it has the lock: what ends is settled in the order of the ends' times, once.
            after = advance(task, event, self._now(), facts)
            if event is Event.CLAIM and self.state.seen_by(db, DRAIN) is not None:
                raise LostRace(f"task {task.id} may not start while the service drains")
            if event is Event.CANCEL:
                quotas.give_back(db, self._quotas, task)
            return self._write(db, task, after)

        return self._tell(work)

    def finish(self, task_id: str, attempt: int, event: Event, facts: Facts, lesson: Lesson | None = None) -> Task:
        """End an attempt that the caller owns, whatever was reported of it since it was read.

        Who asked for a cancel was told 202 and gets `cancelled`, also when the video was ready in the same moment: then
        this raises CancelWanted and writes nothing, for a cancelled task keeps no result. Raises LostRace when the
        attempt is no longer the caller's; not where it is completed already, as by a commit that raised and was made.
        """

        def work(db: Connection) -> Task:
            task = self._read(db, task_id)
            if event is Event.COMPLETE and task and (task.status, task.attempt) == (Status.COMPLETED, attempt):
                return task
            return self._finish(db, self._owned(db, task_id, attempt), event, facts, lesson)

        return self._tell(work)

    def _finish(self, db: Connection, task: Task, event: Event, facts: Facts, lesson: Lesson | None) -> Task:
        if task.cancel_requested and event is Event.COMPLETE:
            raise CancelWanted
        if task.cancel_requested:
            event, facts = Event.CANCEL, Facts()
        if lesson is not None and event is Event.COMPLETE:
            learn(db, lesson)
        return self._write(db, task, advance(task, event, self._now(), facts), lesson)

    def request_cancel(self, task: Task) -> Task:
        """Flag a processing task to be cancelled. Raises LostRace when it has changed since it was read."""
        if task.cancel_requested:
            return task
        # updated_at stays: the ETA counts from it, and this says nothing about the ETA.
        after = replace(task, cancel_requested=True, version=task.version + 1)
        return self._tell(lambda db: self._write(db, task, after))

    def report(
        self,
        task_id: str,
        attempt: int,
        *,
        phase: Phase,
        progress: float,
        eta_seconds: float,
        notes: Sequence[Note] = (),
    ) -> Task:
        """Tell how far an attempt is. Raises LostRace when the attempt is no longer the caller's."""
        with self._writing.begin() as db:
            task = self._owned(db, task_id, attempt)
            now = self._now()
            after = replace(
                task, phase=phase, progress=max(task.progress, min(progress, 1.0)), eta_seconds=max(eta_seconds, 0.0),
                notes=task.notes + tuple(notes), version=task.version + 1, updated_at=now, heartbeat_at=now,
            )  # fmt: skip
            return self._write(db, task, after)

    def beat(self, task_id: str, attempt: int) -> None:
        """Say that an attempt's runner lives. Nothing that clients see changes. Raises LostRace like `report`."""
        self._set_owned(task_id, attempt, heartbeat_at=self._now())

    def note_runner(self, task_id: str, attempt: int, runner: RunnerId) -> None:
        """Record which process owns an attempt. Raises LostRace when the attempt is over."""
        self._set_owned(task_id, attempt, runner=asdict(runner))

    def _set_owned(self, task_id: str, attempt: int, **values: object) -> None:
        owned = and_(tasks.c.id == task_id, tasks.c.attempt == attempt, tasks.c.status == Status.PROCESSING.value)

        def work(db: Connection) -> None:
            if db.execute(update(tasks).where(owned).values(values)).rowcount != 1:
                raise LostRace

        self._tell(work)

    # --- parts ---------------------------------------------------------------------------------------------------

    def _tell(self, work: Callable[[Connection], T]) -> T:
        """Do `work` in a writing transaction, for which the disk shall never be too full."""

        def once() -> T:
            with self._writing.begin() as db:
                return work(db)

        return self.ballast.lend(once)

    def _read(self, db: Connection, task_id: str) -> Task | None:
        row = db.execute(select(tasks).where(tasks.c.id == task_id)).first()
        return None if row is None else task_from_row(row)

    def _owned(self, db: Connection, task_id: str, attempt: int) -> Task:
        task = self._read(db, task_id)
        if task is None or task.status is not Status.PROCESSING or task.attempt != attempt:
            raise LostRace
        return task

    def _write(self, db: Connection, before: Task, after: Task, lesson: Lesson | None = None) -> Task:
        as_read = and_(
            tasks.c.id == before.id, tasks.c.status == before.status.value, tasks.c.version == before.version,
            tasks.c.attempt == before.attempt,
        )  # fmt: skip
        if db.execute(update(tasks).where(as_read).values(changes(before, after))).rowcount != 1:
            raise LostRace
        totals.add(db, totals.change(before, after, lesson.load_seconds if lesson else None))
        if after.status.ended:
            outbox.put(db, after, self._now())
        return after

    def _count(self, db: Connection, status: Status) -> int:
        return db.execute(select(func.count()).select_from(tasks).where(tasks.c.status == status.value)).scalar_one()

    def _ahead_of(self, db: Connection, found: Sequence[Task]) -> list[Backlog]:
        """Return what stands before each of the tasks: nothing once it has started."""
        queued = {task.seq for task in found if task.status is Status.QUEUED}
        ahead = self._lines.read(db, self._now()).before(queued) if queued else {}
        return [ahead.get(task.seq, NOTHING_AHEAD) for task in found]


def _of(db: Connection, task_ids: Sequence[str], *columns: Column[Any]) -> Iterator[Row[Any]]:
    """Yield these columns of those of `task_ids` that have a row."""
    for start in range(0, len(task_ids), _AT_ONCE):
        yield from db.execute(select(*columns).where(tasks.c.id.in_(task_ids[start : start + _AT_ONCE])))
