"""The server may die at any moment; the video goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.e2e.conftest import Service


def test_a_task_goes_on_while_every_web_process_is_killed_and_is_adopted_by_the_next(
    service: Callable[..., Service], tmp_path: Path, portrait: Path, voice: Path
) -> None:
    run = service(2, "slow_copy", fake={"env": {"FAKE_SECONDS": "4"}})
    image, audio = run.upload("image", portrait), run.upload("audio", voice)
    task = run.submit(image, audio, engine="fake")
    before = run.until(task["task_id"], lambda seen: seen["phase"] == "generating")
    run.kill()
    run.start()
    restarted = time.monotonic()
    after = run.until(task["task_id"], lambda seen: seen["progress"] > before["progress"])
    assert time.monotonic() - restarted < 2.0
    assert (after["attempt"], after["start_time"]) == (1, before["start_time"])
    assert run.ended(task["task_id"])["status"] == "completed"
    assert len((tmp_path / "starts.txt").read_text().splitlines()) == 1


def test_a_queued_task_outlives_a_kill_and_starts_after_the_restart(
    service: Callable[..., Service], portrait: Path, voice: Path
) -> None:
    run = service(1, "slow_copy", fake={"env": {"FAKE_SECONDS": "2"}})
    image, audio = run.upload("image", portrait), run.upload("audio", voice)
    tasks = [run.submit(image, audio, engine="fake")["task_id"] for _ in range(2)]
    run.kill()
    run.start()
    assert [run.ended(task)["status"] for task in tasks] == ["completed", "completed"]


def test_sigterm_ends_the_server_at_once_and_leaves_the_runner_alone(
    service: Callable[..., Service], portrait: Path, voice: Path
) -> None:
    run = service(2, "slow_copy", fake={"env": {"FAKE_SECONDS": "5"}})
    image, audio = run.upload("image", portrait), run.upload("audio", voice)
    task = run.submit(image, audio, engine="fake")["task_id"]
    run.until(task, lambda seen: seen["phase"] == "generating")
    began = time.monotonic()
    run.stop()
    assert time.monotonic() - began < 8.0
    run.start()
    ended = run.ended(task)
    assert (ended["status"], ended["attempt"]) == ("completed", 1)


def test_killing_the_worker_that_schedules_costs_no_task(
    service: Callable[..., Service], portrait: Path, voice: Path
) -> None:
    run = service(4)
    image, audio = run.upload("image", portrait), run.upload("audio", voice)
    schedulers = [p for p in run.processes() if any("tasks.spawner" in part for part in p.cmdline())]
    assert len(schedulers) == 1
    schedulers[0].parent().kill()
    run.http.clear()  # a kept connection may have led to that worker
    tasks = [run.submit(image, audio, engine="fake")["task_id"] for _ in range(5)]
    assert [run.ended(task)["status"] for task in tasks] == ["completed"] * 5
