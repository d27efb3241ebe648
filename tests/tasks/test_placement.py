"""Who starts, now: a pure choice."""

from __future__ import annotations

from tasks.model import Status
from tasks.placement import Host, choose
from tests.conftest import make_task


def queue(count: int) -> list:
    return [make_task(id=f"t{n}", seq=n) for n in range(1, count + 1)]


def running(*slots: str) -> list:
    return [make_task(id=f"r-{slot}", status=Status.PROCESSING, slot=slot) for slot in slots]


def test_free_slots_go_to_the_tasks_whose_turn_it_is() -> None:
    placed = choose(queue(5), [], Host(cpu_slots=2))
    assert [(p.task.id, p.slot) for p in placed] == [("t1", "cpu-0"), ("t2", "cpu-1")]


def test_a_busy_slot_is_never_given_twice() -> None:
    placed = choose(queue(5), running("cpu-0", "cpu-2"), Host(cpu_slots=3))
    assert [p.slot for p in placed] == ["cpu-1"]


def test_nothing_is_placed_without_a_slot() -> None:
    assert choose(queue(3), running("cpu-0"), Host(cpu_slots=1)) == []
    assert choose(queue(3), [], Host(cpu_slots=0)) == []


def test_a_slot_that_is_no_longer_configured_still_counts_as_its_task_s_own() -> None:
    placed = choose(queue(3), running("cpu-7"), Host(cpu_slots=1))
    assert [p.slot for p in placed] == ["cpu-0"]
