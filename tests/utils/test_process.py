"""Real processes: told apart, found wherever they fled, and killed until none is left."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests.conftest import PATIENCE
from utils.process import (
    LINUX,
    boot_id,
    descendants,
    holders,
    is_alive,
    kill_all,
    make_cgroup,
    marked,
    start_time,
    try_lock,
    watch,
)

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
# A shell that starts a sleeper in another session, says its pid and ends, so that the sleeper is an orphan.
FLEE = (
    "import subprocess as s, sys\n"
    "p = s.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True, stdout=s.DEVNULL,"
    " stderr=s.DEVNULL)\n"
    "print(p.pid)"
)


@pytest.fixture
def mark() -> dict[str, str]:
    return {"AVATAR_TEST_MARK": uuid.uuid4().hex}


@pytest.fixture
def sleeper(mark: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEP, env={**os.environ, **mark})
    yield process
    process.kill()
    process.wait(PATIENCE)


def test_a_process_is_its_pid_and_its_start(sleeper: subprocess.Popen[bytes]) -> None:
    started = start_time(sleeper.pid)
    assert started is not None
    assert is_alive(sleeper.pid, started)
    assert not is_alive(sleeper.pid, started - 1), "a reused pid is another process"
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(sleeper.pid, started), "a zombie is dead"


def test_no_process_has_no_start() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(PATIENCE)
    assert start_time(child.pid) is None
    assert not is_alive(child.pid, 1)
    assert descendants(child.pid) == []


def test_the_boot_id_is_stable() -> None:
    assert boot_id() == boot_id() != ""


@pytest.mark.skipif(not LINUX, reason="pidfds are Linux's")
def test_a_watched_process_tells_its_death(sleeper: subprocess.Popen[bytes]) -> None:
    descriptor = watch(sleeper.pid)
    assert select.select([descriptor], [], [], 0)[0] == []
    sleeper.kill()
    assert select.select([descriptor], [], [], PATIENCE)[0] == [descriptor]
    os.close(descriptor)
    sleeper.wait(PATIENCE)
    assert watch(sleeper.pid) is None


def test_a_lock_excludes_and_lives_as_long_as_its_last_holder(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "lock")
    assert try_lock(tmp_path / "lock") is None
    heir = subprocess.Popen(SLEEP, pass_fds=(lock,))
    os.close(lock)
    assert try_lock(tmp_path / "lock") is None, "the child inherited it"
    heir.kill()
    heir.wait(PATIENCE)
    again = try_lock(tmp_path / "lock")
    assert again is not None
    os.close(again)


@pytest.mark.skipif(not LINUX, reason="the kernel does not tell who holds a lock")
def test_the_holders_of_a_lock_are_its_heirs_and_not_who_only_has_the_file_open(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "lock")
    with (tmp_path / "lock").open("rb") as file:
        heir, reader = (subprocess.Popen(SLEEP, pass_fds=(kept,)) for kept in (lock, file.fileno()))
        try:
            assert [process.pid for process in holders(tmp_path / "lock")] == [heir.pid]
        finally:
            for process in (heir, reader):
                process.kill()
                process.wait(10)
    os.close(lock)


def test_outside_linux_a_holder_is_found_whose_other_files_are_gone(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lock").touch()

    def told(process: psutil.Process) -> list[SimpleNamespace]:
        names = ["gone", "lock"] if process.pid == sleeper.pid else []
        return [SimpleNamespace(path=str(tmp_path / name)) for name in names]

    monkeypatch.setattr("utils.process.LINUX", False)
    monkeypatch.setattr(psutil.Process, "open_files", told)
    assert [process.pid for process in holders(tmp_path / "lock")] == [sleeper.pid]


def test_who_cannot_look_takes_nobody_for_dead(mark: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose descriptors are used up must start no second attempt beside the first."""
    left = subprocess.Popen(SLEEP, env={**os.environ, **mark})

    def fail(process: psutil.Process) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), f"/proc/{process.pid}/environ")

    try:
        with monkeypatch.context() as patch:
            patch.setattr(psutil.Process, "environ", fail)
            with pytest.raises(OSError, match="Too many open files"):
                kill_all(below=None, marks=mark, deadline=1.0)
        assert left.poll() is None
        assert kill_all(below=None, marks=mark, deadline=10.0)
    finally:
        left.kill()
        left.wait(10)


def test_an_orphan_in_another_session_is_found_by_its_mark_and_killed(mark: dict[str, str]) -> None:
    parent = subprocess.run([sys.executable, "-c", FLEE], env={**os.environ, **mark}, capture_output=True, timeout=60)
    orphan = int(parent.stdout)
    assert [process.pid for process in marked(mark)] == [orphan]
    assert marked({**mark, "AVATAR_TEST_OTHER": "x"}) == []
    assert kill_all(below=None, marks=mark, deadline=PATIENCE)
    assert marked(mark) == []


def test_everything_below_a_process_is_killed_but_not_the_process(mark: dict[str, str]) -> None:
    nest = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('up', flush=True)\ntime.sleep(600)"
    )
    keeper = subprocess.Popen([sys.executable, "-c", nest], stdout=subprocess.PIPE, env={**os.environ, **mark})
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == b"up\n"
    assert len(descendants(keeper.pid)) == 1
    assert kill_all(below=keeper.pid, marks={}, deadline=PATIENCE)
    assert descendants(keeper.pid) == []
    assert keeper.poll() is None
    keeper.kill()
    keeper.wait(PATIENCE)
    keeper.stdout.close()


def test_killing_nothing_succeeds(mark: dict[str, str]) -> None:
    assert kill_all(below=None, marks=mark, deadline=1)
    assert psutil.pid_exists(os.getpid())


def test_a_cgroup_that_cannot_be_ended_is_reported_and_no_error(tmp_path: Path, mark: dict[str, str]) -> None:
    assert not kill_all(below=None, marks=mark, deadline=0.1, cgroup=tmp_path)
    assert kill_all(below=None, marks=mark, deadline=0.1, cgroup=tmp_path / "gone")


def test_where_the_kernel_cannot_kill_a_cgroup_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.process._own_cgroup", lambda: tmp_path)
    monkeypatch.setattr(os, "getxattr", lambda path, name: b"1", raising=False)
    assert make_cgroup("avatar-gen-1") is None
    assert list(tmp_path.iterdir()) == []
