"""What a tenant has of its quotas, asked in the transaction that adds to it.

Seconds of video are kept by tenant and UTC day, for a task that is deleted was made all the same. Those of a task that
is cancelled before it ever started are given back.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, time, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, delete, func, insert, or_, select, update

from tasks.disk import Demand
from tasks.model import Status, Task
from tasks.policy import Quotas
from tasks.schema import tasks, uploads, video_days

RETRY_SECONDS = 30
"""When to ask again where a task that starts would make room."""

_SAMPLE_BYTES, _PIXEL_BYTES = 2, 3
"""Of a canonical recording and a canonical picture: 16 bits a sample, and three colours before they are packed."""

_FACTS = (("samples", "channels"), ("width", "height"))

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
    if quotas.stored_bytes:
        check_bytes(db, quotas, task.tenant, Demand.of(task.plan).bytes + quotas.input_bytes(task.id, True))
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

    Uploads count as they were decoded, or as they were sent where that is more; ended tasks as their files were
    counted; others with their inputs and all that they may write. A recording of ten hours' silence is sent in a few
    kilobytes, and a minute of it takes megabytes.
    """
    if not quotas.stored_bytes:
        return
    own = tasks.c.tenant == tenant
    counted = select(func.coalesce(func.sum(tasks.c.stored_bytes), 0)).where(own)
    uncounted = (own, or_(OPEN, tasks.c.stored_bytes.is_(None)))
    ids = db.execute(select(tasks.c.id).where(*uncounted)).scalars()
    inputs = sum(quotas.input_bytes(task_id, False) for task_id in ids)
    used = _uploaded(db, tenant) + int(db.execute(counted).scalar_one()) + demand(db, *uncounted).bytes + inputs
    if used + more > quotas.stored_bytes:
        raise QuotaExceeded(f"{quotas.stored_bytes} bytes may be stored for one tenant; delete tasks that have ended")


def decoded_bytes(media: Mapping[str, Any]) -> int:
    """Return at most how many bytes a canonical medium takes, by what is known of it."""
    samples, pixels = (int(media.get(one, 0)) * int(media.get(other, 0)) for one, other in _FACTS)
    return samples * _SAMPLE_BYTES + pixels * _PIXEL_BYTES


def _uploaded(db: Connection, tenant: str) -> int:
    samples, pixels = (uploads.c.media[one].as_integer() * uploads.c.media[other].as_integer() for one, other in _FACTS)
    decoded = func.coalesce(samples * _SAMPLE_BYTES, pixels * _PIXEL_BYTES, 0)
    larger = case((decoded > uploads.c.size_bytes, decoded), else_=uploads.c.size_bytes)
    return int(db.execute(select(func.coalesce(func.sum(larger), 0)).where(uploads.c.tenant == tenant)).scalar_one())


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
