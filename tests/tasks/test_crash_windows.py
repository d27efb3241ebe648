"""A crash between any two steps from accepting a task to telling its end: each window is a test, each ends well."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from config_loader import ConfigError, load_settings
from task_manager import TaskGone, TaskManager
from tasks.idempotency import AlreadyAccepted
from tasks.model import ErrorCode, Phase, Status, Task
from tests.conftest import ROOT
from tests.tasks.conftest import Bench, sweep_later, wait_until
from utils.failpoint import Point
from utils.file_handler import StorageFull

# A process of its own that accepts one task and schedules it, for SIGKILL is to hit it.
WEB = """
import sys
from pathlib import Path
from task_manager import TaskManager
from tasks import spawner
from tests.tasks.conftest import PATIENCE, Bench
from utils.failpoint import arm

folder, video, behaviour, point = sys.argv[1:]
spawner._ANSWER_SECONDS = PATIENCE
bench = Bench(Path(folder), Path(video), None)
arm(f"{point}:kill:{folder}/data")
settings = {"env": "test", "failpoint": point}
if point in ("inputs-written", "row-written", "row-committed"):  # else the scheduler may find the row before the kill
    manager = TaskManager(*bench.load(behaviour, settings))
else:
    manager = bench.open(behaviour, settings)
task = bench.submit(manager, idempotency_key="k")
print(task.id, flush=True)
bench.ended(manager, task, 100)
if point == "record-deleted":
    manager.delete(task.id, "default")
sys.stdin.read()
"""
SHORT = {"FAKE_SECONDS": "0.3"}


@pytest.fixture
def web(bench: Bench) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a process which accepts and schedules a task, armed with a point."""
    started: list[subprocess.Popen[str]] = []

    def start(point: Point, behaviour: str = "copy") -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", WEB, str(bench.folder), str(bench.video), behaviour, point],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=20)


def only_task(manager: TaskManager) -> Task:
    (view,) = manager.page("default", [], 10, None)
    return view.task


def check_end(bench: Bench, manager: TaskManager, task: Task, attempts: int, starts: int) -> None:
    """Check what holds of every ended task, and how often it was tried."""
    assert (task.attempt, len(bench.starts_of(task))) == (attempts, starts)
    assert bench.left_of(task) == []
    assert len(manager.page("default", [], 10, None)) == 1
    published = sorted(path.name for path in (manager.folders.results / task.id).glob("*"))
    assert published == ([str(attempts)] if task.status is Status.COMPLETED else []), "a result of a dead attempt"
    made = [path for path in manager.folders.tasks.glob("*/attempts/*/*") if path.name in ("out", "publish")]
    assert [path for path in made if list(path.iterdir())] == [], "what a dead attempt made is left"
    if task.status is Status.COMPLETED:
        assert manager.result_file(task, "video.mp4").stat().st_size == task.result.video.size_bytes


def acted(bench: Bench, point: Point) -> bool:
    return (bench.folder / "data" / f"failpoint-{point}").exists()


def check_acted(bench: Bench, point: Point) -> None:
    """Check that the point acts, also one behind a write by which the task is known to have got there."""
    wait_until(lambda: acted(bench, point), f"{point} to act")


@pytest.mark.parametrize("point", [pytest.param(Point.INPUTS_WRITTEN, marks=pytest.mark.long), Point.ROW_WRITTEN])
def test_killed_before_the_row_is_committed_there_is_no_task_and_no_file(
    bench: Bench, web: Callable[..., subprocess.Popen[str]], point: Point
) -> None:
    assert web(point).wait(100) == -signal.SIGKILL
    assert acted(bench, point)
    folders = list((bench.folder / "data" / "tasks").iterdir())
    assert len(folders) == 1, "the inputs were on disk"
    manager = bench.open()
    sweep_later(manager)
    assert not folders[0].exists()
    assert manager.page("default", [], 10, None) == []
    again = bench.submit(manager, idempotency_key="k")
    assert bench.ended(manager, again).status is Status.COMPLETED, "the key is not used up"


