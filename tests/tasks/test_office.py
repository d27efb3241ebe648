"""Who does the work of a host: one at a time, and not for ever one that was stopped."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tasks import office
from tasks.model import Status
from tests.conftest import ROOT
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
    process.communicate(timeout=20)


@pytest.fixture
def holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    process = started(HOLDER, lock)
    yield process
    end(process)


class Waiting:
    """One who waits for the office; counts its looks at the holder, which it takes for silent while told so."""

    def __init__(self, lock: Path) -> None:
        self.silent, self.looks = True, threading.Semaphore(0)
        self.in_office, self.stopping = threading.Event(), threading.Event()
        args = (lock, self.stopping, 0.01, self.work, logging.getLogger("test"), self.is_silent)
        self.thread = threading.Thread(target=office.take_turns, args=args)
        self.thread.start()

    def is_silent(self) -> bool:
        self.looks.release()
        return self.silent

    def work(self, lock: int) -> None:
        self.in_office.set()
        self.stopping.wait(30)

    def look(self, times: int) -> None:
        """Wait for so many looks from now on to be over."""
        while self.looks.acquire(blocking=False):
            pass
        for _ in range(times + 1):
            assert self.looks.acquire(timeout=20)


@pytest.fixture
def waiting(lock: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Waiting]:
    monkeypatch.setattr(office, "_CHECK_SECONDS", 0.0)
    one = Waiting(lock)
    yield one
    one.stopping.set()
    one.thread.join(20)


def test_a_holder_that_is_slow_is_left_alone_and_one_that_is_stopped_gives_way(
    holder: subprocess.Popen[str], waiting: Waiting
) -> None:
    waiting.look(5)
    assert holder.poll() is None
    holder.send_signal(signal.SIGSTOP)
    assert waiting.in_office.wait(20)
    assert holder.wait(20) == -signal.SIGKILL


def test_a_holder_that_is_stopped_but_was_heard_of_is_left_alone(
    holder: subprocess.Popen[str], waiting: Waiting
) -> None:
    waiting.silent = False
    waiting.look(1)
    holder.send_signal(signal.SIGSTOP)
    waiting.look(5)
    assert psutil.Process(holder.pid).status() == psutil.STATUS_STOPPED
    assert not waiting.in_office.is_set()


def test_who_only_reads_the_file_is_left_alone_however_stopped(
    lock: Path, holder: subprocess.Popen[str], waiting: Waiting
) -> None:
    """Such as `less`, or a backup, under Ctrl-Z, while the holder's database does not answer."""
    reader = started(READER, lock)
    try:
        reader.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, reader.pid, os.WSTOPPED | os.WNOWAIT)
        waiting.look(5)
        assert psutil.Process(reader.pid).status() == psutil.STATUS_STOPPED
        assert holder.poll() is None
    finally:
        end(reader)


def test_tasks_go_on_when_the_process_that_schedules_was_stopped_and_nobody_is_there_to_kill_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = started(SCHEDULER, bench.folder, bench.video)
    try:
        other.send_signal(signal.SIGSTOP)
        monkeypatch.setattr("tasks.scheduler._STALLED_SECONDS", 1.5)
        monkeypatch.setattr(office, "_CHECK_SECONDS", 0.2)
        manager = bench.open()
        task = bench.ended(manager, bench.submit(manager))
        assert (task.status, task.attempt) == (Status.COMPLETED, 1)
        assert other.wait(20) == -signal.SIGKILL
    finally:
        end(other)
