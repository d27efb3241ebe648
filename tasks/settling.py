"""GPUs between two tasks: one is given out again only when its memory is back, or when that has lasted too long. Pure.

An engine's processes are gone when its task ends, but the driver may need a moment to take their memory back, and a
process that nobody could kill keeps it. A GPU whose memory does not come back is used all the same after a while, for
what placement sees free there, and told of until it does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.fit import Card

STATE_NAME = "gpus"
"""Under which name of tasks.service_state the loans are kept."""

_SLACK_GIB = 0.5
"""So much less than before counts as all: contexts of the driver, rounding."""


@dataclass(frozen=True, slots=True)
class Loan:
    """A GPU that was given to a task with `free_gib` of memory free.

    `since` is when the task was seen to have ended, None while it runs; `overdue` whether its memory was waited for in
    vain.
    """

    free_gib: float
    since: datetime | None = None
    overdue: bool = False

    @property
    def settling(self) -> bool:
        return self.since is not None and not self.overdue


Loans = Mapping[str, Loan]
"""By the GPU's UUID."""


def lend(loans: Loans, cards: Sequence[Card], uuids: Collection[str]) -> dict[str, Loan]:
    """Return the loans with those of a task that starts on `uuids`."""
    return {**loans, **{card.uuid: Loan(card.free_gib) for card in cards if card.uuid in uuids}}


def settle(
    loans: Loans, busy: Collection[str], cards: Sequence[Card], now: datetime, patience: timedelta
) -> dict[str, Loan]:
    """Return what is left of the loans, now that `cards` are seen and `busy` ones still have their tasks.

    A card that is not seen, because it is lost or NVML hangs, has not given its memory back.
    """
    free = {card.uuid: card.free_gib for card in cards}
    left = {}
    for uuid, loan in loans.items():
        if uuid in busy:
            left[uuid] = replace(loan, since=None, overdue=False)
        elif free.get(uuid, -1.0) < loan.free_gib - _SLACK_GIB:
            since = min(loan.since or now, now)  # a clock that is set back begins the wait anew, and that is all
            left[uuid] = replace(loan, since=since, overdue=loan.overdue or now - since >= patience)
    return left


def settling(loans: Loans) -> frozenset[str]:
    """Return the GPUs that are not given out for now."""
    return frozenset(uuid for uuid, loan in loans.items() if loan.settling)


def states(loans: Loans, busy: Collection[str]) -> dict[str, str]:
    """Return what GPUs are doing that are not simply free: "busy", "settling", or "held" (what is overdue)."""
    after = {uuid: "held" if loan.overdue else "settling" for uuid, loan in loans.items() if loan.since}
    return {**after, **dict.fromkeys(busy, "busy")}


def to_state(loans: Loans) -> dict[str, Any] | None:
    """Return the loans as JSON, None where there are none."""
    return {
        uuid: {
            "free_gib": loan.free_gib, "since": loan.since.timestamp() if loan.since else None, "overdue": loan.overdue,
        }
        for uuid, loan in loans.items()
    } or None  # fmt: skip


def from_state(state: Mapping[str, Any] | None) -> dict[str, Loan]:
    """Return the loans that `to_state` made JSON of."""
    return {
        uuid: Loan(told["free_gib"], told["since"] and datetime.fromtimestamp(told["since"], UTC), told["overdue"])
        for uuid, told in (state or {}).items()
    }
