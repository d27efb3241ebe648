"""Attempts whose runner was killed, stopped or overtaken: found by their lock, cleared away, followed by the next."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from sqlalchemy import update

from tasks.model import Event, Phase, Status
from tasks.scheduler import LOCK_NAME
from tasks.schema import tasks
from tasks.wake import ring
from tests.conftest import PATIENCE
from tests.tasks.conftest import Bench, is_gone, wait_until
from utils.failpoint import Point
from utils.process import marked, watch

QUICK = {"runner": {"heartbeat_seconds": 0.2, "poll_seconds": 0.05}}


def claims(bench: Bench) -> dict[str, str]:
    """Return the variables with which stand-in engines note that two of one task, or of one GPU, lived at once."""
    folder = bench.folder / "claims"
    folder.mkdir(exist_ok=True)
    return {"FAKE_CLAIMS": str(folder)}


def lived_at_once(bench: Bench) -> bool:
    return (bench.folder / "claims" / "taken-twice").exists()


def test_what_left_the_session_is_killed_also_when_runner_and_scheduler_died_together(bench: Bench) -> None:
    first = bench.open("stubborn", env=claims(bench))
    task = bench.until(first, bench.submit(first), lambda seen: seen.phase is Phase.GENERATING and bool(seen.runner))
    bench.stop(first)
    os.kill(task.runner.pid, signal.SIGKILL)
    orphans = marked({"AVATAR_TASK_ID": task.id})
    assert len(orphans) == 2, "the engine and its grandchild ignore the SIGTERM that they got"
    second = bench.open("copy", env=claims(bench))
    ended = bench.ended(second, task)
    assert (ended.status, ended.attempt) == (Status.COMPLETED, 2)
    assert all(map(is_gone, orphans))
    assert not lived_at_once(bench)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_runner_that_lost_its_attempt_stops_and_publishes_nothing(bench: Bench, stopped: bool) -> None:
    """Also one that slept while its engine got done, so that it learns of its loss only as it publishes."""
    go = bench.folder / "go"
    manager = bench.open("when_told", env={**claims(bench), "FAKE_GO": str(go)}, settings={"slots": {"cpu": 2}})
    task = bench.until(
        manager, bench.submit(manager), lambda seen: seen.phase is Phase.GENERATING and bool(seen.runner)
    )
    runner = psutil.Process(task.runner.pid)
    engine = psutil.Process(int(bench.starts_of(task)[0][3]))
    if stopped:
        bench.suspend(manager, runner)
        go.touch()
        wait_until(lambda: engine.status() == psutil.STATUS_ZOMBIE, "the engine's end")  # its parent cannot collect it
    # It may tell of its progress between a look at the row and this.
    moved_on = manager._insist(task.id, "default", lambda view: manager.store.happen(view.task, Event.REQUEUE))
    if stopped:
        bench.until(manager, task, lambda seen: seen.attempt == 2)
        runner.resume()
    wait_until(lambda: is_gone(runner), "the runner's leave")
    go.touch()
    ended = bench.ended(manager, moved_on)
    assert (ended.status, ended.attempt) == (Status.COMPLETED, 2)
    assert [path.name for path in (manager.folders.results / task.id).iterdir()] == ["2"]
    assert not any((manager.folders.attempt(task.id, 1) / name).exists() for name in ("out", "publish"))


@pytest.mark.long
@pytest.mark.parametrize("point", [Point.RUNNER_BEGAN, Point.ENGINE_STARTED])
def test_a_runner_that_hangs_before_it_told_its_pid_is_killed_after_its_lease(bench: Bench, point: Point) -> None:
    settings: dict[str, Any] = {"env": "test", "failpoint": f"{point}:hang", **QUICK}
    manager = bench.open("slow_copy", settings=settings, env={**claims(bench), "FAKE_SECONDS": "0.5"})
    task = bench.until(manager, bench.submit(manager), lambda seen: seen.attempt == 1)
    bench.lose_patience(manager, task)
    ended = bench.ended(manager, task)
    assert (ended.status, ended.attempt) == (Status.COMPLETED, 2)
    assert not lived_at_once(bench)


def test_a_runner_that_was_stopped_as_it_held_the_database_is_killed_though_another_is_to_be_reaped(
    bench: Bench,
) -> None:
    """Whose end cannot be written before the stopped one is dead."""
    settings = {**QUICK, "slots": {"cpu": 2}, "database_busy_seconds": 0.2}
    manager = bench.open("hang", settings=settings)
    dead, stopped = (
        bench.until(manager, bench.submit(manager), lambda seen: seen.phase is Phase.GENERATING and bool(seen.runner))
        for _ in range(2)
    )
    runner = psutil.Process(stopped.runner.pid)
    with closing(sqlite3.connect(manager.folders.data / "avatar.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")  # in the stead of the stopped one
        runner.suspend()
        bench.lose_patience(manager, stopped)
        os.kill(dead.runner.pid, signal.SIGKILL)
        wait_until(lambda: is_gone(runner), "the end of the stopped runner")
        holder.execute("ROLLBACK")
    for task in (dead, stopped):
        bench.until(manager, task, lambda seen: seen.attempt == 2)
        manager.delete(task.id, "default")
        assert bench.ended(manager, task).status is Status.CANCELLED


def test_a_clock_that_is_set_forward_kills_no_runner(bench: Bench) -> None:
    go = bench.folder / "go"
    manager = bench.open("when_told", env={"FAKE_GO": str(go)})
    task = bench.until(
        manager, bench.submit(manager), lambda seen: seen.phase is Phase.GENERATING and bool(seen.runner)
    )
    runner = psutil.Process(task.runner.pid)
    bench.suspend(manager, runner)  # else it tells anew before anybody has looked
    long_ago = task.submit_time.replace(year=2020)
    with manager.store._writing.begin() as db:
        db.execute(update(tasks).where(tasks.c.id == task.id).values(heartbeat_at=long_ago))
    ring(manager.folders.wake)
    nothing = (None, None), 0.0
    wait_until(
        lambda: manager._scheduler._heard.get((task.id, 1), nothing)[0][0] == long_ago, "the scheduler's look at it"
    )
    runner.resume()
    go.touch()
    ended = bench.ended(manager, task)
    assert (ended.status, ended.attempt) == (Status.COMPLETED, 1)


def test_a_service_that_was_paused_as_a_whole_kills_no_runner_when_it_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a container is, or a virtual machine: the scheduler looks before the runner can have beaten again."""
    settings = {"runner": {**QUICK["runner"], "lease_seconds": 60.0}, "slots": {"cpu": 2}}
    go = bench.folder / "go"
    manager = bench.open("when_told", settings=settings, env={"FAKE_GO": str(go)})
    task = bench.until(
        manager, bench.submit(manager), lambda seen: seen.phase is Phase.GENERATING and bool(seen.runner)
    )
    runner = psutil.Process(task.runner.pid)
    bench.suspend(manager, runner)
    bench.until(manager, bench.submit(manager), lambda seen: seen.phase is Phase.GENERATING)  # after another look
    real = time.monotonic
    monkeypatch.setattr("tasks.scheduler.time", SimpleNamespace(monotonic=lambda: real() + 3600))
    for _ in range(2):  # the first look may have begun before
        noted = (manager.folders.data / LOCK_NAME).read_text()
        ring(manager.folders.wake)
        wait_until(lambda noted=noted: (manager.folders.data / LOCK_NAME).read_text() != noted)
    assert runner.status() == psutil.STATUS_STOPPED
    runner.resume()
    go.touch()
    ended = bench.ended(manager, task)
    assert (ended.status, ended.attempt) == (Status.COMPLETED, 1)


