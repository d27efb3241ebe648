"""The life cycle: one table, no way around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.model import (
    TRANSITIONS,
    ErrorCode,
    Event,
    Facts,
    Failure,
    IllegalTransition,
    Note,
    Phase,
    Result,
    Status,
    Task,
    Video,
    advance,
    life_cycle_mermaid,
)  # fmt: skip
from tests.conftest import NOON, make_task

VIDEO = Video(
    width=384,
    height=256,
    fps=25.0,
    frames=290,
    duration_seconds=11.6,
    size_bytes=1,
    sha256="0" * 64,
    video_codec="h264",
    audio_codec="aac",
)
FACTS = {
    Event.CLAIM: Facts(slot="cpu-0", profile="preview_cpu"),
    Event.COMPLETE: Facts(result=Result("video.mp4", "poster.jpg", VIDEO)),
    Event.FAIL: Facts(failure=Failure(ErrorCode.ENGINE_FAILED, "it broke")),
    Event.CANCEL: Facts(),
    Event.REQUEUE: Facts(),
}
LATER = NOON + timedelta(seconds=5)


def walk(task: Task, *events: Event) -> Task:
    for event in events:
        task = advance(task, event, LATER, FACTS[event])
    return task


def test_every_pair_that_is_not_in_the_table_is_refused() -> None:
    refused = 0
    for status in Status:
        for event in Event:
            if (status, event) not in TRANSITIONS:
                with pytest.raises(IllegalTransition):
                    advance(make_task(status=status), event, LATER, FACTS[event])
                refused += 1
    assert refused == len(Status) * len(Event) - len(TRANSITIONS) > 0


def test_terminal_states_have_no_exits() -> None:
    assert {status for status in Status if status.ended} == {Status.COMPLETED, Status.FAILED, Status.CANCELLED}


@given(st.lists(st.sampled_from(Event), max_size=12))
def test_no_history_leaves_a_terminal_state_or_lowers_the_version(events: list[Event]) -> None:
    task = make_task()
    for event in events:
        try:
            after = advance(task, event, LATER, FACTS[event])
        except IllegalTransition:
            continue
        assert not task.status.ended
        assert after.version == task.version + 1
        assert after.attempt == task.attempt + (event is Event.CLAIM)
        assert (after.finish_time is not None) == after.status.ended
        task = after


def test_a_claim_counts_the_attempt_and_starts_the_clock() -> None:
    task = walk(make_task(), Event.CLAIM)
    assert (task.attempt, task.slot, task.phase, task.start_time) == (1, "cpu-0", Phase.PREPARING, LATER)


def test_no_task_ends_before_it_began_however_the_clock_was_set(task_factory: Callable[..., Task]) -> None:
    claim = Facts(slot="cpu-0", profile="preview_cpu")
    early = advance(task_factory(), Event.CANCEL, NOON - timedelta(days=400))
    assert early.finish_time == early.submit_time
    running = advance(task_factory(), Event.CLAIM, NOON + timedelta(hours=1), claim)
    ended = advance(running, Event.CANCEL, NOON - timedelta(days=400))
    assert ended.finish_time == running.start_time == NOON + timedelta(hours=1)


def test_a_requeued_task_keeps_its_turn_and_loses_its_slot_and_progress() -> None:
    task = replace(walk(make_task(seq=7), Event.CLAIM), progress=0.5)
    task = walk(task, Event.REQUEUE)
    assert (task.seq, task.slot, task.runner, task.progress, task.start_time) == (7, None, None, 0.0, None)
    assert walk(task, Event.CLAIM).attempt == 2


def test_completion_reports_full_progress_and_the_result() -> None:
    task = walk(make_task(), Event.CLAIM, Event.COMPLETE)
    assert (task.progress, task.phase, task.result, task.slot) == (1.0, Phase.DONE, FACTS[Event.COMPLETE].result, None)


@pytest.mark.parametrize(
    ("history", "event"),
    [([], Event.CLAIM), ([Event.CLAIM], Event.COMPLETE), ([Event.CLAIM], Event.FAIL)],
    ids=["claim without slot", "completion without result", "failure without reason"],
)
def test_an_event_without_its_facts_is_refused(history: list[Event], event: Event) -> None:
    with pytest.raises(ValueError, match="needs"):
        advance(walk(make_task(), *history), event, LATER, Facts())


def test_notes_add_up(task_factory: Callable[..., Task]) -> None:
    task = task_factory(notes=(Note("preview", "by the preview"),))
    after = advance(task, Event.CLAIM, LATER, replace(FACTS[Event.CLAIM], notes=(Note("no_face", "none found"),)))
    assert [note.code for note in after.notes] == ["preview", "no_face"]


def test_the_picture_shows_every_transition() -> None:
    picture = life_cycle_mermaid()
    assert all(f"{before} --> {after}: {event}" in picture for (before, event), after in TRANSITIONS.items())
