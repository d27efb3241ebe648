"""The rows: what is guarded, what is remembered, what order they come in."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import select, update

from tasks.estimate import Learned, Lesson
from tasks.idempotency import AlreadyAccepted, IdempotencyKey, KeyReused
from tasks.model import (
    CancelWanted,
    ErrorCode,
    Event,
    Facts,
    Failure,
    LostRace,
    Note,
    Phase,
    Priority,
    Result,
    RunnerId,
    Status,
    Task,
)
from tasks.schema import HEAD, metadata, open_database, tasks
from tasks.store import QueueFull, Store
from tasks.turns import Backlog
from tasks.uploads import Upload
from tests.conftest import NOON, PATIENCE, ROOT, make_task
from tests.tasks.conftest import Clock
from tests.tasks.test_model import VIDEO

CLAIM = Facts(slot="cpu-0", profile="preview_cpu")
DONE = Facts(result=Result("video.mp4", "poster.jpg", VIDEO))
BROKEN = Facts(failure=Failure(ErrorCode.ENGINE_FAILED, "it broke", "the log"))


OWN = [("preview", "preview_cpu")]


def submit(store: Store, number: int = 1, key: IdempotencyKey | None = None, **changes: object) -> Task:
    draft = make_task(id=f"gen_20261122_{number:016x}", **changes)
    task, _ = store.add(
        lambda ahead, now: replace(draft, submit_time=now, updated_at=now),
        lambda task, position: f"answer to {task.id} at {position}",
        priority=int(draft.priority), max_queued=100, tenant=draft.tenant, key=key,
    )  # fmt: skip
    return task


def started(store: Store, number: int = 1) -> Task:
    return store.happen(submit(store, number), Event.CLAIM, CLAIM)


def test_what_is_written_is_what_is_read(store: Store) -> None:
    task = submit(
        store,
        notes=(Note("preview", "by the preview"),),
        metadata={"ключ": "值"},
        runner=RunnerId("host", "boot", 7, 9),
        failure=BROKEN.failure,
        result=DONE.result,
    )
    assert store.get(task.id) == task
    assert task.seq == 1


def test_what_a_later_release_keeps_in_a_row_is_passed_over_and_left_there(store: Store) -> None:
    """A runner lives through a deployment, and may find what its own release did not know."""
    task = started(store)
    params = {**asdict(task.params), "camera": "close"}
    with store._writing.begin() as db:
        db.execute(update(tasks).where(tasks.c.id == task.id).values(params=params))
    assert store.get(task.id) == task
    store.report(task.id, 1, phase=Phase.GENERATING, progress=0.5, eta_seconds=1.0)
    store.finish(task.id, 1, Event.COMPLETE, DONE)
    with store._engine.begin() as db:
        assert db.execute(select(tasks.c.params)).scalar_one() == params


def test_of_two_writers_that_read_the_same_row_one_wins(store: Store) -> None:
    task = submit(store)
    store.happen(task, Event.CLAIM, CLAIM)
    with pytest.raises(LostRace):
        store.happen(task, Event.CANCEL)
    assert store.get(task.id).status is Status.PROCESSING


def test_a_hundred_racing_claims_start_a_task_once(store: Store) -> None:
    task = submit(store)
    barrier = threading.Barrier(10)

    def claim(_: int) -> int:
        barrier.wait(PATIENCE)
        try:
            store.happen(task, Event.CLAIM, CLAIM)
        except LostRace:
            return 0
        return 1

    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(claim, range(100))) == 1
    assert store.get(task.id).attempt == 1


def test_a_runner_that_lost_its_attempt_learns_it_from_every_word(store: Store) -> None:
    task = started(store)
    store.happen(task, Event.REQUEUE)
    second = store.happen(store.get(task.id), Event.CLAIM, CLAIM)
    for word in (
        lambda: store.report(task.id, 1, phase=Phase.GENERATING, progress=0.5, eta_seconds=1.0),
        lambda: store.beat(task.id, 1),
        lambda: store.note_runner(task.id, 1, RunnerId("h", "b", 1, 1)),
        lambda: store.finish(task.id, 1, Event.COMPLETE, DONE),
    ):
        with pytest.raises(LostRace):
            word()
    assert store.get(task.id) == second


def test_who_completes_what_it_has_completed_lost_no_race(store: Store) -> None:
    """Of a commit that raised nobody knows whether it was made: it is told again, and of a failure it is none."""
    task = started(store)
    done = store.finish(task.id, 1, Event.COMPLETE, DONE)
    assert store.finish(task.id, 1, Event.COMPLETE, DONE) == done == store.get(task.id)
    for other in (Event.FAIL, Event.CANCEL, Event.REQUEUE):
        with pytest.raises(LostRace):
            store.finish(task.id, 1, other, BROKEN)


def test_progress_never_falls_within_an_attempt(store: Store) -> None:
    task = started(store)
    seen = [
        store.report(task.id, 1, phase=Phase.GENERATING, progress=p, eta_seconds=1.0).progress
        for p in (0.2, 0.5, 0.3, 7.0)
    ]
    assert seen == [0.2, 0.5, 0.5, 1.0]


def test_a_finish_does_not_mind_reports_in_between(store: Store) -> None:
    task = started(store)
    store.report(task.id, 1, phase=Phase.GENERATING, progress=0.5, eta_seconds=1.0)
    assert store.finish(task.id, 1, Event.COMPLETE, DONE).status is Status.COMPLETED


def test_who_was_told_202_gets_cancelled_even_if_the_video_was_ready(store: Store) -> None:
    task = store.request_cancel(started(store))
    with pytest.raises(CancelWanted):
        store.finish(task.id, 1, Event.COMPLETE, DONE)
    assert store.get(task.id) == task, "nothing is written while the result is there"
    ended = store.finish(task.id, 1, Event.FAIL, BROKEN)
    assert (ended.status, ended.result, ended.failure) == (Status.CANCELLED, None, None)


def test_a_cancel_request_changes_the_version_but_not_the_moment_the_eta_counts_from(
    store: Store, clock: Clock
) -> None:
    task = started(store)
    clock.now += timedelta(seconds=30)
    flagged = store.request_cancel(task)
    assert (flagged.version, flagged.updated_at) == (task.version + 1, task.updated_at)
    assert store.request_cancel(flagged) == flagged


def test_a_heartbeat_changes_nothing_that_clients_see(store: Store, clock: Clock) -> None:
    task = started(store)
    clock.now += timedelta(seconds=30)
    store.beat(task.id, 1)
    seen = store.get(task.id)
    assert (seen.version, seen.updated_at, seen.heartbeat_at) == (task.version, task.updated_at, clock.now)


def test_turns_go_by_priority_then_by_submission(store: Store) -> None:
    for number, priority in enumerate(
        [Priority.NORMAL, Priority.LOW, Priority.HIGH, Priority.NORMAL, Priority.HIGH], 1
    ):
        submit(store, number, priority=priority)
    assert [task.seq for task in store.queue.next_up(10, OWN)] == [3, 5, 1, 4, 2]
    positions = {task.seq: ahead.tasks + 1 for task, ahead in store.page("default", [], 10, None)}
    assert positions == {3: 1, 5: 2, 1: 3, 4: 4, 2: 5}


def test_of_a_long_queue_a_few_are_read_at_a_time_and_none_that_ended_meanwhile(store: Store) -> None:
    made = [submit(store, number) for number in range(1, 31)]
    reading = store.queue.next_up(25, OWN)
    assert next(reading) == made[0]
    store.happen(made[20], Event.CANCEL)
    assert list(reading) == made[1:20] + made[21:25]


def test_engines_that_tasks_wait_for_are_those_of_queued_tasks(store: Store) -> None:
    assert store.queue.engines() == set()
    for number, engine in enumerate(["a", "b", "a", "c"], 1):
        submit(store, number, engine=engine)
    store.happen(store.get("gen_20261122_0000000000000002"), Event.CANCEL)
    assert store.queue.engines() == {"a", "c"}


def test_tasks_of_profiles_that_left_the_table_wait_without_holding_others_up(store: Store) -> None:
    submit(store, 1, profile="gone")
    submit(store, 2)
    assert [task.seq for task in store.queue.next_up(1, OWN)] == [2]


def test_the_backlog_adds_the_work_that_waits_and_what_is_left_of_the_running(store: Store, clock: Clock) -> None:
    submit(store, 1, work_seconds=10.0)
    store.happen(store.get("gen_20261122_0000000000000001"), Event.CLAIM, CLAIM)
    submit(store, 2, work_seconds=7.0)
    submit(store, 3, work_seconds=5.0)
    clock.now += timedelta(seconds=4)
    _, ahead = store.get_with_backlog("gen_20261122_0000000000000003")
    assert ahead == Backlog(1, {OWN[0]: pytest.approx(6.0 + 7.0)})


def test_a_full_queue_refuses_and_running_tasks_do_not_count(store: Store) -> None:
    def add(number: int, most: int) -> None:
        draft = make_task(id=f"t{number}")
        store.add(lambda a, n: draft, lambda t, p: "", priority=1, max_queued=most, tenant="default")

    add(1, 1)
    with pytest.raises(QueueFull):
        add(2, 1)
    store.happen(store.get("t1"), Event.CLAIM, CLAIM)
    add(2, 1)


def test_submit_times_are_of_the_inserting_transaction(store: Store, clock: Clock) -> None:
    first = submit(store, 1)
    clock.now += timedelta(microseconds=1)
    assert (first.submit_time, submit(store, 2).submit_time) == (NOON, NOON + timedelta(microseconds=1))


KEY = IdempotencyKey("k", "a" * 64)


def test_the_same_key_and_body_gives_the_first_answer_again(store: Store) -> None:
    submit(store, 1, KEY)
    with pytest.raises(AlreadyAccepted) as seen:
        submit(store, 2, KEY)
    assert seen.value.answer == "answer to gen_20261122_0000000000000001 at 1"
    assert store.get("gen_20261122_0000000000000002") is None


def test_the_same_key_with_another_body_is_refused(store: Store) -> None:
    submit(store, 1, KEY)
    with pytest.raises(KeyReused):
        submit(store, 2, IdempotencyKey("k", "b" * 64))


def test_a_refused_request_uses_no_key_up(store: Store) -> None:
    with pytest.raises(QueueFull):
        store.add(lambda a, n: make_task(), lambda t, p: "", priority=1, max_queued=0, tenant="default", key=KEY)
    store.check_key("default", KEY)
    submit(store, 1, KEY)


def test_keys_of_tenants_are_their_own(store: Store) -> None:
    submit(store, 1, KEY)
    assert submit(store, 2, KEY, tenant="other").seq == 2


def test_of_two_submits_with_one_key_at_once_one_task_comes(store: Store) -> None:
    barrier = threading.Barrier(8)

    def once(number: int) -> str:
        barrier.wait(PATIENCE)
        try:
            return f"answer to {submit(store, number, KEY).id} at 1"
        except AlreadyAccepted as seen:
            return seen.answer

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(once, range(1, 9)))) == 1
    assert len(list(store.queue.next_up(10, OWN))) == 1


@pytest.mark.parametrize("deleted", [False, True], ids=["kept", "deleted"])
def test_a_key_lives_a_day_past_the_end_of_its_task_also_when_that_is_deleted(
    store: Store, clock: Clock, deleted: bool
) -> None:
    task = submit(store, 1, KEY)
    clock.now += timedelta(days=3)
    assert store.ended.forget_old_keys() == 0
    ended = store.happen(task, Event.CANCEL)
    if deleted:
        store.ended.delete(ended)
    clock.now += timedelta(hours=23, minutes=59)
    assert store.ended.forget_old_keys() == 0
    with pytest.raises(AlreadyAccepted):
        store.check_key("default", KEY)
    clock.now += timedelta(minutes=2)
    assert store.ended.forget_old_keys() == 1
    store.check_key("default", KEY)


def test_a_deleted_task_leaves_a_tombstone_for_its_own_tenant(store: Store) -> None:
    task = store.happen(submit(store), Event.CANCEL)
    store.ended.delete(task)
    assert store.get(task.id) is None
    assert store.ended.was_deleted(task.id, "default")
    assert not store.ended.was_deleted(task.id, "other")
    with pytest.raises(LostRace):
        store.ended.delete(task)


def test_a_task_that_has_not_ended_cannot_be_deleted(store: Store) -> None:
    with pytest.raises(ValueError, match="ended"):
        store.ended.delete(submit(store))


def test_pages_follow_one_another_without_gaps_or_repeats(store: Store) -> None:
    for number in range(1, 8):
        submit(store, number)
    store.happen(store.get("gen_20261122_0000000000000004"), Event.CANCEL)
    seen, before = [], None
    while page := store.page("default", [], 3, before):
        seen += [task.seq for task, _ in page]
        before = seen[-1]
    assert seen == [7, 6, 5, 4, 3, 2, 1]
    assert [task.seq for task, _ in store.page("default", [Status.CANCELLED], 3, None)] == [4]
    assert store.page("other", [], 3, None) == []


def test_lessons_outlive_the_process(store: Store, tmp_path: Path) -> None:
    task = started(store)
    store.finish(task.id, 1, Event.COMPLETE, DONE, Lesson("p", 2.0, 1.5, guess=60.0, first_load=1.0))
    again = Store(f"sqlite:///{tmp_path / 'avatar.db'}", tmp_path)
    assert again.learned("p") == Learned("p", 1, 2.0, 1.5)
    assert again.learned("q") is None
    again.close()


def test_a_commit_of_another_process_is_seen(store: Store, tmp_path: Path) -> None:
    changed = store.changes()
    assert changed()  # the first look knows nothing yet
    assert not changed()
    with sqlite3.connect(tmp_path / "avatar.db") as other:
        other.execute("UPDATE tasks SET version = version")
        other.execute("INSERT INTO estimates VALUES ('x', 1, 1.0, 1.0)")
    other.close()
    assert changed()
    assert not changed()


def test_an_upload_belongs_to_its_tenant(store: Store) -> None:
    upload = Upload("/uploads/image/x.png", "default", "image", "0" * 64, 9, {"width": 1, "height": 1}, NOON)
    store.uploads.add(upload)
    assert store.uploads.get(upload.path, "default") == upload
    assert store.uploads.get(upload.path, "other") is None


def test_sqlite_is_durable(tmp_path: Path, store: Store) -> None:
    with open_database(f"sqlite:///{tmp_path / 'avatar.db'}").connect() as db:
        assert db.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert db.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_the_migrations_make_the_tables_that_the_code_knows(tmp_path: Path, store: Store) -> None:
    with open_database(f"sqlite:///{tmp_path / 'avatar.db'}").connect() as db:
        assert compare_metadata(MigrationContext.configure(db), metadata) == []
    assert ScriptDirectory(str(ROOT / "tasks" / "migrations")).get_current_head() == HEAD


def test_processes_that_start_at_once_migrate_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'avatar.db'}"
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(lambda _: Store(url, tmp_path), range(6)))
    assert {store.counts()[Status.QUEUED] for store in stores} == {0}
    for store in stores:
        store.close()


def test_a_fact_about_the_service_outlives_its_writer(tmp_path: Path, store: Store) -> None:
    assert store.state.get("drain") is None
    store.state.set("drain", {"on": True})
    store.state.set("drain", {"on": True, "reason": "deploy"})
    other = Store(f"sqlite:///{tmp_path / 'avatar.db'}", tmp_path)
    assert other.state.get("drain") == {"on": True, "reason": "deploy"}
    other.state.set("drain", None)
    assert store.state.get("drain") is None
    other.close()
