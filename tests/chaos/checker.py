"""What must hold of a service after any history of crashes. Pure: a history and a final state in, violations out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

FULL, LIMITED = "disk full", "files limited"
ENDED = ("completed", "failed", "cancelled")
_NEXT = {"queued": {"processing", *ENDED}, "processing": {"queued", *ENDED}}


@dataclass(frozen=True)
class Event:
    """Something that the driver did or saw, `at` seconds after it began.

    `what` is: accepted (key, task, engine, hooked: whether its end is to be told), seen (task, status, attempt), told
    (task, id: of the message, said: the status, row: that of the row then, taken: whether the receiver was content),
    cancel (task), deleted (task), left (task, pids: processes of a task that said it was cancelled), kill (kind), FULL,
    LIMITED; others are for people only.
    """

    at: float
    what: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Final:
    """How a task stands when all is quiet: its row, and whether its video and poster could be fetched whole.

    `code` and `reason` are what was told of a failure.
    """

    status: str
    attempt: int
    fetched: bool
    code: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The final state. `gone` are tasks answered with 410; `starts` the engine's own notes of (task, attempt);
    `taken_twice` its notes of what another process held; `left` files, folders and processes that nobody owns."""

    tasks: dict[str, Final]
    gone: frozenset[str]
    starts: Sequence[tuple[str, int]]
    taken_twice: Sequence[str]
    left: Sequence[str]
    max_attempts: int


def violations(history: Iterable[Event], outcome: Outcome) -> list[str]:
    """Return what was wrong, one line each; nothing when all is well."""
    by_kind: dict[str, list[Event]] = defaultdict(list)
    for event in history:
        by_kind[event.what].append(event)
    asked = {event.facts["task"] for event in by_kind["cancel"]}
    deleted = {event.facts["task"] for event in by_kind["deleted"]}
    return [
        *_accepted(by_kind["accepted"], deleted, outcome),
        *_paths(by_kind["seen"], outcome),
        *_told({event.facts["task"] for event in by_kind["accepted"] if event.facts.get("hooked")}, by_kind, outcome),
        *_ends(asked, outcome),
        *_reasons(by_kind, outcome),
        *_starts(outcome),
        *(f"{event.facts['task']} said it was cancelled, and {event.facts['pids']} lived" for event in by_kind["left"]),
        *(f"taken twice at once: {line}" for line in outcome.taken_twice),
        *(f"left behind: {name}" for name in outcome.left),
    ]


def _accepted(accepted: list[Event], deleted: set[str], outcome: Outcome) -> list[str]:
    found, tasks_of = [], defaultdict(set)
    for event in accepted:
        tasks_of[event.facts["key"]].add(event.facts["task"])
    known = {task for tasks in tasks_of.values() for task in tasks}
    found += [f"key {key} made {sorted(tasks)}" for key, tasks in tasks_of.items() if len(tasks) > 1]
    found += [f"{task} was accepted and is lost" for task in sorted(known - outcome.tasks.keys() - deleted)]
    found += [f"{task} was deleted and is there" for task in sorted(deleted & outcome.tasks.keys())]
    found += [f"{task} was deleted and is not told as gone" for task in sorted(deleted - outcome.gone)]
    return found + [f"{task} has a row and was accepted for nobody" for task in sorted(outcome.tasks.keys() - known)]


def _paths(seen: list[Event], outcome: Outcome) -> list[str]:
    """Look at what each task went through as it was seen, and at the end."""
    paths: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for event in seen:
        paths[event.facts["task"]].append((event.facts["status"], event.facts["attempt"]))
    for task, final in outcome.tasks.items():
        paths[task].append((final.status, final.attempt))
    found = []
    for task, path in paths.items():
        for (before, attempt), (after, later) in pairwise(path):
            if before in ENDED and (after, later) != (before, attempt):
                found.append(f"{task} was {before} and became {after}")
            elif later < attempt or (after != before and after not in _NEXT[before]):
                found.append(f"{task} went from {before}, attempt {attempt}, to {after}, attempt {later}")
    return found


def _told(hooked: set[str], by_kind: dict[str, list[Event]], outcome: Outcome) -> list[str]:
    """Look whether each end was told to whoever asked for that, as it was and not before."""
    told, ids = by_kind["told"], defaultdict(set)
    for event in told:
        ids[event.facts["task"]].add(event.facts["id"])
    shared = [name for name, number in Counter(name for names in ids.values() for name in names).items() if number > 1]
    untold = (outcome.tasks.keys() & hooked) - {event.facts["task"] for event in told if event.facts["taken"]}
    found = [f"{task} was never told" for task in sorted(untold)]
    found += [f"{task} was told as {sorted(names)}" for task, names in ids.items() if len(names) > 1]
    found += [f"{name} told of several tasks" for name in shared]
    found += [f"{task} was told to nobody who asked" for task in sorted((ids.keys() & outcome.tasks.keys()) - hooked)]
    for event in told:
        task, said, row = (event.facts[name] for name in ("task", "said", "row"))
        final = outcome.tasks.get(task)
        if said not in ENDED or (row is not None and row != said) or (final is not None and final.status != said):
            found.append(f"{task} was told as {said} while it was {row}, and is {final.status if final else 'gone'}")
    return found


def _ends(asked: set[str], outcome: Outcome) -> list[str]:
    found = []
    for task, final in outcome.tasks.items():
        if final.status not in ENDED:
            found.append(f"{task} is {final.status} for ever")
        if final.fetched != (final.status == "completed"):
            found.append(f"{task} is {final.status} and its result can{'' if final.fetched else 'not'} be fetched")
        if final.status == "cancelled" and task not in asked:
            found.append(f"{task} was cancelled by nobody")
        if final.attempt > outcome.max_attempts:
            found.append(f"{task} was attempted {final.attempt} times")
    return found


def _reasons(by_kind: dict[str, list[Event]], outcome: Outcome) -> list[str]:
    """Look whether each failed task failed for what was done to it, and for nothing that is the service's own fault."""
    engines = {event.facts["task"]: event.facts.get("engine") for event in by_kind["accepted"]}
    engine_killed = any(event.facts["kind"] == "engine" for event in by_kind["kill"])
    no_room = bool(by_kind[FULL] or by_kind[LIMITED])
    found = []
    for task, final in outcome.tasks.items():
        allowed = {
            "interrupted": final.attempt == outcome.max_attempts,
            "disk_full": no_room,
            "engine_failed": engines.get(task) == "failing" or engine_killed or bool(by_kind[LIMITED]),
        }
        if bool(final.code and final.reason) != (final.status == "failed"):
            found.append(f"{task} is {final.status} and told {final.code}: {final.reason}")
        elif final.code and (not allowed.get(final.code, False) or "the service" in (final.reason or "")):
            found.append(f"{task} failed at attempt {final.attempt} for no cause, {final.code}: {final.reason}")
    return found


def _starts(outcome: Outcome) -> list[str]:
    found = [
        f"attempt {attempt} of {task} started twice"
        for task, attempt in sorted({each for each in outcome.starts if outcome.starts.count(each) > 1})
    ]
    last = {task: final.attempt for task, final in outcome.tasks.items()}
    return found + [
        f"{task} started attempt {attempt} of {last[task]}"
        for task, attempt in outcome.starts
        if task in last and attempt > last[task]
    ]
