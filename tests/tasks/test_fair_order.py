"""Whose turn it is: by priority, then fairly between tenants; one order for scheduler, clients, estimates."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks import turns
from tasks.model import Event, Facts, Phase, Priority, Status, Task
from tasks.policy import NO_QUOTAS, Quotas
from tasks.store import Store
from tests.conftest import make_task

CLAIM = Facts(slot="cpu-0", profile="preview_cpu")
OWN = [("preview", "preview_cpu")]
ALL = 10_000


class Queue:
    """A store with nothing in it, and what was promised with each 201."""

    def __init__(self, folder: Path, quotas: Quotas = NO_QUOTAS) -> None:
        self.store = Store(f"sqlite:///{folder / 'avatar.db'}", folder, tenant_quotas=quotas)
        self.elsewhere = Store(f"sqlite:///{folder / 'avatar.db'}", folder)
        self.file = folder / "avatar.db"
        self.made = 0

    def close(self) -> None:
        self.store.close()
        self.elsewhere.close()

    def empty(self) -> None:
        with sqlite3.connect(self.file) as db:
            db.execute("DELETE FROM tasks")
        db.close()

    def submit(self, tenant: str, priority: Priority = Priority.NORMAL) -> tuple[Task, int]:
        self.made += 1
        draft = make_task(id=f"gen_20261122_{self.made:016x}", tenant=tenant, priority=priority)
        return self.store.add(
            lambda ahead, now: replace(draft, submit_time=now, updated_at=now), lambda task, position: "{}",
            priority=int(priority), max_queued=ALL, tenant=tenant,
        )  # fmt: skip

    def order(self) -> list[Task]:
        return list(self.store.queue.next_up(ALL, OWN))

    def start_next(self) -> Task:
        return self.store.happen(self.order()[0], Event.CLAIM, CLAIM)

    def tenants(self) -> list[str]:
        return [task.tenant for task in self.order()]


@pytest.fixture(scope="module")
def made_queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queue]:
    queue = Queue(tmp_path_factory.mktemp("queue"))
    yield queue
    queue.close()


@pytest.fixture
def queue(made_queue: Queue) -> Queue:
    made_queue.empty()
    return made_queue


def test_a_tenants_many_tasks_delay_anothers_first_by_one(queue: Queue) -> None:
    for _ in range(60):
        queue.submit("greedy")
    _, position = queue.submit("late")
    assert position == 2
    assert queue.tenants()[:3] == ["greedy", "late", "greedy"]
    queue.start_next()
    assert queue.tenants()[0] == "late"


def test_who_has_tasks_running_comes_after_who_has_none(queue: Queue) -> None:
    for _ in range(4):
        queue.submit("greedy")
    queue.start_next()
    queue.start_next()
    for _ in range(3):
        queue.submit("late")
    assert queue.tenants() == ["late", "late", "greedy", "late", "greedy"]


def test_a_higher_priority_comes_first_whoever_sent_it(queue: Queue) -> None:
    queue.submit("b")
    queue.submit("a", Priority.HIGH)
    assert queue.submit("a", Priority.HIGH)[1] == 2
    assert queue.submit("c", Priority.LOW)[1] == 4
    assert queue.tenants() == ["a", "a", "b", "c"]


def test_a_page_of_tasks_costs_as_many_queries_as_one_task(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        queue.submit("ab"[number % 2])
    asked: list[object] = []
    read = queue.store._lines.read
    monkeypatch.setattr(queue.store._lines, "read", lambda *given: asked.append(given) or read(*given))
    assert len(queue.store.page(None, [], 50, None)) == 20
    assert len(asked) == 1


def test_a_queue_that_is_the_same_is_not_read_again_and_of_one_that_grew_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another process changes it."""
    queue, elsewhere = Queue(tmp_path), Queue(tmp_path)
    elsewhere.made = 100
    for number in range(20):
        queue.submit("ab"[number % 2])
    started = queue.start_next()
    waiting = queue.order()
    read: list[int] = []
    in_turn = turns.in_turn

    def counted(queued: Iterable[Any], *more: Any) -> list[turns.Turn]:
        rows = list(queued)
        read.append(len(rows))
        return in_turn(rows, *more)

    def position(task: Task) -> int:
        return queue.store.get_with_backlog(task.id)[1].tasks

    monkeypatch.setattr(turns, "in_turn", counted)
    assert position(waiting[-1]) == 18
    queue.store.report(started.id, 1, phase=Phase.GENERATING, progress=0.5, eta_seconds=9.0)
    assert (position(waiting[3]), read) == (3, [19])
    elsewhere.submit("c")
    read.clear()
    assert (position(waiting[3]), read) == (4, [1])
    queue.submit("c")
    assert (position(waiting[-1]), read) == (20, [1, 1])
    elsewhere.store.happen(waiting[0], Event.CANCEL)
    assert (position(waiting[-1]), read) == (18, [1, 1, 20]), "its tenant has one less before it"
    assert queue.order()[18] == waiting[-1]
    queue.close()
    elsewhere.close()


