"""Long polls: when they answer, who wakes them, and that they hold nobody up."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.model import Event, Facts, Phase, Task
from tests.web.conftest import Serve, Service
from tests.web.servers import get, gunicorn
from web.tasks import TURNED_AWAY_SECONDS
from web.waiting import LOOK_SECONDS, Place, Waiting

SOON = 45.0
"""Seconds within which a wait of 60 s must have ended; on a busy machine too."""


def url(task: Task, rest: str = "") -> str:
    return f"/api/v1/task/{task.id}{rest}"


def later(what: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(0.2, what)
    timer.start()
    return timer


def once_held(service: Service, what: Callable[[], object]) -> threading.Thread:
    """Do it as soon as a request is held that has seen how its task is."""
    waiting = service.app.extensions["waiting"]

    def work() -> None:
        until(lambda: any(place.tag is not None for place in waiting._taken()))
        what()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


# --- in one process ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tagged", [True, False], ids=["with a tag", "without"])
def test_a_wait_answers_when_the_task_changes(service: Service, tagged: bool) -> None:
    task = service.submit()
    headers = {"If-None-Match": service.client.get(url(task)).headers["ETag"]} if tagged else {}
    began = time.monotonic()
    change = once_held(service, lambda: service.start(task))
    answer = service.client.get(url(task, "?wait=60"), headers=headers)
    change.join()
    assert (answer.status_code, answer.json["status"]) == (200, "processing")
    assert time.monotonic() - began < SOON


def test_a_wait_for_a_position_answers_when_the_queue_moves(service: Service) -> None:
    first, second = service.submit(1), service.submit(2)
    tag = {"If-None-Match": service.client.get(url(second)).headers["ETag"]}
    change = once_held(service, lambda: service.manager.store.happen(first, Event.CANCEL))
    answer = service.client.get(url(second, "?wait=60"), headers=tag)
    change.join()
    assert answer.json["queue_position"] == 1


def test_a_wait_that_runs_out_is_304_with_a_tag_and_200_without(service: Service) -> None:
    task = service.submit()
    tag = {"If-None-Match": service.client.get(url(task)).headers["ETag"]}
    for headers, status in ((tag, 304), ({}, 200)):
        began = time.monotonic()
        assert service.client.get(url(task, "?wait=1"), headers=headers).status_code == status
        assert time.monotonic() - began >= 1.0


def test_a_tag_that_holds_no_more_is_answered_at_once(service: Service) -> None:
    task = service.submit()
    began = time.monotonic()
    answer = service.client.get(url(task, "?wait=60"), headers={"If-None-Match": '"0-0"'})
    assert answer.status_code == 200
    assert time.monotonic() - began < SOON


def test_an_ended_task_never_waits(service: Service) -> None:
    task = service.complete(service.start(service.submit()))
    tag = {"If-None-Match": service.client.get(url(task)).headers["ETag"]}
    began = time.monotonic()
    assert service.client.get(url(task, "?wait=60"), headers=tag).status_code == 304
    assert service.client.get(url(task, "?wait=60")).status_code == 200
    assert time.monotonic() - began < SOON


def test_a_task_that_is_deleted_meanwhile_is_gone(service: Service) -> None:
    task = service.start(service.submit())

    def end_and_delete() -> None:
        # In one step, as far as the waiter sees: it looks every 50 ms and may meet the ended task in between.
        service.manager.store.ended.delete(service.manager.store.finish(task.id, 1, Event.CANCEL, Facts()))

    change = once_held(service, end_and_delete)
    answer = service.client.get(url(task, "?wait=60"))
    change.join()
    assert answer.status_code in (200, 410)
    assert answer.status_code == 410 or answer.json["status"] == "cancelled"


# --- the mechanism ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """What a key has."""

    number: int

    @property
    def tag(self) -> str:
        return str(self.number)


class Table:
    """Stands for the database: numbers under keys, and its counter of commits."""

    def __init__(self) -> None:
        self.values, self.commits = dict[str, int](), 0
        self.reads, self.looks, self.asked = 0, Counter[str](), list[set[str]]()
        self.broken = False

    def put(self, key: str, number: int) -> None:
        self.values[key] = number
        self.commits += 1

    def changes(self) -> Callable[[], bool]:
        seen = -1

        def changed() -> bool:
            nonlocal seen
            self.reads += 1
            if self.broken:
                raise OSError("the disk is gone")
            seen, before = self.commits, seen
            return seen != before

        return changed

    def tags(self, keys: Collection[str]) -> dict[str, str]:
        self.asked.append(set(keys))
        return {key: self.look(key).tag for key in keys}

    def look(self, key: str) -> Value:
        return Value(self.values.get(key, 0))

    def look_counted(self, key: str) -> Value:
        self.looks[key] += 1
        return self.look(key)

    def waiting(self, max_waiters: int, shared: bool = False) -> Waiting[Value]:
        return Waiting(self.changes, self.tags, self.look_counted, max_waiters, shared)


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def wait_with(table: Table) -> Iterator[Callable[..., Waiting[Value]]]:
    made: list[Waiting[Value]] = []

    def make(max_waiters: int, shared: bool = False) -> Waiting[Value]:
        made.append(table.waiting(max_waiters, shared))
        return made[-1]

    yield make
    for waiting in made:
        waiting.stop()


Make = Callable[..., Waiting[Value]]


def not_zero(value: Value) -> bool:
    return value.number != 0


def test_a_change_between_the_look_and_the_wait_is_not_missed(table: Table, wait_with: Make) -> None:
    def enough(seen: Value) -> bool:
        if not seen.number:
            table.put("a", 1)
            reads = table.reads
            while table.reads < reads + 2:  # until the change was noticed, while this look is still under way
                time.sleep(0.01)
        return seen.number == 1

    began = time.monotonic()
    assert wait_with(1).until("a", enough, 60) == (Value(1), False)
    assert time.monotonic() - began < SOON


def test_the_counter_is_read_by_one_thread_whatever_the_number_of_waiters(table: Table, wait_with: Make) -> None:
    waiting = wait_with(50)
    with ThreadPoolExecutor(50) as pool:
        held = [pool.submit(waiting.until, "a", not_zero, 60) for _ in range(50)]
        until(lambda: len(waiting._taken()) == 50)
        began, before = time.monotonic(), table.reads
        until(lambda: table.reads >= before + 10)
        reads, elapsed = table.reads - before, time.monotonic() - began
        table.put("a", 1)
        assert [future.result(SOON) for future in held] == [(Value(1), False)] * 50
    assert reads <= elapsed / LOOK_SECONDS + 2


def settled(table: Table, places: list[Place[Value]]) -> None:
    """Let all have seen what there is, and no wake be on its way."""
    for place in places:
        place.see()
    reads = table.reads
    until(lambda: table.reads >= reads + 2)
    for place in places:
        place.wait(0)
        place.see()
    table.looks.clear()


def test_a_change_wakes_those_alone_whose_key_has_changed_and_they_look_once_together(
    table: Table, wait_with: Make
) -> None:
    waiting = wait_with(60)
    mine = [place for _ in range(50) if (place := waiting.take("a"))]
    others = [place for _ in range(10) if (place := waiting.take("b"))]
    assert waiting.take("a") is None
    settled(table, mine + others)
    table.put("a", 1)
    for place in mine:
        assert place.wait(SOON)
        assert place.see() == Value(1)
    assert table.looks == {"a": 1}
    assert not any(place.wait(0) for place in others)
    assert table.asked[-1] == {"a", "b"}


def test_a_log_that_grows_wakes_without_a_look(table: Table, wait_with: Make, tmp_path: Path) -> None:
    waiting, path = wait_with(2), tmp_path / "log"
    place = waiting.take("a")
    assert place is not None
    settled(table, [place])
    timer = later(lambda: path.write_bytes(b"12345"))
    assert place.wait(SOON, (path, 0))
    timer.join()
    assert place.see() == Value(0)
    assert not table.looks
    settled(table, [place])  # it may have been measured once more before its new size was known
    assert not place.wait(0.6, (path, 5))
    assert not table.looks
    place.leave()
    assert waiting.take("a")


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_counter_that_fails_for_a_while_does_not_end_the_waits(
    table: Table, wait_with: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("web.waiting.RECOVERY_SECONDS", 0.02)
    table.broken = True

    def recover() -> None:
        table.put("a", 1)
        table.broken = False

    timer = later(recover)
    assert wait_with(1).until("a", not_zero, SOON) == (Value(1), False)
    timer.join()


def test_whoever_finds_no_place_is_answered_at_once(wait_with: Make) -> None:
    began = time.monotonic()
    assert wait_with(0).until("a", not_zero, 60) == (Value(0), True)
    assert time.monotonic() - began < SOON


def test_no_tenant_takes_all_places_from_the_others(wait_with: Make) -> None:
    def held(waiting: Waiting[Value], tenant: str) -> list[Place[Value]]:
        return [place for _ in range(300) if (place := waiting.take("a", tenant))]

    shared, alone = wait_with(256, True), wait_with(256)
    greedy = held(shared, "greedy")
    assert len(greedy) == 205
    assert [len(held(shared, tenant)) for tenant in ("second", "third")] == [41, 8]
    assert shared.take("a", "newcomer")
    for place in greedy[:100]:
        place.leave()
    assert len(held(shared, "fourth")) > 80
    assert len(held(alone, "only")) == 256


@pytest.mark.parametrize(("enabled", "most"), [(True, 5), (False, 6)])
def test_places_are_shared_where_there_are_tenants(serve: Serve, enabled: bool, most: int) -> None:
    waiting = serve(auth={"enabled": enabled}, http={"max_waiters": 6}).app.extensions["waiting"]
    places = [waiting.take("gen_x", "acme") for _ in range(6)]
    assert sum(place is not None for place in places) == most
    assert (waiting.take("gen_x", "other") is not None) == enabled
    waiting.stop()


def test_a_place_is_free_again_after_a_wait_that_failed(table: Table, wait_with: Make) -> None:
    waiting = wait_with(1)

    def fail(_: Value) -> bool:
        raise LookupError

    for _ in range(3):
        with pytest.raises(LookupError):
            waiting.until("a", fail, 60)
    table.put("a", 1)
    assert waiting.until("a", not_zero, 60) == (Value(1), False)


def test_stopping_ends_all_waits_and_lets_later_ones_end_at_once(wait_with: Make) -> None:
    waiting = wait_with(4)
    timer = later(waiting.stop)
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: waiting.until("a", not_zero, 60), range(4))) == [(Value(0), False)] * 4
    timer.join()
    assert waiting.until("a", not_zero, 60) == (Value(0), False)
    assert time.monotonic() - began < SOON


# --- across processes -------------------------------------------------------------------------------------------------

AWAY = str(TURNED_AWAY_SECONDS)


def hold(port: int, task: Task, tag: dict[str, str]) -> tuple[int, bytes]:
    """Wait for the task; come again whenever there is no place."""
    while True:
        status, headers, body, _ = get(port, url(task, "?wait=60"), tag)
        if headers.get("Retry-After") != AWAY:
            return status, body


def until_all_places_are_taken(port: int, task: Task, tag: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    while get(port, url(task, "?wait=1"), tag)[1].get("Retry-After") != AWAY:
        assert time.monotonic() < deadline


def test_many_waiters_are_woken_by_a_write_of_another_process_while_others_are_served(
    service: Service, tmp_path: Path
) -> None:
    waiters, task = 40, service.start(service.submit())
    with gunicorn(tmp_path, AVATAR_HTTP__MAX_WAITERS=str(waiters)) as (port, _), ThreadPoolExecutor(waiters) as pool:
        tag = {"If-None-Match": get(port, url(task))[1]["ETag"]}
        waiting = [pool.submit(hold, port, task, tag) for _ in range(waiters)]
        until_all_places_are_taken(port, task, tag)
        assert get(port, "/api/v1/tasks")[0] == 200
        assert not any(future.done() for future in waiting)
        written = time.monotonic()
        service.manager.store.report(task.id, 1, phase=Phase.GENERATING, progress=0.5, eta_seconds=9.0)
        answers = [future.result(SOON) for future in waiting]
        assert time.monotonic() - written < SOON
    assert {status for status, _ in answers} == {200}
    assert all(b'"progress":0.5' in body for _, body in answers)


def test_a_server_that_is_told_to_stop_ends_its_waits(service: Service, tmp_path: Path) -> None:
    task = service.start(service.submit())
    with gunicorn(tmp_path, AVATAR_HTTP__MAX_WAITERS="1") as (port, process), ThreadPoolExecutor(1) as pool:
        tag = {"If-None-Match": get(port, url(task))[1]["ETag"]}
        held = pool.submit(hold, port, task, tag)
        until_all_places_are_taken(port, task, tag)
        process.send_signal(signal.SIGTERM)
        assert held.result(SOON)[0] == 304
        assert process.wait(60) == 0  # by itself: gunicorn would wait for 120 s before it gave up
