"""What finished tasks taught about the profiles, as rows."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Connection, insert, select, update

from tasks.estimate import Learned, Lesson
from tasks.schema import estimates


def learned(db: Connection, profile: str) -> Learned | None:
    """Return what finished tasks taught about a profile (`engine/profile`)."""
    row = db.execute(select(estimates).where(estimates.c.profile == profile)).first()
    return None if row is None else Learned(**row._mapping)


def learn(db: Connection, lesson: Lesson) -> None:
    """Add a finished task's lesson to what is known of its profile."""
    known = learned(db, lesson.profile)
    merged = asdict((known or Learned.nothing(lesson)).after(lesson))
    if known is None:
        db.execute(insert(estimates).values(merged))
    else:
        db.execute(update(estimates).where(estimates.c.profile == lesson.profile).values(merged))
