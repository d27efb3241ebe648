"""`make demo`, the first thing that a visitor runs: it makes a video, and leaves nothing running when it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT

BAR = "["
"""What the demo's progress begins with; which phases it shows depends on how fast they pass."""


WHOLE = ["scripts/demo.py"]
HELD = [
    "-c",
    """import signal, sys
sys.path.insert(0, "scripts")
import demo
draw = demo._draw
demo._draw = lambda task: (draw(task), signal.pause())
sys.exit(demo.main())""",
]
"""The demo, but it draws its bar once and waits: its video is made sooner than a busy machine comes to a signal."""


@contextmanager
def demo(folder: Path, arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, "TMPDIR": str(folder)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as started:  # fmt: skip
        try:
            yield started
        finally:
            started.kill()


def below(folder: Path) -> list[psutil.Process]:
    """Return the living processes that work with the data of the demo, or in its folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            names = process.environ().get("AVATAR_DATA_DIR", "") + process.cwd()
            if str(folder) in names and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def is_runner(process: psutil.Process) -> bool:
    """Say whether it is a runner, which is on its way out when its task's row says so, or is gone."""
    try:
        return process.name() == "avatar-runner"
    except psutil.NoSuchProcess:
        return True


def command_line(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def read_until(started: subprocess.Popen[str], word: str) -> str:
    assert started.stdout is not None
    said = ""
    while word not in said:
        sign = started.stdout.read(1)
        assert sign, said
        said += sign
    return said


@pytest.mark.parametrize(
    ("number", "at"),
    [
        (signal.SIGINT, BAR),
        (signal.SIGTERM, "starting the service"),
        *(pytest.param(number, BAR, marks=pytest.mark.long) for number in (signal.SIGTERM, signal.SIGHUP)),
        pytest.param(signal.SIGINT, "starting the service", marks=pytest.mark.long),
    ],
)
def test_a_demo_that_is_left_leaves_nothing_running_and_shows_no_traceback(
    tmp_path: Path, number: signal.Signals, at: str
) -> None:
    with demo(tmp_path, HELD if at == BAR else WHOLE) as started:
        said = read_until(started, at)
        assert at != BAR or below(tmp_path)
        started.send_signal(number)
        rest = started.communicate(timeout=60)[0]
    assert started.returncode == 130, said + rest
    assert "Traceback" not in rest
    assert "interrupted" in rest
    left = below(tmp_path)
    assert [process for process in left if not is_runner(process)] == []
    assert psutil.wait_procs(left, timeout=60)[1] == []
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_demo_that_is_killed_takes_its_service_along(tmp_path: Path) -> None:
    with demo(tmp_path, WHOLE) as started:
        read_until(started, "submitting")
        service = [process for process in below(tmp_path) if "gunicorn" in command_line(process)]
        assert service
        started.kill()
        started.wait(30)
        _, left = psutil.wait_procs(service, timeout=60)
    assert left == []
    deadline = time.monotonic() + 60
    while below(tmp_path):  # what it had begun to draw comes to its end
        assert time.monotonic() < deadline
        time.sleep(0.05)
