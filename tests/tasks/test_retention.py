"""What expires goes whole and on time, what is in use stays, and a clock that jumped removes nothing."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config_loader import load_settings
from tasks.clock import GRACE, ClockGuard, counted, stopped_reason
from tasks.disk import Ballast, Disk, tree_bytes
from tasks.folders import Folders
from tasks.model import Event, Facts, LostRace, Result, Status, Task
from tasks.outbox import Attempt, Delivery
from tasks.policy import Policy
from tasks.retention import Sweeper
from tasks.store import Store
from tasks.uploads import USE_GRAIN, Upload
from tests.conftest import NOON, make_task
from tests.tasks.test_model import VIDEO

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
POLICY = Policy(results=7 * DAY, inputs=DAY, logs=3 * DAY, records=90 * DAY, uploads=DAY)
CLAIM = Facts(slot="cpu-0", profile="preview_cpu")
DONE = Facts(result=Result("video.mp4", "poster.jpg", VIDEO))


@dataclass
class House:
    """A store and its folders under a clock that the test moves; time passes for the wall and the counter alike."""

    root: Path
    policy: Policy = POLICY
    now: datetime = NOON
    steady: timedelta = timedelta(0)
    made: int = 0
    folders: Folders = field(init=False)

    def __post_init__(self) -> None:
        self.folders = Folders(self.root)
        self.folders.make()
        self.store = Store(f"sqlite:///{self.root / 'a.db'}", self.root, now=lambda: self.now)
        self.restart()

    def restart(self, boot: str = "first") -> None:
        guard = ClockGuard(self.store.state, lambda: self.now, lambda: self.steady, boot)
        disk = Disk(self.root, 0, Ballast(self.root / "ballast"))
        self.sweeper = Sweeper(self.store, self.folders, disk, self.policy, lambda: self.now, guard)

    def later(self, passed: timedelta) -> None:
        self.now, self.steady = self.now + passed, self.steady + passed

    def write(self, path: Path, size: int = 10) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        for changed in (path, *path.parents):
            if changed.is_relative_to(self.root):
                os.utime(changed, (self.now.timestamp(), self.now.timestamp()))
        return path

    def task(self, status: Status = Status.COMPLETED, size: int = 10) -> Task:
        """Bring a task with files into `status` now."""
        self.made += 1
        draft = make_task(id=f"gen_20261122_{self.made:016x}", submit_time=self.now, updated_at=self.now)
        self.write(self.folders.inputs(draft.id) / "image.png")
        task, _ = self.store.add(
            lambda ahead, now: draft, lambda task, at: "{}", priority=1, max_queued=10_000, tenant="default"
        )
        if status is Status.QUEUED:
            return task
        task = self.store.happen(task, Event.CLAIM, CLAIM)
        self.write(self.folders.attempt(task.id, 1) / "engine.log")
        self.write(self.folders.attempt(task.id, 1) / "out" / "video.mp4", size)
        if status is Status.PROCESSING:
            return task
        self.write(self.folders.result(task.id, 1) / "video.mp4", size)
        if status is Status.COMPLETED:
            return self.store.finish(task.id, 1, Event.COMPLETE, DONE)
        return self.store.happen(self.store.request_cancel(task), Event.CANCEL)

    def upload(self) -> Upload:
        self.made += 1
        made = Upload(f"/uploads/image/{self.made:032x}.png", "default", "image", "0" * 64, 10, {}, self.now)
        self.write(self.folders.upload(made.path))
        self.store.uploads.add(made)
        return made

    def has(self, task: Task) -> tuple[bool, bool, bool, bool]:
        """Whether there are: the row, a result, logs, inputs."""
        folders = (self.folders.results / task.id, self.folders.attempts(task.id), self.folders.inputs(task.id))
        row = self.store.get(task.id) is not None
        return (row, *(path.exists() for path in folders))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "data")
    yield made
    made.store.close()


# --- expiry -----------------------------------------------------------------------------------------------------------


def test_inputs_go_first_then_logs_then_all_of_a_task_at_the_time_it_told(house: House) -> None:
    task = house.task()
    expires = house.policy.expires_at(task.finish_time)
    assert expires == task.finish_time + 7 * DAY
    seen = []
    for passed in (HOUR, DAY, 2 * DAY, expires - house.now - 3 * DAY - HOUR - timedelta(seconds=1), HOUR):
        house.later(passed)
        house.sweeper.sweep()
        seen.append(house.has(task))
    assert seen == [
        (True, True, True, True), (True, True, True, False), (True, True, False, False), (True, True, False, False),
        (False, False, False, False),
    ]  # fmt: skip
    assert not (house.folders.tasks / task.id).exists()
    assert house.store.ended.was_deleted(task.id, "default")
    assert not house.store.ended.was_deleted(task.id, "other")


def test_a_tombstone_is_forgotten_after_its_days(house: House) -> None:
    task = house.task()
    house.later(8 * DAY)
    house.sweeper.sweep()
    for _ in range(15):
        house.later(6 * DAY)  # a gap of more would look like a jump
        house.sweeper.sweep()
    assert house.store.ended.was_deleted(task.id, "default")
    house.later(DAY)
    house.sweeper.sweep()
    assert not house.store.ended.was_deleted(task.id, "default")


def test_a_tombstone_is_no_older_than_its_task_s_end_however_the_clock_was_set(house: House) -> None:
    task = house.task()
    house.now -= 400 * DAY
    house.store.ended.delete(task)
    house.now += 400 * DAY
    house.sweeper.sweep()
    assert house.store.ended.was_deleted(task.id, "default")


def test_a_task_that_waits_or_runs_keeps_everything_however_old(house: House) -> None:
    tasks = [house.task(Status.QUEUED), house.task(Status.PROCESSING)]
    before = [house.has(task) for task in tasks]
    for _ in range(20):
        house.later(6 * DAY)
        house.sweeper.sweep()
    assert [house.has(task) for task in tasks] == before
    assert (house.folders.attempt(tasks[1].id, 1) / "out" / "video.mp4").exists()


def test_what_a_dead_attempt_left_of_a_result_is_removed_and_the_rest_is_counted(house: House) -> None:
    done, cancelled = house.task(size=5000), house.task(Status.CANCELLED)
    house.write(house.folders.result(done.id, 7) / "video.mp4")
    house.later(timedelta(minutes=2))
    house.sweeper.sweep()
    assert sorted(path.name for path in (house.folders.results / done.id).iterdir()) == ["1"]
    assert not (house.folders.results / cancelled.id).exists()
    assert not (house.folders.attempt(cancelled.id, 1) / "out").exists()
    kept = tree_bytes(house.folders.tasks / done.id) + tree_bytes(house.folders.results / done.id)
    assert [task.stored_bytes for task in house.store.ended.until(house.now, 10)] == [kept, 20]
    assert kept == 5020


def test_past_the_quota_the_tasks_that_ended_first_go(house: House) -> None:
    house.policy = replace(POLICY, max_bytes=2500)
    house.restart()
    tasks = []
    for _ in range(4):
        tasks.append(house.task(size=1000))
        house.later(timedelta(minutes=5))
    house.sweeper.sweep()
    assert [house.has(task)[0] for task in tasks] == [False, False, True, True]
    assert house.store.ended.total_bytes() <= 2500


def test_a_crash_between_row_and_files_leaves_what_a_later_sweep_removes(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = house.task()
    house.later(8 * DAY)
    with monkeypatch.context() as patched:
        patched.setattr(Folders, "remove_task", lambda self, task_id: (_ for _ in ()).throw(OSError("power cut")))
        with pytest.raises(OSError, match="power cut"):
            house.sweeper.sweep()
    assert house.has(task)[:2] == (False, True), "the row goes first"
    house.restart()
    house.sweeper.sweep()
    assert house.has(task) == (False, False, False, False)


def test_what_cannot_be_removed_holds_up_nothing_else_and_goes_once_it_can(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = house.task(), house.task()
    real = shutil.rmtree

    def failing(path: Path) -> None:
        if first.id in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        real(path)

    monkeypatch.setattr("utils.file_handler.shutil.rmtree", failing)
    for days, left in ((1, (True, True, True, False)), (2, (True, True, False, False)), (4, 4 * (False,))):
        house.later(days * DAY + timedelta(minutes=1))
        house.sweeper.sweep()
        assert house.has(second) == left
    assert house.has(first) == (False, True, True, True)
    monkeypatch.undo()
    house.later(7 * HOUR)
    house.sweeper.sweep()
    assert house.has(first) == 4 * (False,)


@pytest.mark.parametrize("look", ["scandir", "listdir"])
def test_a_folder_that_the_disk_cannot_read_holds_up_nothing_else(
    house: House, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    broken, good = house.task(), house.task()
    real = getattr(os, look)

    def failing(path: Any) -> Any:
        if broken.id in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path)

    monkeypatch.setattr(os, look, failing)
    for days, left in ((1, (True, True, True, False)), (2, (True, True, False, False)), (4, 4 * (False,))):
        house.later(days * DAY + timedelta(minutes=1))
        house.sweeper.sweep()
        assert house.has(good) == left
    assert house.store.get(broken.id) is None


def test_without_descriptors_nothing_is_passed_over(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what a dead attempt left would be taken for settled, and never looked at again."""
    task = house.task()
    house.later(timedelta(minutes=2))

    def used_up(path: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", used_up)
        with pytest.raises(OSError, match="Too many open files"):
            house.sweeper.sweep()
    house.sweeper.sweep()
    assert not (house.folders.attempt(task.id, 1) / "out").exists()


def test_files_that_nothing_knows_of_go_once_they_are_old_enough_to_belong_to_nobody(house: House) -> None:
    folders = house.folders
    strays = [folders.inputs("gen_x") / "image.png", folders.result("gen_x", 1) / "v.mp4", folders.scratch / "r" / "f",
              folders.upload("/uploads/audio/x.wav")]  # fmt: skip
    for stray in strays:
        house.write(stray)
    house.sweeper.sweep()
    assert all(stray.exists() for stray in strays), "a submit may be going on"
    house.later(2 * HOUR)
    known = house.task(), house.upload()
    going_on = house.write(folders.scratch / "slow" / "sent-audio")
    os.utime(going_on.parent, (0, 0))
    house.restart()
    house.sweeper.sweep()
    assert not any(stray.exists() for stray in strays)
    assert house.has(known[0])[0]
    assert folders.upload(known[1].path).exists()
    assert going_on.exists(), "a slow upload still writes into its folder"


# --- uploads ----------------------------------------------------------------------------------------------------------


def test_a_message_whose_task_a_release_without_webhooks_removed_goes_whatever_became_of_it(house: House) -> None:
    tasks = [replace(make_task(id=f"gen_20261122_{n:016x}"), webhook_url="https://example.com/") for n in range(3)]
    for task in tasks:
        house.store.add(lambda *_, task=task: task, lambda *_: "{}", priority=1, max_queued=9, tenant="default")
        house.store.happen(task, Event.CANCEL)
    delivered, pending, kept = (task.id for task in tasks)
    (message, *_) = house.store.outbox.of([delivered]).values()
    claimed = house.store.outbox.claim(message, HOUR)
    house.store.outbox.settle(claimed, Attempt(NOON, 1, 204, None), Delivery.DELIVERED, None)
    with house.store._writing.begin() as db:
        db.exec_driver_sql("DELETE FROM tasks WHERE id IN (?, ?)", (delivered, pending))
    house.sweeper.sweep()
    assert house.store.outbox.of([delivered, pending, kept]).keys() == {kept}


def test_an_upload_expires_after_its_last_use_and_not_before(house: House) -> None:
    used, unused = house.upload(), house.upload()
    house.later(DAY - HOUR)
    assert house.store.uploads.use(used.path, "default") == used
    assert house.store.uploads.use(used.path, "other") is None
    house.later(2 * HOUR)
    house.sweeper.sweep()
    assert house.store.uploads.use(unused.path, "default") is None
    assert not house.folders.upload(unused.path).exists()
    house.later(DAY - 2 * HOUR)
    house.sweeper.sweep()
    assert house.folders.upload(used.path).exists()
    house.later(HOUR)
    house.sweeper.sweep()
    assert not house.folders.upload(used.path).exists()


def test_who_has_just_used_an_upload_finds_its_file(house: House) -> None:
    upload = house.upload()
    house.later(DAY)
    assert house.store.uploads.use(upload.path, "default") == upload  # between this and its link, a sweep
    house.sweeper.sweep()
    house.later(USE_GRAIN - timedelta(seconds=1))
    assert house.store.uploads.use(upload.path, "default") == upload
    house.sweeper.sweep()
    assert house.folders.upload(upload.path).exists()


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [DAY * 30, timedelta(minutes=6), -timedelta(minutes=6)])
def test_a_clock_that_jumps_stops_the_sweep_until_a_day_after_it_is_right_again(house: House, jump: timedelta) -> None:
    """What ended under the wrong time would go at once, weeks too early, where that was long ago."""
    house.task()
    old = house.task()
    house.later(7 * DAY - timedelta(minutes=1))
    house.sweeper.sweep()
    house.now += jump  # the counter does not follow
    house.later(timedelta(minutes=1))
    house.sweeper.sweep()
    assert "jumped" in stopped_reason(house.store.state)
    meanwhile = house.task()
    house.now -= jump
    for _ in range(24):
        house.sweeper.sweep()
        assert "wrong" in stopped_reason(house.store.state)
        assert (house.has(old)[0], house.has(meanwhile)[0]) == (True, True)
        house.later(GRACE / 24)
    house.sweeper.sweep()
    assert stopped_reason(house.store.state) == ""
    assert not house.has(old)[0]


