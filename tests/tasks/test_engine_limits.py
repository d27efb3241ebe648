"""What the kernel holds an engine to, seen by real engines; and what a task says that hit a limit."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest

from tasks.engine_limits import EngineLimits
from tasks.model import ErrorCode, Status
from tests.conftest import ROOT
from tests.tasks.conftest import Bench

MOST = 64 * 1024


def limited(**limits: int) -> dict[str, object]:
    return {"runner": {"poll_seconds": 0.05, "limits": limits}}


def test_an_engine_has_its_limits_hard_and_soft_stands_back_and_writes_nothing_for_everyone(bench: Bench) -> None:
    manager = bench.open("dump", limited(file_bytes=2**30, open_files=200, nice=3))
    task = bench.ended(manager, bench.submit(manager))
    assert task.status is Status.COMPLETED, task.failure
    seen = manager.folders.attempt(task.id, 1) / "seen.json"
    told = json.loads(seen.read_text())
    limits = {name: tuple(both) for name, both in told["limits"].items()}
    assert told["nice"] == min(os.nice(0) + 3, 19)
    assert limits == {"CORE": (0, 0), "FSIZE": (2**30, 2**30), "NOFILE": (200, 200)}
    assert seen.stat().st_mode & 0o777 == 0o640


SCRIPTS = {
    "it sees the error": """exec "$AVATAR_PYTHON" -c "open('$out', 'wb').write(bytes(10**6))" """,
    "it gets the signal": 'exec head -c 1000000 /dev/zero >"$out"',
    "it goes on": 'head -c 1000000 /dev/zero >"$out"\nexit 0',
}


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=pytest.mark.long) if how == "it goes on" else how for how in SCRIPTS]
)
def test_a_file_past_its_limit_fails_its_task_by_name_and_is_not_called_a_full_disk(bench: Bench, how: str) -> None:
    script = bench.folder / "endless.sh"
    script.write_text(f'#!/usr/bin/env bash\nout="${{8#--output_dir=}}/video.mp4"\n{SCRIPTS[how]}\n')
    script.chmod(0o755)
    manager = bench.open(settings=limited(file_bytes=MOST), script=str(script))
    task = bench.ended(manager, bench.submit(manager))
    code = ErrorCode.ENGINE_OUTPUT_INVALID if how == "it goes on" else ErrorCode.ENGINE_FAILED
    assert (task.status, task.failure.code) == (Status.FAILED, code), task.failure
    assert f"its limit of {MOST} bytes (runner.limits.file_bytes)" in task.failure.message


@pytest.mark.parametrize(("wanted", "files"), [(50, 50), (10_000, 100), (0, 0)])
def test_no_limit_is_raised_above_the_service_s_own(wanted: int, files: int) -> None:
    say = f"from tasks.engine_limits import EngineLimits; print(EngineLimits(0, {wanted}).within_own())"
    done = subprocess.run(
        [sys.executable, "-c", say], cwd=ROOT, capture_output=True, text=True, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)),
    )  # fmt: skip
    assert done.stdout.strip() == repr(EngineLimits(0, files))
