"""The process that owns one attempt, from the start of its engine to the last write into the row.

It lives in a session of its own and answers to nobody: a restart of the web server does not touch it. It is forked from
the spawner (tasks.spawner), which has imported all that it needs, so the engine starts within milliseconds.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from tasks.attempt import Attempt
from tasks.engine_process import EngineProcess
from tasks.slot import take
from tasks.spec import BEAT_FILE, CGROUP_FILE, DATABASE_VARIABLE, FAILPOINT_VARIABLE, LOG_FILE, AttemptSpec
from utils.failpoint import Point, reach
from utils.process import become_subreaper, make_cgroup, name_process

_NOT_FOR_ENGINES = (DATABASE_VARIABLE, FAILPOINT_VARIABLE)


def run(folder: Path) -> int:
    """Run the attempt whose folder this is; return 0 when its end is recorded."""
    os.umask(0o027)
    name_process("avatar-runner")
    become_subreaper()
    spec = AttemptSpec.load(folder)
    try:
        if not _is_first(folder):
            return 0
        reach(Point.RUNNER_BEGAN)
        slot = take(spec, os.environ[DATABASE_VARIABLE])
    except OSError as error:  # no room for a file: no engine then, only a runner that says so
        return _tell_end(spec, None, f"{error.filename} cannot be written: {error.strerror}", None)
    if slot is None:
        # Where the row asked for a cancel meanwhile, or has gone to another attempt, its verbs make that of it.
        return _tell_end(spec, None, "the slot is still held by a process of an earlier task", None)
    return _tell_end(spec, *_start(spec, folder, slot), slot)


def _tell_end(spec: AttemptSpec, engine: EngineProcess | None, problem: str, slot: list[int] | None) -> int:
    return Attempt(spec, os.environ[DATABASE_VARIABLE], engine, problem, slot, time.monotonic()).run()


def _is_first(folder: Path) -> bool:
    """Say whether no runner of this attempt came before: a spawner that did not answer in time may have forked one."""
    try:
        (folder / BEAT_FILE).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _start(spec: AttemptSpec, folder: Path, slot: list[int]) -> tuple[EngineProcess | None, str]:
    environ = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_ENGINES}
    cgroup = make_cgroup(f"avatar-{spec.task_id}-{spec.attempt}")
    try:
        if cgroup is not None:
            (folder / CGROUP_FILE).write_text(str(cgroup), "utf-8")  # for whoever comes after this process
        return EngineProcess(spec.argv, folder, folder / LOG_FILE, environ, slot, cgroup, spec.limits), ""
    except OSError as error:
        return None, f"the engine's script cannot be started: {error.strerror}"