def test_a_clock_that_jumps_while_a_sweep_goes_on_takes_nothing_with_it(house: House) -> None:
    old, times = house.task(), iter([NOON])
    wall = lambda: next(times, NOON + 30 * DAY)  # noqa: E731 - the guard sees the first one
    disk = Disk(house.root, 0, Ballast(house.root / "ballast"))
    guard = ClockGuard(house.store.state, wall, lambda: house.steady)
    Sweeper(house.store, house.folders, disk, house.policy, wall, guard).sweep()
    assert next(times, None) is None
    assert house.has(old)[0]


def test_after_a_long_absence_nothing_goes_for_a_day_however_often_the_service_restarts(house: House) -> None:
    old = house.task()
    house.sweeper.sweep()
    house.now += 30 * DAY
    for _ in range(3):
        house.restart()
        house.sweeper.sweep()
        house.later(GRACE / 4)
        house.sweeper.sweep()
        assert "away" in stopped_reason(house.store.state)
        assert house.has(old)[0]
    house.later(GRACE / 4)
    house.sweeper.sweep()
    assert not house.has(old)[0]


def test_a_sleep_of_the_machine_is_no_jump_and_a_short_absence_no_long_one(house: House) -> None:
    house.sweeper.sweep()
    house.later(6 * DAY)  # both clocks count what a machine slept
    house.sweeper.sweep()
    house.restart()
    house.later(6 * DAY)
    house.sweeper.sweep()
    house.restart(boot="second")
    house.now += 6 * DAY  # the counter begins anew
    house.sweeper.sweep()
    assert stopped_reason(house.store.state) == ""