def test_a_watched_process_that_is_dead_gives_way_to_the_runner_that_lives(bench: Bench) -> None:
    """Else it keeps the scheduler awake: a spawner killed after it forked leads to another fork that ends at once."""
    manager = bench.open("hang")
    task = bench.until(
        manager, bench.submit(manager), lambda seen: seen.phase is Phase.GENERATING and bool(seen.runner)
    )
    scheduler = manager._scheduler
    assert scheduler is not None
    second = subprocess.Popen(["sleep", "600"])
    wait_until(lambda: (task.id, task.attempt) in scheduler._watched, "the runner's pidfd")
    scheduler._watched[task.id, task.attempt] = watch(second.pid)
    second.kill()
    second.wait(PATIENCE)
    ring(manager.folders.wake)

    def watched() -> str:
        with suppress(FileNotFoundError):  # the scheduler has just closed it
            descriptor = scheduler._watched.get((task.id, task.attempt))
            return "" if descriptor is None else Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        return ""

    wait_until(lambda: f"Pid:\t{task.runner.pid}\n" in watched(), "the runner's own pidfd")
    manager.delete(task.id, "default")
    bench.ended(manager, task)


@pytest.mark.parametrize("kind", ["of another release", "unreadable"])
def test_an_attempt_whose_files_make_no_sense_holds_up_no_other_task(bench: Bench, kind: str) -> None:
    manager = bench.open("hang", settings={"slots": {"cpu": 2}})
    task = bench.until(
        manager, bench.submit(manager), lambda seen: seen.phase is Phase.GENERATING and bool(seen.runner)
    )
    kept = manager.folders.attempt(task.id, 1) / "finish.json"
    kept.write_text('{"event": "postpone"}') if kind == "of another release" else kept.mkdir()
    os.kill(task.runner.pid, signal.SIGKILL)
    other = bench.until(manager, bench.submit(manager), lambda seen: seen.status is Status.PROCESSING)
    if kind == "unreadable":
        assert manager.view(task.id, "default").task.attempt == 1
        kept.rmdir()
    bench.until(manager, task, lambda seen: seen.attempt == 2 and bool(seen.runner))
    for each in (task, other):
        manager.delete(each.id, "default")
        assert bench.ended(manager, each).status is Status.CANCELLED