@pytest.mark.parametrize(
    ("point", "attempts", "starts"),
    [
        (Point.ROW_COMMITTED, 1, 1),
        pytest.param(Point.ATTEMPT_RESERVED, 1, 1, marks=pytest.mark.long),
        (Point.CLAIMED, 2, 1),
        (Point.RUNNER_SPAWNED, 1, 1),
    ],
)
def test_killed_from_there_on_the_next_process_brings_the_task_to_its_end(
    bench: Bench, web: Callable[..., subprocess.Popen[str]], point: Point, attempts: int, starts: int
) -> None:
    assert web(point, "slow_copy").wait(100) == -signal.SIGKILL
    assert acted(bench, point)
    manager = bench.open()
    with pytest.raises(AlreadyAccepted):  # a client that got no answer asks again
        bench.submit(manager, idempotency_key="k")
    task = bench.ended(manager, only_task(manager))
    assert task.status is Status.COMPLETED
    check_end(bench, manager, task, attempts, starts)


def test_a_spawner_killed_after_the_fork_starts_no_second_engine(bench: Bench) -> None:
    manager = open_armed(bench, Point.RUNNER_FORKED)
    task = bench.ended(manager, bench.submit(manager))
    assert task.status is Status.COMPLETED
    check_acted(bench, Point.RUNNER_FORKED)
    check_end(bench, manager, task, 1, 1)


@pytest.mark.parametrize(
    ("point", "attempts", "starts"),
    [
        (Point.RUNNER_BEGAN, 2, 1),
        (Point.ENGINE_STARTED, 2, None),
        (Point.INTRODUCED, 2, None),
        (Point.ENGINE_ENDED, 2, 2),
        (Point.VERIFIED, 2, 2),
        (Point.STAGED, 2, 2),
        (Point.REVEALED, 2, 2),
        (Point.END_KEPT, 1, 1),
        (Point.ROW_ENDED, 1, 1),
    ],
)
def test_a_runner_killed_at_any_step_is_followed_by_another_or_has_its_end_recorded(
    bench: Bench, point: Point, attempts: int, starts: int | None
) -> None:
    manager = open_armed(bench, point)
    task = bench.ended(manager, bench.submit(manager))
    assert task.status is Status.COMPLETED
    check_acted(bench, point)
    # An engine that is killed in its first moment may not have come to note that it started.
    check_end(bench, manager, task, attempts, starts or len(bench.starts_of(task)))


@pytest.mark.parametrize("behaviour", ["slow_copy", "when_told"])
@pytest.mark.parametrize("point", [Point.END_KEPT, Point.ROW_ENDED])
def test_a_runner_killed_as_a_cancel_meets_its_end_leaves_no_result(bench: Bench, point: Point, behaviour: str) -> None:
    """Either the cancel stops the engine, or it is seen only when the video is published."""
    go = bench.folder / "go"
    poll = {"slow_copy": 0.05, "when_told": 60.0}[behaviour]
    settings = {"env": "test", "failpoint": f"{point}:kill", "runner": {"poll_seconds": poll}}
    manager = bench.open(behaviour, settings=settings, env={"FAKE_SECONDS": "30", "FAKE_GO": str(go)})
    task = bench.submit(manager)
    bench.until(manager, task, lambda seen: seen.phase is Phase.GENERATING)
    manager.delete(task.id, "default")
    go.touch()
    task = bench.ended(manager, task)
    assert task.status is Status.CANCELLED
    check_acted(bench, point)
    check_end(bench, manager, task, 1, 1)


def test_a_process_killed_while_it_reaps_leaves_the_rest_to_the_next(
    bench: Bench, web: Callable[..., subprocess.Popen[str]]
) -> None:
    process = web(Point.ORPHAN_KILLED, "hang")
    assert process.stdout is not None
    process.stdout.readline()
    manager = TaskManager(*bench.load("hang"))
    task = bench.until(manager, only_task(manager), lambda seen: seen.phase is Phase.GENERATING and bool(seen.runner))
    os.kill(task.runner.pid, signal.SIGKILL)
    assert process.wait(100) == -signal.SIGKILL
    assert acted(bench, Point.ORPHAN_KILLED)
    manager = bench.open("copy")
    task = bench.ended(manager, task)
    assert task.status is Status.COMPLETED
    check_end(bench, manager, task, 2, 2)


