"""The checker finds each kind of wrong; a checker that finds nothing proves nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.checker import FULL, Event, Final, Outcome, violations

GOOD = [
    Event(0.0, "accepted", {"key": "k", "task": "a"}),
    Event(0.1, "accepted", {"key": "k", "task": "a"}),
    Event(0.2, "seen", {"task": "a", "status": "queued", "attempt": 0}),
    Event(0.3, "seen", {"task": "a", "status": "processing", "attempt": 1}),
    Event(0.4, "seen", {"task": "a", "status": "queued", "attempt": 1}),
    Event(0.5, "seen", {"task": "a", "status": "completed", "attempt": 2}),
    Event(0.6, "accepted", {"key": "l", "task": "b"}),
    Event(0.7, "deleted", {"task": "b"}),
]
END = Outcome({"a": Final("completed", 2, True)}, frozenset("b"), [("a", 1), ("a", 2)], [], [], 2)


def seen(status: str, attempt: int) -> Event:
    return Event(0.9, "seen", {"task": "a", "status": status, "attempt": attempt})


def test_a_good_history_has_no_violation() -> None:
    assert violations(GOOD, END) == []


@pytest.mark.parametrize(
    ("more", "end", "words"),
    [
        ([Event(1, "accepted", {"key": "m", "task": "c"})], END, "lost"),
        ([Event(1, "accepted", {"key": "k", "task": "b"})], END, "key k"),
        ([Event(1, "deleted", {"task": "a"})], END, "deleted and is there"),
        ([], replace(END, gone=frozenset()), "not told as gone"),
        ([], replace(END, tasks={**END.tasks, "x": Final("failed", 1, False, "oom", "x")}), "accepted for nobody"),
        ([seen("processing", 2)], END, "became processing"),
        ([seen("failed", 2)], END, "became failed"),
        ([], replace(END, tasks={"a": Final("cancelled", 2, False)}), "became cancelled"),
        ([], replace(END, tasks={"a": Final("completed", 2, False)}), "cannot be fetched"),
        ([], replace(END, tasks={"a": Final("completed", 3, True)}, max_attempts=2), "attempted 3"),
        ([], replace(END, starts=[("a", 1), ("a", 1)]), "started twice"),
        ([], replace(END, starts=[("a", 3)]), "attempt 3 of 2"),
        ([], replace(END, taken_twice=["GPU-0 a 1 7"]), "twice at once"),
        ([], replace(END, left=["uploads/x"]), "left behind"),
        ([Event(1, "left", {"task": "a", "pids": [7]})], END, "lived"),
    ],
)
def test_each_wrong_is_found(more: list[Event], end: Outcome, words: str) -> None:
    assert any(words in line for line in violations(GOOD + more, end))


def told(said: str = "completed", **facts: object) -> Event:
    return Event(1.0, "told", {"task": "a", "id": "msg_a", "said": said, "row": said, "taken": True, **facts})


HOOKED = replace(GOOD[0], facts={**GOOD[0].facts, "hooked": True})


def test_an_end_may_be_told_again_and_that_of_a_deleted_task_not_at_all() -> None:
    gone = Event(0.6, "accepted", {"key": "l", "task": "b", "hooked": True})
    history = [HOOKED, *GOOD[1:], gone, told(taken=False), told(), told(row=None)]
    assert violations(history, END) == []


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([HOOKED], "never told"),
        ([HOOKED, told(taken=False)], "never told"),
        ([HOOKED, told(), told(id="msg_x")], "was told as ['msg_a', 'msg_x']"),
        ([HOOKED, told(), told(task="b")], "several tasks"),
        ([HOOKED, told("failed")], "told as failed"),
        ([HOOKED, told(row="processing")], "while it was processing"),
        ([HOOKED, told("processing")], "told as processing"),
        ([told()], "nobody who asked"),
    ],
)
def test_each_wrong_word_of_an_end_is_found(events: list[Event], words: str) -> None:
    assert any(words in line for line in violations(GOOD + events, END))


@pytest.mark.parametrize(
    ("path", "end", "words"),
    [
        ([("processing", 1)], Final("processing", 1, False), "for ever"),
        ([("processing", 2), ("queued", 1)], Final("failed", 2, False), "attempt 1"),
        ([("processing", 1)], Final("failed", 1, True), "can be fetched"),
        ([("processing", 1)], Final("cancelled", 1, False), "by nobody"),
    ],
)
def test_each_wrong_end_is_found(path: list[tuple[str, int]], end: Final, words: str) -> None:
    history = [GOOD[0], *(seen(status, attempt) for status, attempt in path)]
    found = violations(history, Outcome({"a": end}, frozenset(), [], [], [], 2))
    assert any(words in line for line in found)


def failed(code: str | None, reason: str | None, attempt: int = 1, status: str = "failed") -> list[str]:
    """Return what is found of a task that ended so after one of its engines was killed on a disk that was full."""
    history = [Event(0.0, "accepted", {"key": "k", "task": "a", "engine": "short"}), *(CAUSES if attempt else [])]
    end = Final(status, attempt, status == "completed", code, reason)
    return violations(history, Outcome({"a": end}, frozenset(), [], [], [], 2))


CAUSES = [Event(0.1, "kill", {"kind": "engine"}), Event(0.2, FULL, {})]


def test_a_failure_with_a_cause_and_a_reason_is_none() -> None:
    for code, attempt in (("engine_failed", 1), ("disk_full", 1), ("interrupted", 2)):
        assert failed(code, "it was so", attempt) == []


@pytest.mark.parametrize(
    ("code", "reason", "attempt", "status", "words"),
    [
        (None, None, 1, "failed", "told None"),
        ("engine_failed", "", 1, "failed", "told engine_failed"),
        ("engine_failed", "left over", 1, "completed", "completed and told"),
        ("interrupted", "killed", 1, "failed", "for no cause, interrupted"),
        ("engine_failed", "exit 1", 0, "failed", "for no cause, engine_failed"),
        ("disk_full", "no room", 0, "failed", "for no cause, disk_full"),
        ("hung", "silent", 1, "failed", "for no cause, hung"),
        ("engine_failed", "the service failed while it looked", 1, "failed", "for no cause"),
    ],
)
def test_each_failure_without_a_cause_or_a_reason_is_found(
    code: str | None, reason: str | None, attempt: int, status: str, words: str
) -> None:
    assert any(words in line for line in failed(code, reason, attempt, status))
