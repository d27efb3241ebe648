"""Named points in the life of a task at which a test makes a process of the service die, fail or hang.

A crash between two steps is not to be met by chance: `reach` stands between them, and the one point that is armed acts
there, once in the life of a data folder, so that whoever takes over gets past it. Unarmed, it is one comparison.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_HANG_SECONDS = 600.0


class Point(StrEnum):
    """Every point, in the order in which a task meets them."""

    # in the web process that accepts
    INPUTS_WRITTEN = "inputs-written"
    ROW_WRITTEN = "row-written"  # not yet committed
    ROW_COMMITTED = "row-committed"  # the scheduler was not woken yet
    # in the web process that schedules
    ATTEMPT_RESERVED = "attempt-reserved"
    CLAIMED = "claimed"
    RUNNER_SPAWNED = "runner-spawned"
    # in the spawner
    RUNNER_FORKED = "runner-forked"  # the scheduler was not answered yet
    # in the runner
    RUNNER_BEGAN = "runner-began"
    ENGINE_STARTED = "engine-started"  # the row does not know the runner yet
    INTRODUCED = "introduced"
    ENGINE_ENDED = "engine-ended"
    VERIFIED = "verified"
    STAGED = "staged"
    REVEALED = "revealed"
    END_KEPT = "end-kept"  # in a file, not yet in the row
    ROW_ENDED = "row-ended"
    # in the web process that reaps or deletes
    ORPHAN_KILLED = "orphan-killed"
    RECORD_DELETED = "record-deleted"
    # in the web process that tells of ends
    MESSAGE_CLAIMED = "message-claimed"
    MESSAGE_SENT = "message-sent"  # the row does not know yet


class Action(StrEnum):
    KILL = "kill"  # SIGKILL of the process itself
    ENOSPC = "enospc"  # an OSError: no space left on the device
    HANG = "hang"


@dataclass(frozen=True, slots=True)
class FailPoint:
    """What happens at which point; `folder` keeps the mark that it did."""

    point: Point
    action: Action
    folder: Path

    @staticmethod
    def parse(text: str, folder: Path) -> FailPoint:
        """Read `name[:action[:folder]]`; `folder` where the text names none. Raises ValueError."""
        name, _, rest = text.partition(":")
        action, _, named = rest.partition(":")
        return FailPoint(Point(name), Action(action or Action.KILL), Path(named) if named else folder)

    def __str__(self) -> str:
        return f"{self.point}:{self.action}:{self.folder}"

    @property
    def mark(self) -> Path:
        """The file that exists once the point has acted."""
        return self.folder / f"failpoint-{self.point}"


_armed: FailPoint | None = None


def arm(text: str) -> None:
    """Arm the point that the setting `failpoint` names in full, in this process; empty: none."""
    global _armed
    _armed = FailPoint.parse(text, Path()) if text else None


def reach(point: Point) -> None:
    """Act where `point` is armed and has not acted yet. May raise OSError, or not return."""
    if _armed is not None and _armed.point is point:
        _act(_armed)


def _act(armed: FailPoint) -> None:
    try:
        armed.mark.touch(exist_ok=False)
    except FileExistsError:
        return
    if armed.action is Action.KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    if armed.action is Action.ENOSPC:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    threading.Event().wait(_HANG_SECONDS)
