"""A runner does not need the database to do its work: what it cannot tell while others hold it, it tells later."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tasks.launch import Launcher
from tasks.model import Status
from tests.conftest import ROOT
from tests.tasks.conftest import Bench
from utils.process import try_lock


def test_a_runner_works_on_while_the_database_is_locked_and_tells_its_end_later(bench: Bench) -> None:
    """And the scheduler, which hears nothing from it in the database for longer than its lease, does not kill it."""
    runner = {"heartbeat_seconds": 0.2, "lease_seconds": 1.0, "poll_seconds": 0.05}
    manager = bench.open("slow_copy", {"runner": runner}, env={"FAKE_SECONDS": "3"})
    task = bench.submit(manager)
    task = bench.until(manager, task, lambda seen: seen.runner is not None)
    with closing(sqlite3.connect(manager.folders.data / "avatar.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        published = manager.folders.result(task.id, task.attempt) / "video.mp4"
        deadline, pause = time.monotonic() + 30, threading.Event()
        while not published.exists():
            assert time.monotonic() < deadline, "the lock kept the runner from its work"
            pause.wait(0.01)
        assert manager.view(task.id, task.tenant).task.status is Status.PROCESSING
        holder.execute("ROLLBACK")
    ended = bench.ended(manager, task)
    assert (ended.status, ended.attempt, len(bench.starts_of(task))) == (Status.COMPLETED, 1, 1)


def test_a_runner_that_could_not_say_who_it_is_says_so_later(bench: Bench) -> None:
    runner = {"heartbeat_seconds": 0.2, "poll_seconds": 0.05}
    manager = bench.open("hang", {"runner": runner})
    slot = try_lock(manager.folders.slots / "cpu-0.lock")
    task = bench.until(manager, bench.submit(manager), lambda seen: seen.status is Status.PROCESSING)
    with closing(sqlite3.connect(manager.folders.data / "avatar.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        os.close(slot)
        log = manager.folders.attempt(task.id, 1) / "runner.log"
        deadline, pause = time.monotonic() + 30, threading.Event()
        while not log.exists() or "the database does not answer" not in log.read_text():
            assert time.monotonic() < deadline, "the runner said who it is"
            pause.wait(0.01)
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
