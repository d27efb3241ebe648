"""Processes: who they are, whether they live, and how to be sure that none is left. Knows no task.

Linux is the target; where a call is Linux's own (subreaper, death signal, pidfd, /proc) other systems get a plainer
fallback, named in the function.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from utils.file_handler import if_possible

LINUX = sys.platform == "linux"

_CGROUP_KILL = "cgroup.kill"
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True) if LINUX else None


def boot_id() -> str:
    """Return what identifies this boot of the machine (the boot's time where there is no /proc)."""
    if LINUX:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return str(int(psutil.boot_time()))


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot (seconds elsewhere); None when there is none."""
    try:
        if LINUX:
            # The name in field 2 may hold spaces and parentheses; the fields after it are counted from the last one.
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        return int(psutil.Process(pid).create_time())
    except (OSError, psutil.NoSuchProcess):
        return None


def is_alive(pid: int, started: int) -> bool:
    """Say whether the process of this pid is the one that started then, and not a zombie."""
    try:
        return start_time(pid) == started and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def name_process(name: str) -> None:
    """Set the name (15 characters) that `ps` and `top` show for this process. Nothing outside Linux."""
    if _libc is not None:
        _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def become_subreaper() -> None:
    """Make orphans among this process's descendants its children, so that none is lost. Nothing outside Linux."""
    if _libc is not None and _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """For the child: get this signal when the *thread* that forked it ends. Nothing outside Linux."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def watch(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process ends; None where there are no pidfds or no process."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the file's exclusive flock, or None while another process holds it.

    The lock lives as long as any copy of the descriptor: it passes to a child that inherits it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_locked(path: Path) -> bool:
    """Say whether a process holds the file's exclusive flock, this one too; a file that is not there has none.

    It asks by a shared lock, held for a moment, so that two who ask do not take each other for the holder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holders(path: Path) -> list[psutil.Process]:
    """Return the other processes that hold the file's flock, also those that only inherited its descriptor.

    Who only reads the file, as a backup or `tail -f` does, is none, except outside Linux.
    """
    found = []
    for process in psutil.process_iter():
        with _passing_over():
            if process.pid != os.getpid() and _locks(process, path):
                found.append(process)
    return found


@contextlib.contextmanager
def _passing_over() -> Iterator[None]:
    """Pass over a process that is gone meanwhile, or of another user.

    Where this process has no descriptor or memory left to look, that says nothing of the other: then it raises OSError,
    for who is not seen would be taken for dead.
    """
    with contextlib.suppress(psutil.Error), if_possible():
        yield


def stopped_lockers(path: Path) -> set[psutil.Process]:
    """Return the processes that hold the file's flock and that a signal has stopped, as SIGSTOP and Ctrl-Z do.

    Who only reads the file is none, except outside Linux; nor is one under a debugger.
    """
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_STOPPED and _locks(process, path):
                found.add(process)
    return found


def _locks(process: psutil.Process, path: Path) -> bool:
    """Say whether a process holds the file's flock.

    A name may be that of another file for a process in a container, so it is the file that is compared.
    """
    if LINUX:
        opened = list(Path(f"/proc/{process.pid}/fd").iterdir())
    else:
        opened = [Path(each.path) for each in process.open_files()]
    for file in opened:
        with _passing_over():  # closed or removed meanwhile, which says nothing of the others
            if file.samefile(path) and (not LINUX or " FLOCK " in _told_of(process.pid, file.name)):
                return True
    return False


def _told_of(pid: int, descriptor: str) -> str:
    return Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text()


def descendants(pid: int) -> list[psutil.Process]:
    """Return all living processes below `pid`."""
    try:
        return [child for child in psutil.Process(pid).children(recursive=True) if _lives(child)]
    except psutil.NoSuchProcess:
        return []


def marked(marks: dict[str, str]) -> list[psutil.Process]:
    """Return the living processes of this user whose environment holds all of `marks`, whatever their parents are.

    A process that was started with another environment is not found. Raises OSError where nobody can be looked at.
    """
    found = []
    for process in psutil.process_iter():
        with _passing_over():
            environment = process.environ() if process.uids().real == os.getuid() else {}
            if all(environment.get(name) == value for name, value in marks.items()) and _lives(process):
                found.append(process)
    return found


def make_cgroup(name: str) -> Path | None:
    """Make a cgroup of this name below this process's own, where systemd delegated that to us; None elsewhere.

    Whatever is started in it stays in it, also what changes its session and its environment.
    """
    own = _own_cgroup()
    try:
        if own is None or os.getxattr(own, "user.delegate") != b"1":
            return None
        made = own / name
        made.mkdir()
        if not (made / _CGROUP_KILL).exists():  # before Linux 5.14
            made.rmdir()
            return None
    except OSError:
        return None
    return made


def _own_cgroup() -> Path | None:
    """Return the folder of this process's cgroup of version 2, None where there is none."""
    if not LINUX:
        return None
    paths = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line]
    if not paths or not mounts:
        return None
    root, mounted = mounts[0][3:5]
    below = os.path.relpath(paths[0], root)
    return None if below.startswith("..") else Path(mounted) / below


def join_cgroup(cgroup: Path) -> None:
    """Move this process, with all that it will start, into the cgroup. Raises OSError."""
    (cgroup / "cgroup.procs").write_text("0")


def _end_cgroup(cgroup: Path | None) -> bool:
    """SIGKILL all that is in the cgroup, at once, and remove it when it is empty; say whether it is."""
    if cgroup is None or not cgroup.exists():  # an earlier round removed it
        return True
    try:
        (cgroup / _CGROUP_KILL).write_text("1")
        if "populated 0" not in (cgroup / "cgroup.events").read_text():
            return False
        for inner in sorted(cgroup.rglob("*/"), reverse=True):
            inner.rmdir()
        cgroup.rmdir()
    except OSError:  # another was faster, or something came in between
        return not cgroup.exists()
    return True


def kill_all(*, below: int | None, marks: dict[str, str], deadline: float, cgroup: Path | None = None) -> bool:
    """SIGKILL all in `cgroup`, all below `below` (a pid, or None) and all that carry `marks`, until none is left.

    Rounds, because a process may fork while it is being looked for. Returns False when some are left after `deadline`
    seconds (a process in uninterruptible sleep). Raises OSError where this process has not what it takes to look.
    """
    until = time.monotonic() + deadline
    left: list[psutil.Process] = []
    while True:
        emptied = _end_cgroup(cgroup)
        left = _distinct([*left, *(descendants(below) if below else ()), *(marked(marks) if marks else ())])
        if not left and emptied:
            return True
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _, left = psutil.wait_procs(left, timeout=max(0.0, min(0.5, until - time.monotonic())))
        if time.monotonic() >= until:
            return not left and emptied
        if not emptied:
            time.sleep(0.01)  # what was killed in there is on its way out


def _distinct(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in dict.fromkeys(processes) if process.pid != os.getpid() and _lives(process)]


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
