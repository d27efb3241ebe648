"""Who does the work of a host: one at a time, and not for ever one that was stopped."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from task_manager import TaskManager
from tasks import office
from tasks.model import Status
from tests.conftest import PATIENCE, ROOT
from tests.tasks.conftest import Bench

HOLDER = """
import sys
from pathlib import Path
from utils.process import try_lock

assert try_lock(Path(sys.argv[1])) is not None
print("held", flush=True)
sys.stdin.read()
"""
READER = """
import sys

file = open(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""
SCHEDULER = """
import sys
from pathlib import Path
from tests.tasks.conftest import Bench

bench = Bench(Path(sys.argv[1]), Path(sys.argv[2]), None)
manager = bench.open()
bench.ended(manager, bench.submit(manager), 60)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def started(script: str, *args: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=PATIENCE)


@pytest.fixture
def holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    process = started(HOLDER, lock)
    yield process
    end(process)


@pytest.fixture
def guard(lock: Path, monkeypatch: pytest.MonkeyPatch) -> office.Guard:
    """One that may look at any time."""
    monkeypatch.setattr(office, "_CHECK_SECONDS", 0.0)
    return office.Guard(lock, logging.getLogger("test"))


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def is_stopped(process: subprocess.Popen[str]) -> bool:
    return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED


def test_a_holder_gives_way_that_was_stopped_at_two_looks_and_none_else(
    holder: subprocess.Popen[str], guard: office.Guard
) -> None:
    for _ in range(3):
        guard.look()
    stop(holder)
    guard.look()
    holder.send_signal(signal.SIGCONT)
    os.waitid(os.P_PID, holder.pid, os.WCONTINUED | os.WNOWAIT)
    guard.look()
    stop(holder)
    guard.look()
    assert is_stopped(holder)
    guard.look()
    assert holder.wait(PATIENCE) == -signal.SIGKILL


def test_two_looks_are_apart(lock: Path, holder: subprocess.Popen[str]) -> None:
    guard = office.Guard(lock, logging.getLogger("test"))
    stop(holder)
    for _ in range(3):
        guard.look()
    assert is_stopped(holder)


def test_who_only_reads_the_file_is_left_alone_however_stopped(
    lock: Path, holder: subprocess.Popen[str], guard: office.Guard
) -> None:
    """Such as `less`, or a backup, under Ctrl-Z."""
    reader = started(READER, lock)
    try:
        stop(reader)
        for _ in range(3):
            guard.look()
        assert is_stopped(reader)
        assert holder.poll() is None
    finally:
        end(reader)


@pytest.mark.parametrize("name", ["scheduler.lock", "retention.lock"])
def test_whoever_holds_an_office_and_is_stopped_gives_way(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(office, "_CHECK_SECONDS", 0.2)
    monkeypatch.setattr("tasks.retention._TAKEOVER_SECONDS", 0.1)
    manager = TaskManager(*bench.load())
    other = started(HOLDER, manager.folders.data / name)
    try:
        stop(other)
        bench.managers.append(manager)
        bench.start(manager)
        assert other.wait(PATIENCE) == -signal.SIGKILL
    finally:
        end(other)


def test_tasks_go_on_when_the_process_that_schedules_was_stopped_and_nobody_is_there_to_kill_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = started(SCHEDULER, bench.folder, bench.video)
    try:
        with closing(sqlite3.connect(bench.folder / "data" / "avatar.db", PATIENCE, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")  # one that is stopped while it writes keeps the database from all
            stop(other)
        monkeypatch.setattr(office, "_CHECK_SECONDS", 0.2)
        manager = bench.open()
        task = bench.ended(manager, bench.submit(manager))
        assert (task.status, task.attempt) == (Status.COMPLETED, 1)
        assert other.wait(PATIENCE) == -signal.SIGKILL
    finally:
        end(other)
