"""What a tenant has of its quotas, asked in the transaction that adds to it.

Seconds of video are kept by tenant and UTC day, for a task that is deleted was made all the same. Those of a task that
is cancelled before it ever started are given back.
"""

from __future__ import annotations

from datetime import datetime, time, timedelta

from sqlalchemy import ColumnElement, Connection, delete, func, insert, or_, select, update

from tasks.disk import Demand
from tasks.model import Status, Task
from tasks.policy import Quotas
from tasks.schema import tasks, uploads, video_days

RETRY_SECONDS = 30
"""When to ask again where a task that starts would make room."""

OPEN = tasks.c.status.in_([status.value for status in Status if not status.ended])


class QuotaExceeded(Exception):
    """The tenant has all that it may have; the text is for people. `retry_seconds` is None where waiting is no use."""

    def __init__(self, text: str, retry_seconds: int | None = None) -> None:
        super().__init__(text)
        self.retry_seconds = retry_seconds


def demand(db: Connection, *which: ColumnElement[bool]) -> Demand:
    """Return what the tasks of which all of `which` is true may write in all."""
    frames, width, height = (tasks.c.plan[name].as_integer() for name in ("frames", "width", "height"))
    query = select(func.count(), func.sum(frames), func.sum(frames * width * height)).where(*which)
    number, all_frames, pixels = db.execute(query).one()
    return Demand(number, all_frames or 0, pixels or 0)


def take(db: Connection, quotas: Quotas, task: Task, now: datetime) -> None:
    """Count a new task for its tenant. Raises QuotaExceeded."""
    check_tasks(db, quotas, task.tenant)
    check_bytes(db, quotas, task.tenant, Demand.of(task.plan).bytes)
    if quotas.video_seconds:
        _take_video(db, quotas.video_seconds, task, now)


def give_back(db: Connection, quotas: Quotas, task: Task) -> None:
    """Give back the video of a task that was cancelled before it ever started."""
    if quotas.video_seconds and task.attempt == 0:
        left = video_days.c.seconds - task.plan.video_seconds
        db.execute(update(video_days).where(*_day(task.tenant, task.submit_time)).values(seconds=left))


def check_tasks(db: Connection, quotas: Quotas, tenant: str) -> None:
    """Raise QuotaExceeded where no further task of the tenant may wait."""
    if not quotas.queued_tasks:
        return
    waiting = select(func.count()).where(tasks.c.tenant == tenant, tasks.c.status == Status.QUEUED.value)
    if db.execute(waiting).scalar_one() >= quotas.queued_tasks:
        raise QuotaExceeded(f"{quotas.queued_tasks} tasks of one tenant may wait; try again later", RETRY_SECONDS)


def check_bytes(db: Connection, quotas: Quotas, tenant: str, more: int) -> None:
    """Raise QuotaExceeded where the tenant may not keep `more` bytes.

    Uploads count as they were sent, ended tasks as their files were counted, and others with all that they may write.
    """
    if not quotas.stored_bytes:
        return
    uploaded = select(func.coalesce(func.sum(uploads.c.size_bytes), 0)).where(uploads.c.tenant == tenant)
    own = tasks.c.tenant == tenant
    counted = select(func.coalesce(func.sum(tasks.c.stored_bytes), 0)).where(own)
    yet = demand(db, own, or_(OPEN, tasks.c.stored_bytes.is_(None))).bytes
    used = int(db.execute(uploaded).scalar_one()) + int(db.execute(counted).scalar_one()) + yet
    if used + more > quotas.stored_bytes:
        raise QuotaExceeded(f"{quotas.stored_bytes} bytes may be stored for one tenant; delete tasks that have ended")


def _take_video(db: Connection, most: int, task: Task, now: datetime) -> None:
    wanted = task.plan.video_seconds
    used = db.execute(select(video_days.c.seconds).where(*_day(task.tenant, now))).scalar() or 0.0
    if used + wanted > most:
        tomorrow = datetime.combine(now.date() + timedelta(days=1), time(), now.tzinfo)
        helps = wanted <= most
        text = f"one tenant may submit {most} seconds of video a day, and this is one of {wanted:g}; {used:g} are used"
        raise QuotaExceeded(text, int((tomorrow - now).total_seconds()) + 1 if helps else None)
    db.execute(delete(video_days).where(video_days.c.tenant == task.tenant))
    db.execute(insert(video_days).values(tenant=task.tenant, day=f"{now:%Y-%m-%d}", seconds=used + wanted))


def _day(tenant: str, moment: datetime) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return video_days.c.tenant == tenant, video_days.c.day == f"{moment:%Y-%m-%d}"