def test_a_jump_while_one_process_takes_the_sweep_over_from_another_holds_it_for_a_day(house: House) -> None:
    old = house.task()
    house.later(6 * DAY)
    house.sweeper.sweep()
    house.restart()
    house.now += 2 * DAY
    house.sweeper.sweep()
    assert "wrong" in stopped_reason(house.store.state)
    assert house.has(old)[0]


def test_a_jump_that_only_a_process_saw_that_died_since_holds_the_sweep_for_a_day(house: House) -> None:
    house.sweeper.sweep()
    house.now -= 30 * DAY
    house.later(timedelta(seconds=1))
    house.sweeper.sweep()
    meanwhile = house.task()  # a month old by its row
    house.now += 30 * DAY
    house.later(timedelta(seconds=1))
    house.restart()
    house.sweeper.sweep()
    assert "wrong" in stopped_reason(house.store.state)
    assert house.has(meanwhile) == 4 * (True,)


def test_what_ended_under_a_wrong_time_that_nobody_saw_is_kept_for_a_day(house: House) -> None:
    house.task()
    house.later(timedelta(minutes=2))
    house.sweeper.sweep()
    house.now -= 30 * DAY
    meanwhile = house.task()
    house.now += 30 * DAY  # all between two beats
    house.later(timedelta(minutes=2))
    house.sweeper.sweep()
    assert "wrong" in stopped_reason(house.store.state)
    for _ in range(24):
        house.sweeper.sweep()
        assert house.has(meanwhile) == 4 * (True,)
        house.later(GRACE / 24)
    house.sweeper.sweep()
    assert (stopped_reason(house.store.state), house.has(meanwhile)) == ("", 4 * (False,))


