"""Draining: the operator's word that nothing new is accepted or started until it is taken back.

It is a row, so it holds in every process of the service and through its restarts. What runs goes on, and what is queued
waits. A claim looks at the row in its own transaction (`Store.happen`): once `begin` has returned, nothing starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from tasks.service_state import ServiceState

FACT = "drain"
"""The name under which the service's state holds it."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Since when the service drains, and why; `reason` may be empty."""

    since: datetime
    reason: str

    def __str__(self) -> str:
        since = f"{self.since:%Y-%m-%d %H:%M:%S} UTC"
        return f"draining since {since}" + (f": {self.reason}" if self.reason else "")


def begin(state: ServiceState, reason: str, now: datetime) -> Drain:
    """Drain from now on. A drain that is on keeps its beginning, and its reason unless a new one is given."""
    before = current(state)
    drain = Drain(before.since if before else now, reason or (before.reason if before else ""))
    state.set(FACT, {"since": drain.since.isoformat(), "reason": drain.reason})
    return drain


def end(state: ServiceState) -> bool:
    """Take new work again; return whether the service was draining."""
    was_on = current(state) is not None
    state.set(FACT, None)
    return was_on


def current(state: ServiceState) -> Drain | None:
    """Return the drain that is on, or None."""
    return _drain(state.get(FACT))


def seen_by(db: Connection) -> Drain | None:
    """Return what `current` does, within a transaction of the caller's."""
    return _drain(ServiceState.seen_by(db, FACT))


def _drain(value: dict[str, Any] | None) -> Drain | None:
    return None if value is None else Drain(datetime.fromisoformat(value["since"]), value["reason"])
