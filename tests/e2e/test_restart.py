"""The server may die or be replaced at any moment; the video goes on."""

from __future__ import annotations

import select
import shutil
import signal
import socket
import sqlite3
import time
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT
from tests.e2e.conftest import DEADLINE, Service, engine_of, stop_for_now
from tests.test_docker import files_of_the_image

RESTARTS = 4


def told_by(go: Path) -> dict[str, Any]:
    """Return the row of an engine that gets on until the file `go` is there; its bar shows frames, not loading."""
    return {"env": {"FAKE_GO": str(go)}, "estimate": {"load_seconds": 0.01, "seconds_per_frame": 1.0}}


def row(run: Service, task: str) -> tuple[str, float]:
    """Return status and progress as the database has them, whether or not a server is up."""
    with closing(sqlite3.connect(run.data / "avatar.db")) as db:
        found: tuple[str, float] = db.execute("SELECT status, progress FROM tasks WHERE id = ?", (task,)).fetchone()
    return found


def rises(run: Service, task: str, above: float) -> float:
    """Return the progress once it is above `above`, with no server up."""
    deadline = time.monotonic() + DEADLINE
    while (progress := row(run, task)[1]) <= above:
        assert time.monotonic() < deadline, "the task does not go on without a server"
        time.sleep(0.05)
    return progress


def comes_to_be(run: Service, task: str, status: str) -> None:
    """Wait until the task has this status, whether or not a server is up."""
    deadline = time.monotonic() + DEADLINE
    while (now := row(run, task)[0]) != status:
        assert time.monotonic() < deadline, now
        time.sleep(0.05)


def is_adopted(run: Service, task: str, before: dict[str, Any], restart: Callable[[], float]) -> None:
    """Assert that the service, just started, shows at once the progress that was made, of the same attempt.

    `restart` starts it anew and returns that progress. Where the answer takes its time it is started once more: the
    machine may have been busy with something else.
    """
    for _ in range(RESTARTS):
        made = restart()
        began = time.monotonic()
        seen = run.task(task)
        took = time.monotonic() - began
        assert seen["progress"] >= made
        assert (seen["status"], seen["attempt"], seen["start_time"]) == ("processing", 1, before["start_time"])
        if took < 2.0:
            break
    assert took < 2.0
    run.until(task, lambda now: now["progress"] > seen["progress"])


def move_to(run: Service, release: Path) -> None:
    """Stop the service, and start it from a folder as the image has it: the product's files without tests."""
    run.stop()
    if release.exists():
        run.start()
        return
    for name in files_of_the_image():
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, release / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, release / name)
    run.checkout = release
    run.start()


def remove(release: Path) -> None:
    """Remove the folder of a version that may be at work, and so be writing its bytecode there."""
    deadline = time.monotonic() + DEADLINE
    while release.exists():
        shutil.rmtree(release, ignore_errors=True)
        assert time.monotonic() < deadline


def starts(folder: Path) -> int:
    """Return how often the stand-in engine was started."""
    return len((folder / "starts.txt").read_text().splitlines())


@contextmanager
def slow_upload(run: Service) -> Iterator[None]:
    """Begin an upload and send no more of it."""
    head = f"POST /api/v1/upload HTTP/1.1\r\nHost: 127.0.0.1:{run.port}\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n--b\r\n"
    with socket.create_connection(("127.0.0.1", run.port)) as connection:
        connection.sendall(head.encode())
        yield


def wait_until_at_work(run: Service, requests: int, long_polls: int) -> None:
    """Wait until the workers handle so many requests, beside the one that asks, of which so many wait for news."""
    wanted = {_in_progress("request", requests + 1), _in_progress("long_poll", long_polls)}
    deadline = time.monotonic() + DEADLINE
    while not wanted <= set((told := run.call("GET", "/metrics")[1].decode()).splitlines()):
        assert time.monotonic() < deadline, told
        time.sleep(0.02)


def _in_progress(kind: str, number: int) -> str:
    return f'live_avatar_in_progress{{kind="{kind}"}} {float(number)}'