def test_a_process_killed_while_it_deletes_leaves_no_row_and_its_files_to_the_sweep(
    bench: Bench, web: Callable[..., subprocess.Popen[str]]
) -> None:
    process = web(Point.RECORD_DELETED)
    assert process.stdout is not None
    task_id = process.stdout.readline().strip()
    assert process.wait(100) == -signal.SIGKILL
    data = bench.folder / "data"
    left = [data / "tasks" / task_id, data / "results" / task_id]
    assert all(path.exists() for path in left)
    manager = bench.open()
    with pytest.raises(TaskGone):
        manager.view(task_id, "default")
    sweep_later(manager)
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize("point", [Point.INPUTS_WRITTEN, Point.ROW_WRITTEN])
def test_a_disk_that_fills_while_a_task_is_accepted_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, point: Point
) -> None:
    manager = bench.open()
    arm_here(monkeypatch, f"{point}:enospc:{manager.folders.data}")
    with pytest.raises(StorageFull):
        bench.submit(manager, idempotency_key="k")
    assert list(manager.folders.tasks.iterdir()) == []
    task = bench.ended(manager, bench.submit(manager, idempotency_key="k"))
    assert task.status is Status.COMPLETED


def test_a_commit_that_was_made_and_raised_leaves_a_task_with_its_inputs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = bench.open()
    add = manager.store.add

    def add_and_fail(*given: Any, **named: Any) -> None:
        add(*given, **named)
        raise OperationalError("COMMIT", None, sqlite3.OperationalError("disk I/O error"))

    with monkeypatch.context() as patch:
        patch.setattr(manager.store, "add", add_and_fail)
        with pytest.raises(OperationalError):
            bench.submit(manager, idempotency_key="k")
    task = only_task(manager)
    assert sorted(path.name for path in manager.folders.inputs(task.id).iterdir()) == ["audio.wav", "image.png"]
    with pytest.raises(AlreadyAccepted):
        bench.submit(manager, idempotency_key="k")
    assert bench.ended(manager, task).status is Status.COMPLETED


@pytest.mark.parametrize("point", [Point.VERIFIED, Point.STAGED])
def test_a_disk_that_fills_while_a_video_is_published_is_told(bench: Bench, point: Point) -> None:
    manager = open_armed(bench, point, "enospc")
    task = bench.ended(manager, bench.submit(manager))
    assert (task.status, task.failure.code) == (Status.FAILED, ErrorCode.DISK_FULL)
    check_end(bench, manager, task, 1, 1)


def test_no_engine_sees_the_fail_point(bench: Bench) -> None:
    manager = open_armed(bench, Point.ORPHAN_KILLED, behaviour="dump")
    task = bench.ended(manager, bench.submit(manager))
    assert "FAILPOINT" not in (manager.folders.attempt(task.id, 1) / "seen.json").read_text()


@pytest.mark.parametrize("env", ["production", "development"])
def test_fail_points_are_refused_outside_tests(env: str) -> None:
    with pytest.raises(ConfigError, match="failpoint"):
        load_settings({"env": env, "failpoint": "claimed"})


@pytest.mark.parametrize("text", ["no-such-point", "claimed:no-such-action"])
def test_a_misspelt_fail_point_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="valid"):
        load_settings({"env": "test", "failpoint": text})


def open_armed(bench: Bench, point: Point, action: str = "kill", behaviour: str = "slow_copy") -> TaskManager:
    """Return a manager whose spawner and runners are armed; this process is not."""
    return bench.open(behaviour, settings={"env": "test", "failpoint": f"{point}:{action}"}, env=SHORT)


def arm_here(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    from utils import failpoint

    monkeypatch.setattr(failpoint, "_armed", failpoint.FailPoint.parse(text, Path()))
