"""Many tasks at once, with one web worker and with four: all end well, none starts twice, the order is kept.

What is held of the many is order and number, not time, so they run beside other tests, with bounds for a busy machine.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from tests.e2e.conftest import DEADLINE, Service

TASKS = int(os.environ.get("AVATAR_TEST_LOAD", "44"))
"""With four workers, every eleventh of them a preview; `make load` tries 220."""

LOOKS = 6


def write_fast_script(folder: Path) -> Path:
    """A script engine that notes its start and copies a ready video, in one process of the shell."""
    script = folder / "copy.sh"
    script.write_text(
        "#!/usr/bin/env bash\n"
        'echo "$EPOCHREALTIME $AVATAR_TASK_ID $AVATAR_ATTEMPT" >> "$FAKE_STARTS"\n'
        'for argument in "$@"; do [[ $argument == --output_dir=* ]] && out=${argument#*=}; done\n'
        'exec cp "$FAKE_VIDEO" "$out/video.mp4"\n'
    )
    script.chmod(0o755)
    return script


def starts(folder: Path) -> list[tuple[float, str]]:
    lines = [line.split() for line in (folder / "starts.txt").read_text().splitlines()]
    return [(float(line[0].replace(",", ".")), line[1]) for line in lines]


def since_epoch(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


@pytest.mark.timeout(480)
@pytest.mark.parametrize(("workers", "tasks"), [pytest.param(1, 33, marks=pytest.mark.long), (4, TASKS)])
def test_many_tasks_and_some_previews_at_once_all_complete_in_order(
    service: Callable[..., Service], tmp_path: Path, portrait: Path, voice: Path, workers: int, tasks: int
) -> None:
    run = service(workers, fake={"script": str(write_fast_script(tmp_path))}, AVATAR_SLOTS__CPU="4")
    image, audio = run.upload("image", portrait), run.upload("audio", voice)
    engines = ["preview" if n % 11 == 10 else "fake" for n in range(tasks)]
    copies = engines.count("fake")
    assert 0 < copies < tasks
    began = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        accepted = list(pool.map(lambda engine: run.submit(image, audio, engine=engine), engines))
    ended = [run.ended(task["task_id"], 400) for task in accepted]
    print(f"\n{workers} workers: {len(ended)} tasks in {time.monotonic() - began:.1f} s")
    assert Counter(task["status"] for task in ended) == {"completed": tasks}
    assert {task["attempt"] for task in ended} == {1}
    counted = Counter(task_id for _, task_id in starts(tmp_path))
    assert len(counted) == copies
    assert set(counted.values()) == {1}, "none started twice"
    by_submission = [task["task_id"] for task in sorted(ended, key=lambda task: task["submit_time"])]
    by_start = [task["task_id"] for task in sorted(ended, key=lambda task: task["start_time"])]
    assert by_start == by_submission


@pytest.mark.alone
@pytest.mark.timeout(480)
@pytest.mark.parametrize("workers", [1, 4])
def test_from_the_201_to_the_engine_s_first_instruction_takes_less_than_300_ms(
    service: Callable[..., Service], tmp_path: Path, portrait: Path, voice: Path, workers: int
) -> None:
    run = service(workers, fake={"script": str(write_fast_script(tmp_path))})
    image, audio = run.upload("image", portrait), run.upload("audio", voice)
    for _ in range(LOOKS):  # the machine has others to serve: a look that says no is taken again
        waits = []
        for _ in range(9):
            task = run.submit(image, audio, engine="fake")
            answered = time.time()
            assert run.ended(task["task_id"])["status"] == "completed"
            waits.append(next(at for at, task_id in starts(tmp_path) if task_id == task["task_id"]) - answered)
        median = statistics.median(waits)
        told = f"median {median * 1000:.0f} ms, worst {max(waits) * 1000:.0f} ms"
        print(f"\n{workers} workers: from the 201 to the first instruction: {told}")
        if median < 0.3:
            break
    assert median < 0.3


@pytest.mark.long
def test_a_full_queue_is_a_503_with_retry_after_and_running_tasks_are_not_disturbed(
    service: Callable[..., Service], tmp_path: Path, portrait: Path, voice: Path
) -> None:
    run = service(2, "when_told", fake={"env": {"FAKE_GO": str(tmp_path / "go")}}, AVATAR_QUEUE__MAX_QUEUED="3")
    image, audio = run.upload("image", portrait), run.upload("audio", voice)
    first = run.submit(image, audio, engine="fake")
    run.until(first["task_id"], lambda task: task["status"] == "processing")
    waiting = [run.submit(image, audio, engine="fake") for _ in range(3)]
    assert [task["queue_position"] for task in waiting] == [1, 2, 3]
    body = {"prompt": "p", "image_path": image, "audio_path": audio, "engine": "fake"}
    refused = run.http.request("POST", run.url + "/api/v1/generate", json=body)
    assert refused.status == 503
    assert int(refused.headers["Retry-After"]) > 0
    for task in waiting:
        assert run.call("DELETE", f"/api/v1/task/{task['task_id']}")[1]["status"] == "cancelled"
    (tmp_path / "go").touch()
    assert run.ended(first["task_id"])["status"] == "completed"


def test_an_idempotency_key_makes_one_task_of_many_calls_over_workers_and_restarts(
    service: Callable[..., Service], portrait: Path, voice: Path
) -> None:
    run = service(4)
    image, audio = run.upload("image", portrait), run.upload("audio", voice)
    body = {"prompt": "p", "image_path": image, "audio_path": audio, "engine": "fake", "size": "384*256"}
    together = threading.Barrier(8)

    def call(_: int) -> bytes:
        together.wait(DEADLINE)
        answer = run.http.request("POST", run.url + "/api/v1/generate", json=body, headers={"Idempotency-Key": "once"})
        assert answer.status == 201
        return answer.data

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(call, range(8)))
    assert len(answers) == 1
    status, listed = run.call("GET", "/api/v1/tasks")
    assert (status, len(listed["tasks"])) == (200, 1)
    run.ended(listed["tasks"][0]["task_id"])
    run.stop()
    run.start()
    together = threading.Barrier(1)
    assert call(0) in answers