def scheduler_of(run: Service) -> psutil.Process:
    """Return the worker that schedules: the parent of the spawner, once that has become one."""
    deadline = time.monotonic() + DEADLINE
    while True:
        found = []
        for process in run.processes():
            with suppress(psutil.Error):  # a decoder that has just ended
                found += [process.parent()] if any("tasks.spawner" in part for part in process.cmdline()) else []
        if found:
            (scheduler,) = found
            return scheduler
        assert time.monotonic() < deadline, "no process schedules"
        time.sleep(0.05)


def halfway(run: Service, image: str, audio: str) -> tuple[str, list[psutil.Process]]:
    """Return a preview that has begun to draw, and its processes, which stand still; another where it is done first."""
    for _ in range(5):
        task = run.submit(image, audio, engine="preview")["task_id"]
        run.until(task, lambda seen: seen["phase"] not in ("queued", "preparing", "loading_model"))
        engine = engine_of(task)
        for process in engine:
            with suppress(psutil.NoSuchProcess):
                stop_for_now(process)
        if row(run, task)[0] == "processing" and engine:
            return task, engine
        run.ended(task)
    pytest.fail("each preview was done before it could be stopped")


def long_voice(folder: Path) -> Path:
    """Twenty seconds of a quiet tone: the preview is busy for a while."""
    with wave.open(str(folder / "long.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(b"\x10\x20" * 16_000 * 20)
    return folder / "long.wav"


def test_a_task_goes_on_while_every_web_process_is_killed_and_is_adopted_by_the_next(
    service: Callable[..., Service], tmp_path: Path, portrait: Path, voice: Path
) -> None:
    run = service(2, "when_told", fake=told_by(tmp_path / "go"))
    image, audio = run.upload("image", portrait), run.upload("audio", voice)
    task = run.submit(image, audio, engine="fake")["task_id"]
    before = run.until(task, lambda seen: seen["phase"] == "generating")

    def restart() -> float:
        told = run.task(task)["progress"]
        run.kill()
        alone = rises(run, task, told)
        run.start()
        return alone

    is_adopted(run, task, before, restart)
    (tmp_path / "go").touch()
    ended = run.ended(task)
    assert (ended["status"], ended["attempt"]) == ("completed", 1)
    assert starts(tmp_path) == 1


@pytest.mark.long
def test_a_queued_task_outlives_a_kill_and_starts_after_the_restart(
    service: Callable[..., Service], tmp_path: Path, portrait: Path, voice: Path
) -> None:
    run = service(1, "when_told", fake=told_by(tmp_path / "go"))
    image, audio = run.upload("image", portrait), run.upload("audio", voice)
    tasks = [run.submit(image, audio, engine="fake")["task_id"] for _ in range(2)]
    run.until(tasks[0], lambda seen: seen["status"] == "processing")
    run.kill()
    run.start()
    assert [run.task(task)["status"] for task in tasks] == ["processing", "queued"]
    (tmp_path / "go").touch()
    assert [run.ended(task)["status"] for task in tasks] == ["completed", "completed"]


def test_sigterm_ends_open_waits_starts_nothing_and_leaves_the_runner_alone(
    service: Callable[..., Service], tmp_path: Path, portrait: Path, voice: Path
) -> None:
    run = service(2, "when_told", fake=told_by(tmp_path / "go"))
    image, audio = run.upload("image", portrait), run.upload("audio", voice)
    first, second = (run.submit(image, audio, engine="fake")["task_id"] for _ in range(2))
    run.until(first, lambda seen: seen["phase"] == "generating")
    for _ in range(RESTARTS):  # the machine has others to serve: where it took longer the service is started anew
        tag = run.http.request("GET", f"{run.url}/api/v1/task/{second}").headers["ETag"]
        poll = {"headers": {"If-None-Match": tag}}
        with ThreadPoolExecutor(3) as pool, slow_upload(run):
            waits = [pool.submit(run.call, "GET", f"/api/v1/task/{second}?wait=60", **ask) for ask in ({}, poll)]
            waits.append(pool.submit(run.call, "GET", f"/api/v1/task/{first}?wait=60"))
            wait_until_at_work(run, requests=4, long_polls=3)
            began = time.monotonic()
            assert run.process is not None
            run.process.send_signal(signal.SIGTERM)
            answers = [wait.result(timeout=DEADLINE) for wait in waits]
            took = time.monotonic() - began
            assert [status for status, _ in answers] == [200, 304, 200]
            assert [answers[0][1]["status"], answers[2][1]["status"]] == ["queued", "processing"]
            if took < 5.0:
                # A request that drags on keeps the workers; the slot that falls free meanwhile must not be given away.
                (tmp_path / "go").touch()
            run.process.wait(DEADLINE)
            gone = time.monotonic() - began
        if took < 5.0:
            break
        run.start()
    assert took < 5.0, "open waits end within five seconds"
    assert gone < 20.0, "systemd and Docker give it so long, though the upload might have taken two minutes"
    comes_to_be(run, first, "completed")
    assert row(run, second)[0] == "queued"
    assert starts(tmp_path) == 1
    run.start()
    assert run.ended(second)["status"] == "completed"
    assert (run.task(first)["attempt"], starts(tmp_path)) == (1, 2)


def test_a_new_version_adopts_the_task_of_one_whose_folder_is_gone(
    service: Callable[..., Service], tmp_path: Path, portrait: Path, voice: Path
) -> None:
    run = service(1, "when_told", fake=told_by(tmp_path / "go"))
    move_to(run, tmp_path / "release-1")
    image, audio = run.upload("image", portrait), run.upload("audio", voice)
    task = run.submit(image, audio, engine="fake", output_format="webm")["task_id"]
    before = run.until(task, lambda seen: seen["phase"] == "generating")
    remove(run.checkout)

    def restart() -> float:
        made = row(run, task)[1]
        move_to(run, tmp_path / "release-2")
        return made

    is_adopted(run, task, before, restart)
    (tmp_path / "go").touch()
    ended = run.ended(task)
    assert (ended["status"], ended["attempt"]) == ("completed", 1)
    assert starts(tmp_path) == 1
    assert [run.call("GET", ended[url])[0] for url in ("output_video_url", "poster_url")] == [200, 200]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_preview_goes_on_when_the_folder_of_its_version_goes(
    service: Callable[..., Service], tmp_path: Path, portrait: Path
) -> None:
    run = service(1)
    move_to(run, tmp_path / "release-1")
    image, audio = run.upload("image", portrait), run.upload("audio", long_voice(tmp_path))
    task, engine = halfway(run, image, audio)
    remove(run.checkout)
    for process in engine:
        process.resume()
    ended = run.ended(task, 500)
    assert (ended["status"], ended["attempt"]) == ("completed", 1)


@pytest.mark.long
def test_no_connection_is_refused_while_the_service_restarts_behind_a_socket_of_systemd(
    service: Callable[..., Service],
) -> None:
    run = service(1)
    run.stop()
    with socket.create_server(("127.0.0.1", run.port), backlog=128) as run.listener:
        run.start()
        run.stop()
        with ThreadPoolExecutor(1) as pool:
            between = pool.submit(run.call, "GET", "/api/v1/tasks", retries=False)
            assert select.select([run.listener], [], [], DEADLINE)[0], "nobody has come"
            run.start()
            assert between.result(timeout=DEADLINE) == (200, {"tasks": [], "next_cursor": None})
        run.stop()


def test_killing_the_worker_that_schedules_costs_no_task(
    service: Callable[..., Service], portrait: Path, voice: Path
) -> None:
    run = service(4)
    image, audio = run.upload("image", portrait), run.upload("audio", voice)
    scheduler = scheduler_of(run)
    scheduler.kill()
    scheduler.wait(DEADLINE)  # else a request might still reach it
    tasks = [run.submit(image, audio, engine="fake")["task_id"] for _ in range(5)]
    assert [run.ended(task)["status"] for task in tasks] == ["completed"] * 5