def test_a_cancel_that_waited_long_for_the_database_ends_when_it_is_written(house: House) -> None:
    """Else it is passed over where the ends before and after it were settled already, and looks like a wrong time."""
    waiting = house.task(Status.QUEUED)
    asked = threading.Event()

    def now() -> datetime:
        asked.set()
        return house.now

    other = Store(f"sqlite:///{house.root / 'a.db'}", house.root, now=now)
    holder = sqlite3.connect(house.root / "a.db", isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        cancelled = pool.submit(other.happen, waiting, Event.CANCEL)
        asked.wait(1)  # it has asked for the time already, or waits for the lock
        house.later(10 * HOUR)
        holder.execute("ROLLBACK")
        ended = cancelled.result(30)
    holder.close()
    other.close()
    assert ended.finish_time == house.now


def test_what_ends_after_a_clock_ran_ahead_is_settled_all_the_same(house: House) -> None:
    """A machine that starts with a wrong clock, which is set right a minute later."""
    house.now += DAY
    house.restart("second")
    house.task()
    house.later(timedelta(minutes=2))
    house.sweeper.sweep()
    house.now -= DAY
    house.restart("third")  # and so forgets that the clock ran ahead
    house.later(timedelta(minutes=1))
    cut_off = house.task(Status.CANCELLED)
    house.later(timedelta(minutes=2))
    house.sweeper.sweep()
    assert not (house.folders.results / cut_off.id).exists()
    assert house.store.ended.until(house.now, 1)[0].stored_bytes is not None


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no clock that counts sleep")
def test_the_counting_clock_is_the_one_that_counts_sleep() -> None:
    assert abs(counted().total_seconds() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60


# --- all of it --------------------------------------------------------------------------------------------------------

STEP = st.one_of(
    st.tuples(st.just("task"), st.sampled_from([Status.QUEUED, Status.PROCESSING, Status.COMPLETED, Status.CANCELLED])),
    st.tuples(st.just("upload"), st.none()),
    st.tuples(st.just("use"), st.integers(0, 3)),
    st.tuples(st.just("delete"), st.integers(0, 3)),
    st.tuples(st.just("pass"), st.integers(1, 150)),
    st.tuples(st.just("sweep"), st.none()),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, min_size=5, max_size=25))
def test_after_any_history_a_sweep_leaves_what_is_in_use_and_nothing_else(
    tmp_path: Path, steps: list[tuple[str, object]]
) -> None:
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    house = House(tmp_path / "data")
    tasks: list[Task] = []
    uses: dict[str, datetime] = {}
    acts: dict[str, Callable[[object], None]] = {
        "task": lambda status: tasks.append(house.task(status)),  # type: ignore[arg-type]
        "upload": lambda _: uses.update({house.upload().path: house.now}),
        "use": lambda n: _use(house, uses, n),  # type: ignore[arg-type]
        "delete": lambda n: _delete(house, tasks, n),  # type: ignore[arg-type]
        "pass": lambda hours: house.later(HOUR * hours),  # type: ignore[operator]
        "sweep": lambda _: house.sweeper.sweep(),
    }
    for name, argument in steps:
        acts[name](argument)
    house.sweeper.sweep()  # else a week without one would be an absence, after which nothing goes for a day
    house.later(2 * HOUR)
    house.restart()  # so that it looks for orphans, too
    house.sweeper.sweep()
    for task in tasks:
        row, result, logs, inputs = house.has(task)
        age = house.now - task.finish_time if task.finish_time else timedelta(0)
        if task.finish_time is None:
            assert row
            assert inputs
        else:
            assert not (row and age >= 7 * DAY)
            assert (result and task.status is Status.COMPLETED, logs, inputs) == (
                row and task.status is Status.COMPLETED, row and age < 3 * DAY, row and age < DAY
            )  # fmt: skip
            assert row or house.store.ended.was_deleted(task.id, "default")
    for path, used in uses.items():
        row, file = house.store.uploads.get(path, "default") is not None, house.folders.upload(path).exists()
        assert row == file
        assert row or house.now - used >= DAY
        assert not (row and house.now - used > DAY + 2 * USE_GRAIN)
    house.store.close()


def _use(house: House, uses: dict[str, datetime], number: int) -> None:
    for path in list(uses)[number : number + 1]:
        if house.store.uploads.use(path, "default"):
            uses[path] = house.now


def _delete(house: House, tasks: list[Task], number: int) -> None:
    for task in tasks[number : number + 1]:
        if task.status.ended:
            try:
                house.store.ended.delete(task)
            except LostRace:
                assert house.store.get(task.id) is None
            house.folders.remove_task(task.id)


def test_the_settings_become_the_policy_and_0_means_for_ever() -> None:
    usual = load_settings().retention.policy()
    assert (usual.results, usual.inputs, usual.uploads, usual.records) == (7 * DAY, DAY, DAY, 90 * DAY)
    kept = load_settings({"retention": {"results_hours": 0}}).retention.policy()
    assert kept.expires_at(NOON) is None
