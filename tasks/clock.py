"""Whether the wall clock can be trusted, asked before anything is removed because of its age.

A clock that jumps makes every file look old at once. So the wall clock is held against one that only counts seconds,
from beat to beat: where they part by more than JUMP, nothing is removed until they agree again, nor for GRACE from then
on, for what ended under the wrong time has a wrong age. A process that takes over compares with the stored beat; after
a reboot the counter says nothing, and a jump looks like a long absence: past ABSENCE, nothing is removed for GRACE, so
that a person may notice. A machine that sleeps has no jump: the counting clock counts its sleep.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tasks.service_state import ServiceState
from utils.process import boot_id

JUMP = timedelta(minutes=5)
ABSENCE = timedelta(days=7)
GRACE = timedelta(hours=24)

BEAT = "retention_beat"
STOPPED = "retention_stopped"

_JUMPED = (
    "the clock of this host jumped to {:%Y-%m-%d %H:%M} UTC; nothing that expired is removed until it is right again, "
    "or the service is restarted"
)

_COUNTER = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def counted() -> timedelta:
    """Return the time since some fixed moment, sleep included, as no one can set it."""
    return timedelta(seconds=time.clock_gettime(_COUNTER))


@dataclass(slots=True)
class ClockGuard:
    """One process's watch on the wall clock; what it found is kept in `state`, for health and for the next process."""

    state: ServiceState
    wall: Callable[[], datetime]
    steady: Callable[[], timedelta] = counted
    boot: str = field(default_factory=boot_id)
    checked: datetime = field(default=datetime.min.replace(tzinfo=UTC), init=False)
    _last: tuple[datetime, timedelta] | None = field(default=None, init=False)
    _hold: timedelta = field(default=timedelta(0), init=False)
    _jumped: bool = field(default=False, init=False)

    def beat(self) -> str:
        """Compare the clocks and note the time; return why nothing may be removed now, or an empty text.

        `checked` is then the time that was compared: whoever asks the clock again may meet a jump that nobody saw.
        """
        self.checked = wall = self.wall()
        steady = self.steady()
        if self._last is None:
            self._hold = self._begin(wall, steady)
        else:
            passed = steady - self._last[1]
            if abs((wall - self._last[0]) - passed) > JUMP:
                if not self._jumped:  # this process may die before the clock is right again
                    self._keep(*self._last, GRACE)
                self._jumped = True
                return self._tell(_JUMPED.format(wall))
            self._hold = GRACE if self._jumped else max(timedelta(0), self._hold - passed)
            self._jumped = False
        self._last = wall, steady
        self._keep(wall, steady, self._hold)
        return self._tell(self._held())

    def distrust(self) -> None:
        """Let nothing be removed for GRACE: there is what only a clock can have made that was wrong between beats."""
        if self._last is not None:
            self._hold = GRACE
            self._keep(*self._last, GRACE)
            self._tell(self._held())

    def _keep(self, wall: datetime, steady: timedelta, hold: timedelta) -> None:
        """Store when the clock was right, and for how long from now on nothing may be removed, for the next process."""
        self.state.set(BEAT, {
            "at": wall.timestamp(), "hold_seconds": hold.total_seconds(), "counted": steady.total_seconds(),
            "boot": self.boot,
        })  # fmt: skip

    def _begin(self, wall: datetime, steady: timedelta) -> timedelta:
        """Return for how long nothing may be removed, going by the last beat of any process before this one."""
        before = self.state.get(BEAT)
        if before is None:
            return timedelta(0)
        absence = wall - datetime.fromtimestamp(before["at"], UTC)
        jumped = before.get("boot") == self.boot and abs(absence - (steady - _seconds(before["counted"]))) > JUMP
        return GRACE if abs(absence) > ABSENCE or jumped else _seconds(before["hold_seconds"])

    @property
    def held(self) -> bool:
        """Whether nothing may be removed at present, as of the last word of this guard."""
        return bool(self._hold)

    def _held(self) -> str:
        if not self._hold:
            return ""
        hours = self._hold / timedelta(hours=1)
        return (
            f"the service was away for long, or its clock was wrong; nothing that expired is removed for {hours:.1f} h"
        )

    def _tell(self, reason: str) -> str:
        if (self.state.get(STOPPED) or {}).get("reason", "") != reason:
            self.state.set(STOPPED, {"reason": reason} if reason else None)
        return reason


def _seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def stopped_reason(state: ServiceState) -> str:
    """Return why nothing that expired is removed at present, or an empty text."""
    return str((state.get(STOPPED) or {}).get("reason", ""))