def test_a_lock_whose_file_somebody_removed_costs_no_attempt_and_hides_no_stopped_runner(bench: Bench) -> None:
    settings = {**QUICK, "slots": {"cpu": 2}}
    manager = bench.open("when_told", settings=settings, env={**claims(bench), "FAKE_GO": str(bench.folder / "go")})
    task = bench.until(
        manager, bench.submit(manager), lambda seen: seen.phase is Phase.GENERATING and bool(seen.runner)
    )
    lock = manager.folders.attempt(task.id, 1) / "lock"
    lock.unlink()
    bench.until(manager, bench.submit(manager), lambda seen: seen.phase is Phase.GENERATING)  # after another look
    assert manager.view(task.id, "default").task.attempt == 1
    os.kill(task.runner.pid, signal.SIGSTOP)
    bench.lose_patience(manager, task)
    bench.until(manager, task, lambda seen: seen.attempt == 2)
    (bench.folder / "go").touch()
    assert bench.ended(manager, task).status is Status.COMPLETED
    assert not lived_at_once(bench)


def test_what_shed_its_environment_keeps_no_slot_from_the_next_task(bench: Bench) -> None:
    manager = bench.open("escape", env={"FAKE_KEEP_FILES": "1"})
    task = bench.until(
        manager, bench.submit(manager), lambda seen: seen.phase is Phase.GENERATING and bool(seen.runner)
    )
    escaped = psutil.Process(int((manager.folders.attempt(task.id, 1) / "escaped").read_text()))
    assert escaped.environ() == {}
    os.kill(task.runner.pid, signal.SIGKILL)
    wait_until(lambda: is_gone(escaped), "the end of what escaped")
    bench.until(manager, task, lambda seen: seen.attempt == 2 and seen.phase is Phase.GENERATING)
    manager.delete(task.id, "default")
    assert bench.ended(manager, task).status is Status.CANCELLED


@pytest.fixture
def delegated() -> Iterator[Path]:
    """Put this process, and what it will start, into a cgroup that is delegated to it; back at the end."""
    mounts = [
        line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line
    ]
    own = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    if not mounts or not own or not os.access(mounts[0], os.W_OK):
        pytest.skip("no cgroup2 that this user may write")
    home = Path(mounts[0] + own[0])
    made = home / f"avatar-test-{uuid.uuid4().hex}"
    try:
        made.mkdir()
        os.setxattr(made, "user.delegate", b"1")
        (made / "cgroup.procs").write_text("0")
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    yield made
    (home / "cgroup.procs").write_text("0")
    (made / "cgroup.kill").write_text("1")
    wait_until(lambda: "populated 0" in (made / "cgroup.events").read_text(), "the end of all in the cgroup")
    for inner in [path for path in made.iterdir() if path.is_dir()]:
        inner.rmdir()
    made.rmdir()


@pytest.mark.parametrize("end", ["cancel", "kill"])
def test_in_a_delegated_cgroup_nothing_escapes_not_even_without_an_environment(
    delegated: Path, bench: Bench, end: str
) -> None:
    bench.spawner = None  # of its own, in that cgroup
    manager = bench.open("escape")
    task = bench.until(
        manager, bench.submit(manager), lambda seen: seen.phase is Phase.GENERATING and bool(seen.runner)
    )
    escaped = psutil.Process(int((manager.folders.attempt(task.id, 1) / "escaped").read_text()))
    assert escaped.environ() == {}
    assert [path.name for path in delegated.iterdir() if path.is_dir()] == [f"avatar-{task.id}-1"]
    if end == "kill":
        os.kill(task.runner.pid, signal.SIGKILL)
    manager.delete(task.id, "default")
    assert bench.ended(manager, task).status is Status.CANCELLED
    assert is_gone(escaped)
    wait_until(lambda: not any(path.is_dir() for path in delegated.iterdir()), "the end of its cgroup")
