"""How long things are kept, and how much a tenant may have. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class Policy:
    """How long things are kept; None or 0: for ever. `uploads` counts from the last use, all else from a task's end."""

    results: timedelta | None
    inputs: timedelta | None
    logs: timedelta | None
    records: timedelta | None
    uploads: timedelta | None
    max_bytes: int = 0
    sweep_every: timedelta = timedelta(seconds=60)

    def expires_at(self, finish_time: datetime | None) -> datetime | None:
        """Return when a task may be removed, or None while that is not known."""
        return None if finish_time is None or self.results is None else finish_time + self.results


@dataclass(frozen=True, slots=True)
class Quotas:
    """How much each tenant may have; 0: as much as there is. `video_seconds` are those submitted in a UTC day.

    `input_bytes` tells what the inputs of a task, by its id, take on the disk, and whether it is just being submitted.
    """

    queued_tasks: int = 0
    running_tasks: int = 0
    stored_bytes: int = 0
    video_seconds: int = 0
    input_bytes: Callable[[str, bool], int] = lambda task_id, is_new: 0


NO_QUOTAS = Quotas()
