"""GPUs between two tasks: what is held back, until when, and what a new scheduler knows of it."""

from __future__ import annotations

from datetime import timedelta

from tasks.fit import Card
from tasks.settling import Loan, from_state, lend, settle, settling, states, to_state
from tests.conftest import NOON

PATIENCE = timedelta(seconds=60)
LENT = {"GPU-0": Loan(79.0)}


def card(free: float) -> list[Card]:
    return [Card("GPU-0", free, 80.0, 9.0)]


def test_a_gpu_is_held_back_from_its_tasks_end_until_its_memory_is_back() -> None:
    busy = settle(LENT, {"GPU-0"}, card(5.0), NOON, PATIENCE)
    assert (settling(busy), states(busy, ["GPU-0"])) == (frozenset(), {"GPU-0": "busy"})
    ended = settle(busy, (), card(5.0), NOON, PATIENCE)
    assert (settling(ended), states(ended, ())) == ({"GPU-0"}, {"GPU-0": "settling"})
    assert settle(ended, (), card(78.6), NOON + timedelta(seconds=1), PATIENCE) == {}


def test_what_does_not_come_back_is_overdue_and_told_of_until_it_does() -> None:
    ended = settle(LENT, (), card(5.0), NOON, PATIENCE)
    late = settle(ended, (), card(5.0), NOON + PATIENCE, PATIENCE)
    assert (settling(late), states(late, ())) == (frozenset(), {"GPU-0": "held"})
    assert settle(late, (), card(79.0), NOON + 2 * PATIENCE, PATIENCE) == {}


def test_a_clock_that_is_set_back_keeps_no_gpu_from_the_next_task() -> None:
    ended = settle(LENT, (), card(5.0), NOON, PATIENCE)
    late = settle(ended, (), card(5.0), NOON + PATIENCE, PATIENCE)
    yesterday = NOON - timedelta(days=1)
    assert settling(settle(late, (), card(5.0), yesterday, PATIENCE)) == frozenset(), "it was waited for already"
    again = settle(ended, (), card(5.0), yesterday, PATIENCE)
    assert settling(again) == {"GPU-0"}
    assert settling(settle(again, (), card(5.0), yesterday + PATIENCE, PATIENCE)) == frozenset()


def test_a_gpu_that_is_not_seen_has_not_given_its_memory_back() -> None:
    assert settling(settle(LENT, (), [], NOON, PATIENCE)) == {"GPU-0"}


def test_a_gpu_that_is_lent_anew_is_measured_anew() -> None:
    ended = settle(LENT, (), card(5.0), NOON, PATIENCE)
    assert lend(ended, card(5.0), ["GPU-0"]) == {"GPU-0": Loan(5.0)}


def test_the_next_scheduler_reads_what_the_last_one_knew() -> None:
    ended = settle(LENT, (), card(5.0), NOON, PATIENCE) | {"GPU-1": Loan(40.0, NOON, overdue=True), "GPU-2": Loan(1.0)}
    assert from_state(to_state(ended)) == ended
    assert (from_state(None), to_state({})) == ({}, None)
