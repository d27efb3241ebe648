"""A runner does not need the database to do its work: what it cannot tell while others hold it, it tells later."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from task_manager import TaskManager
from tasks.launch import Launcher
from tasks.model import Status
from tests.conftest import PATIENCE, ROOT
from tests.tasks.conftest import Bench, wait_until
from utils.process import try_lock


def test_a_runner_works_on_while_the_database_is_locked_and_tells_its_end_later(bench: Bench) -> None:
    """And the scheduler, which hears nothing from it in the database for longer than its lease, does not kill it."""
    go = bench.folder / "go"
    quick = {"runner": {"heartbeat_seconds": 0.2, "poll_seconds": 0.05}}
    manager = bench.open("when_told", quick, env={"FAKE_GO": str(go)})
    task = bench.submit(manager)
    task = bench.until(manager, task, lambda seen: seen.runner is not None)
    bench.stop(manager)  # from here on the test looks in its place
    scheduler, launcher = manager._scheduler, manager._scheduler._launcher
    bench.monkeypatch.setattr(scheduler, "_lease_seconds", 0.1)

    def look_and_wait() -> None:
        """Look, then wait for another pulse of the runner, and until the lease is over."""
        scheduler._look_after(task)
        before, over = launcher.pulse(task), time.monotonic() + 0.2
        wait_until(lambda: launcher.pulse(task) != before and time.monotonic() > over, "another pulse")

    with closing(holding(manager)) as holder:
        for _ in range(3):
            look_and_wait()
        scheduler._look_after(task)
        go.touch()
        published = manager.folders.result(task.id, task.attempt) / "video.mp4"
        wait_until(published.exists, "the video")
        assert manager.view(task.id, task.tenant).task.status is Status.PROCESSING
        holder.execute("ROLLBACK")
    scheduler._leave_office()
    ended = bench.ended(manager, task)
    assert (ended.status, ended.attempt, len(bench.starts_of(task))) == (Status.COMPLETED, 1, 1)


def holding(manager: TaskManager) -> sqlite3.Connection:
    """Return a connection that lets nobody else write."""
    holder = sqlite3.connect(manager.folders.data / "avatar.db", PATIENCE, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    return holder


def test_a_runner_that_could_not_say_who_it_is_says_so_later(bench: Bench) -> None:
    runner = {"heartbeat_seconds": 0.2, "poll_seconds": 0.05}
    manager = bench.open("hang", {"runner": runner})
    slot = try_lock(manager.folders.slots / "cpu-0.lock")
    task = bench.until(manager, bench.submit(manager), lambda seen: seen.status is Status.PROCESSING)
    with closing(holding(manager)):
        os.close(slot)
        log = manager.folders.attempt(task.id, 1) / "runner.log"
        wait_until(lambda: log.exists() and "the database does not answer" in log.read_text(), "the runner's try")
        assert manager.view(task.id, task.tenant).task.runner is None
    bench.until(manager, task, lambda seen: seen.runner is not None)
    manager.delete(task.id, task.tenant)
    assert bench.ended(manager, task).status is Status.CANCELLED


# A runner whose database makes the end's commit and then says that it failed, once.
RUNNER = """
import os, sqlite3, sys
from pathlib import Path
from sqlalchemy.exc import OperationalError
from tasks.runner import run
from tasks.store import Store

finish, told = Store.finish, []

def finish_and_fail(self, *given):
    made = finish(self, *given)
    if not told:
        told.append(made)
        raise OperationalError("COMMIT", None, sqlite3.OperationalError("disk I/O error"))
    return made

Store.finish = finish_and_fail
sys.exit(run(Path(sys.argv[1])))
"""


class PatchedSpawner:
    """Starts such runners."""

    def __init__(self) -> None:
        self.runners: list[subprocess.Popen[bytes]] = []

    def warm_up(self) -> None: ...

    def be_ready(self) -> None: ...

    def close(self) -> None: ...

    def spawn(self, folder: Path, environment: Mapping[str, str], lock: int) -> int:
        command = [sys.executable, "-c", RUNNER, str(folder)]
        with (folder / "runner.log").open("wb") as log:
            made = subprocess.Popen(
                command, cwd=ROOT, env={**environment}, pass_fds=(lock,), stderr=log, start_new_session=True
            )
        self.runners.append(made)
        return made.pid


def test_a_result_stays_whose_end_was_committed_though_the_database_said_that_it_failed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawner = PatchedSpawner()
    bench.spawner = None
    monkeypatch.setattr("task_manager.Launcher", partial(Launcher, spawner=spawner))
    manager = bench.open("copy")
    task = bench.ended(manager, bench.submit(manager))
    assert [runner.wait(30) for runner in spawner.runners] == [0]
    assert "not recorded yet" in (manager.folders.attempt(task.id, 1) / "runner.log").read_text()
    assert (task.status, task.attempt) == (Status.COMPLETED, 1)
    assert manager.result_file(task, "video.mp4").is_file()
