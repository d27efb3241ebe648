"""Small facts about the service as a whole that all its processes share and that outlive them: a name, a JSON object.

A fact belongs to one writer (drain: an operator's command; the GPUs that settle: the scheduler), so the last word wins.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, delete, insert, select

from tasks.schema import service_state


class ServiceState:
    """The facts in one database. `now` gives the time that is noted with each."""

    def __init__(self, engine: Engine, now: Callable[[], datetime]) -> None:
        self._engine, self._now = engine, now
        self._writing = engine.execution_options(write=True)

    def get(self, name: str) -> dict[str, Any] | None:
        """Return what was last set under `name`, or None."""
        with self._engine.begin() as db:
            return self.seen_by(db, name)

    @staticmethod
    def seen_by(db: Connection, name: str) -> dict[str, Any] | None:
        """Return what `get` does, within a transaction of the caller's."""
        found = db.execute(select(service_state.c.value).where(service_state.c.name == name))
        value: dict[str, Any] | None = found.scalar()
        return value

    def get_or_set(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        """Return what is set under `name`; where nothing is, set `value`: all processes that ask at once get one."""
        with self._writing.begin() as db:
            found = self.seen_by(db, name)
            if found is None:
                db.execute(insert(service_state).values(name=name, value=value, updated_at=self._now()))
            return value if found is None else found

    def set(self, name: str, value: dict[str, Any] | None) -> None:
        """Set the fact, or remove it with None."""
        with self._writing.begin() as db:
            db.execute(delete(service_state).where(service_state.c.name == name))
            if value is not None:
                db.execute(insert(service_state).values(name=name, value=value, updated_at=self._now()))
