"""The process that owns one attempt, from the start of its engine to the last write into the row.

It lives in a session of its own and answers to nobody: a restart of the web server does not touch it. It starts the
engine first and imports what is heavy while the engine already works, because a task's first second counts.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tasks.engine_process import EngineProcess
from tasks.spec import LOG_FILE, RUNNER_ONLY, AttemptSpec
from utils.process import become_subreaper, try_lock

_SLOT_SECONDS = 60.0


def main(argv: list[str]) -> int:
    """Run the attempt whose folder is `argv[1]`; return 0 when its end is recorded."""
    folder = Path(argv[1])
    spec = AttemptSpec.load(folder)
    os.umask(0o027)
    become_subreaper()
    slot = _take_slot(Path(spec.slot_lock))
    began = time.monotonic()
    engine, problem = None, "the slot is still held by a process of an earlier task"
    if slot is not None:
        engine, problem = _start(spec, folder, slot)

    from tasks.attempt import Attempt  # the store and SQLAlchemy: 0.2 s that the engine need not wait for

    return Attempt(spec, os.environ["AVATAR_DATABASE_URL"], engine, problem, slot, began).run()


def _start(spec: AttemptSpec, folder: Path, slot: int) -> tuple[EngineProcess | None, str]:
    environ = {name: value for name, value in os.environ.items() if name not in RUNNER_ONLY}
    try:
        return EngineProcess(spec.argv, folder, folder / LOG_FILE, environ, slot), ""
    except OSError as error:
        return None, f"the engine's script cannot be started: {error.strerror}"


def _take_slot(path: Path) -> int | None:
    """Wait until no process holds the slot: its last user may still be on the way out."""
    deadline = time.monotonic() + _SLOT_SECONDS
    while (lock := try_lock(path)) is None and time.monotonic() < deadline:
        time.sleep(0.02)  # flock has no wait with a deadline
    return lock


if __name__ == "__main__":
    sys.exit(main(sys.argv))