def test_a_task_that_came_back_counts_for_the_hardware_that_it_was_last_given(queue: Queue) -> None:
    first = queue.submit("a")[0]
    second = queue.submit("a")[0]
    assert list(queue.store.get_with_backlog(second.id)[1].seconds) == [("preview", first.profile)]
    claimed = queue.store.happen(first, Event.CLAIM, replace(CLAIM, profile="another"))
    queue.store.happen(claimed, Event.REQUEUE)
    assert list(queue.store.get_with_backlog(second.id)[1].seconds) == [("preview", "another")]


STEPS = st.lists(st.one_of(st.none(), st.tuples(st.sampled_from("abc"), st.sampled_from(Priority))), max_size=25)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_the_order_is_total_stable_and_fair_and_the_same_for_all_who_ask(made_queue: Queue, steps: list) -> None:
    """Steps submit a task, or start the next one (None)."""
    made_queue.empty()
    rows = made_queue.store
    for step in steps:
        before = made_queue.order()
        if step is None:
            if before:
                assert_stable(made_queue.start_next(), before[1:], made_queue.order())
            continue
        task, position = made_queue.submit(*step)
        order = made_queue.order()
        assert order.index(task) + 1 == position, "the 201 told another position"
        seen = made_queue.elsewhere.page(None, [Status.QUEUED], ALL, None)
        assert {task.id: ahead.tasks for task, ahead in seen} == {task.id: at for at, task in enumerate(order)}
        assert [other for other in order if other != task] == before, "a submission changed the order of the others"
    order = made_queue.order()
    listed = {task.id: ahead.tasks for task, ahead in rows.page(None, [Status.QUEUED], ALL, None)}
    assert listed == {task.id: number for number, task in enumerate(order)}
    for number, task in enumerate(order):
        assert rows.get_with_backlog(task.id)[1].tasks == number
    for tenant in "abc":
        mine = [task for task in order if task.tenant == tenant]
        assert mine == sorted(mine, key=lambda task: (-task.priority, task.seq)), "not in the order of submission"
    assert_fair(order, Counter(task.tenant for task in rows.processing()))


def assert_stable(started: Task, before: list[Task], after: list[Task]) -> None:
    """A start changes no order but that its tenant's tasks of lower priorities, which count it now, may fall back."""
    lower = {task.id for task in before if task.tenant == started.tenant and task.priority < started.priority}
    assert [task for task in after if task.id not in lower] == [task for task in before if task.id not in lower]
    assert all(after.index(task) >= before.index(task) for task in before if task.id in lower)


def assert_fair(order: list[Task], running: Counter[str]) -> None:
    """Before a tenant's n-th task of a priority, each other one has at most as many as bring it level, and one more."""
    for priority in Priority:
        own = [task for task in order if task.priority == priority]
        for number, task in enumerate(own):
            ahead = Counter(other.tenant for other in own[:number])
            level = running[task.tenant] + ahead[task.tenant] + 1
            for tenant, count in ahead.items():
                assert tenant == task.tenant or running[tenant] + count <= level, (tenant, task)


def test_a_tenant_at_its_quota_of_running_tasks_leaves_the_scheduler_s_view_to_others(tmp_path: Path) -> None:
    queue = Queue(tmp_path, Quotas(running_tasks=1))
    for _ in range(5):
        queue.submit("greedy", Priority.HIGH)
    queue.submit("late", Priority.LOW)
    started = queue.start_next()
    assert queue.tenants() == ["late"]
    queue.store.happen(queue.store.request_cancel(started), Event.CANCEL)
    assert queue.tenants() == ["greedy"] * 4 + ["late"]
    queue.close()


def test_with_one_tenant_turns_go_as_submitted(queue: Queue) -> None:
    sent = []
    for number in range(30):
        task, position = queue.submit("only")
        assert position == len(queue.order())
        sent.append(task)
        if number % 3 == 0:
            assert queue.start_next().id == sent.pop(0).id
    assert queue.order() == sent
