"""Which queued task goes where, now. Pure: no clock, no file, no process; busy slots are derived from running rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.model import Task


@dataclass(frozen=True, slots=True)
class Host:
    """What one machine can run side by side."""

    cpu_slots: int


@dataclass(frozen=True, slots=True)
class Placement:
    task: Task
    slot: str


def choose(queued: Sequence[Task], running: Sequence[Task], host: Host) -> list[Placement]:
    """Return the placements to make now: tasks of `queued`, which is in the order of turn, on slots nobody holds."""
    busy = {task.slot for task in running}
    free = [slot for slot in cpu_slots(host) if slot not in busy]
    return [Placement(task, slot) for task, slot in zip(queued, free, strict=False)]


def cpu_slots(host: Host) -> list[str]:
    return [f"cpu-{number}" for number in range(host.cpu_slots)]
