"""A GPU goes from one task to the next when its memory is back, through the whole service and a simulated NVML."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import DEADLINE, Service
from tests.fakes.nvml import build as nvml


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[float], Path]:
    """Return a function that says how much of the one GPU's 80 GiB is free from now on."""

    def free(gib: float) -> Path:
        return nvml.write(tmp_path / "machine", [nvml.FakeGpu("GPU-0001", "Simulated", 80.0, free_gib=gib)])

    return free


def start(service: Callable[..., Service], machine: Callable[[float], Path], folder: Path, release: float) -> Service:
    told = nvml.environment(nvml.build(folder), machine(80.0))
    row = {"gpus": 1, "builds": [{"base_gib": 20.0}], "env": {"FAKE_GO": str(folder / "go")}}
    run = service(1, "when_told", row, AVATAR_GPUS__RELEASE_SECONDS=str(release), **told)
    wait_for(run, lambda gpus: len(gpus) == 1)
    return run


def wait_for(run: Service, holds: Callable[[list[dict[str, Any]]], bool]) -> None:
    """Wait until `holds` is true of the GPUs as health tells them."""
    deadline = time.monotonic() + DEADLINE
    while not holds(gpus := run.call("GET", "/api/v1/health")[1]["gpus"]):
        assert time.monotonic() < deadline, gpus
        time.sleep(0.1)


def leave_memory_behind(
    run: Service, machine: Callable[[float], Path], portrait: Path, voice: Path
) -> tuple[dict[str, Any], str]:
    """Run a task whose memory stays taken when it ends; return it as it ended, and the task after it."""
    first, second = (run.submit(str(portrait), str(voice), engine="fake")["task_id"] for _ in range(2))
    run.until(first, lambda task: task["status"] == "processing")
    machine(30.0)
    (run.folder / "go").touch()
    return run.ended(first), second


@pytest.mark.long
def test_a_gpu_is_given_out_again_only_when_its_memory_is_back(
    service: Callable[..., Service], machine: Callable[[float], Path], tmp_path: Path, portrait: Path, voice: Path
) -> None:
    run = start(service, machine, tmp_path, release=3600)
    first, second = leave_memory_behind(run, machine, portrait, voice)
    assert first["status"] == "completed"
    # It would fit into what is free; but who knows what still runs there.
    assert run.call("GET", f"/api/v1/task/{second}?wait=2")[1]["status"] == "queued"
    wait_for(run, lambda gpus: gpus[0]["state"] == "settling")
    run.kill()
    run.start()  # the next scheduler knows of it
    assert run.call("GET", f"/api/v1/task/{second}?wait=2")[1]["status"] == "queued"
    machine(79.8)
    assert run.ended(second)["status"] == "completed"


@pytest.mark.long
def test_a_gpu_that_keeps_an_ended_tasks_memory_is_used_as_it_is_after_a_while_and_told_of(
    service: Callable[..., Service], machine: Callable[[float], Path], tmp_path: Path, portrait: Path, voice: Path
) -> None:
    run = start(service, machine, tmp_path, release=1.5)
    first, second = leave_memory_behind(run, machine, portrait, voice)
    begun = run.until(second, lambda task: task["status"] == "processing")
    started, ended = (datetime.fromisoformat(at) for at in (begun["start_time"], first["finish_time"]))
    assert (started - ended).total_seconds() >= 1.5
    assert run.ended(second)["status"] == "completed"
    third = run.submit(str(portrait), str(voice), engine="fake")["task_id"]
    assert run.ended(third)["status"] == "completed"
    assert "did not get its 80.0 GiB back" in run.log()
