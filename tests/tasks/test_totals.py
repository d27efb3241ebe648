"""What has happened in all: exact, written with the change itself, and never less than it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from math import inf

import pytest

from tasks.estimate import Lesson
from tasks.model import OOM_REASON, Event, Facts, LostRace, Note, Priority, Task
from tasks.store import Store
from tasks.totals import BOUNDS, Cause, Growth, Key, Spread, Total, read, sum_of
from tests.tasks.conftest import Clock
from tests.tasks.record_release import smaller
from tests.tasks.test_store import BROKEN, CLAIM, DONE, submit

OWN = ("preview", "preview_cpu")
LESSON = Lesson("preview/preview_cpu", 3.0, 1.0, guess=5.0, first_load=1.0)


def told(store: Store) -> Growth:
    with store._engine.begin() as db:
        return read(db)


def claimed(store: Store, clock: Clock, number: int = 1, waited: float = 0.0) -> Task:
    task = submit(store, number)
    clock.now += timedelta(seconds=waited)
    return store.happen(task, Event.CLAIM, CLAIM)


def test_a_completed_task_is_counted_and_measured_once(store: Store, clock: Clock) -> None:
    task = claimed(store, clock, waited=7.0)
    clock.now += timedelta(seconds=23)
    store.finish(task.id, task.attempt, Event.COMPLETE, DONE, LESSON)
    video = DONE.result.video.duration_seconds
    assert told(store) == {
        Key(Total.SUBMITTED, "preview", "", "normal"): 1,
        Key(Total.STARTED, *OWN): 1,
        Key(Total.ENDED, *OWN, "completed"): 1,
        Key(Total.VIDEO_SECONDS, *OWN): video,
        Key(Spread.WAITING, *OWN, "10.0"): 1,
        Key(sum_of(Spread.WAITING), *OWN): 7,
        Key(Spread.LOADING, *OWN, "5.0"): 1,
        Key(sum_of(Spread.LOADING), *OWN): 3,
        Key(Spread.RENDERING, *OWN, "20.0"): 1,
        Key(sum_of(Spread.RENDERING), *OWN): 20,
        Key(Spread.REALTIME, *OWN, str(next(b for b in map(float, BOUNDS[Spread.REALTIME]) if b >= 23 / video))): 1,
        Key(sum_of(Spread.REALTIME), *OWN): 23 / video,
    }


def test_numbers_add_up_and_outlive_their_tasks(store: Store, clock: Clock) -> None:
    for number in range(1, 5):
        task = claimed(store, clock, number)
        ended = store.finish(task.id, task.attempt, *((Event.COMPLETE, DONE) if number % 2 else (Event.FAIL, BROKEN)))
        store.ended.delete(ended)
    found = told(store)
    assert found[Key(Total.ENDED, *OWN, "completed")] == found[Key(Total.ENDED, *OWN, "failed")] == 2
    assert found[Key(Total.FAILED, *OWN, "engine_failed")] == 2
    assert found[Key(Total.STARTED, *OWN)] == found[Key(Spread.WAITING, *OWN, "0.5")] == 4


def out_of_memory(task: Task) -> Facts:
    lowered = smaller(task).lowered
    return Facts(lowered=replace(lowered, adjustment=replace(lowered.adjustment, reason=OOM_REASON)))


@pytest.mark.parametrize(
    ("facts", "cause"),
    [
        (lambda task: Facts(), Cause.INTERRUPTED),
        (lambda task: Facts(notes=(Note("retried", "again"),)), Cause.RETRIED),
        (out_of_memory, Cause.OOM),
    ],
    ids=list(Cause),
)
def test_another_attempt_is_counted_by_its_cause(
    store: Store, clock: Clock, facts: Callable[[Task], Facts], cause: Cause
) -> None:
    task = claimed(store, clock)
    again = store.happen(task, Event.REQUEUE, facts(task))
    clock.now += timedelta(hours=9)
    store.happen(again, Event.CLAIM, CLAIM)
    found = told(store)
    assert {key.label: n for key, n in found.items() if key.name == Total.REQUEUED} == {cause: 1}
    assert found[Key(Total.STARTED, *OWN)] == 2
    assert found[Key(sum_of(Spread.WAITING), *OWN)] == 9 * 3600, "from when it was queued again"
    assert found[Key(Spread.WAITING, *OWN, str(inf))] == 1


def test_who_lost_the_race_counts_nothing(store: Store, clock: Clock) -> None:
    task = submit(store, priority=Priority.HIGH)
    store.happen(task, Event.CANCEL)
    before = told(store)
    with pytest.raises(LostRace):
        store.happen(task, Event.CLAIM, CLAIM)
    assert told(store) == before
    assert before[Key(Total.SUBMITTED, "preview", "", "high")] == before[Key(Total.ENDED, *OWN, "cancelled")] == 1


def test_progress_and_a_wish_to_cancel_add_nothing(store: Store, clock: Clock) -> None:
    task = claimed(store, clock)
    before = told(store)
    store.beat(task.id, task.attempt)
    store.request_cancel(task)
    assert told(store) == before
