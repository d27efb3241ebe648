"""Live Avatar through the whole service: a simulated NVML tells of the GPUs, a stand-in checkout is the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import Service
from tests.fakes.live_avatar import build as live_avatar
from tests.fakes.nvml import build as nvml

Gpus = Callable[..., Service]


@pytest.fixture
def gpus(service: Callable[..., Service], tmp_path: Path) -> Gpus:
    """Return a function that starts a service on a machine with these GPUs and a Live Avatar checkout."""
    library = nvml.build(tmp_path)
    home = live_avatar.make_checkout(tmp_path / "home")

    def start(count: int, gib: float, capability: tuple[int, int], **environment: str) -> Service:
        fleet = [nvml.FakeGpu(f"GPU-{n:08x}", "Simulated", gib, capability=capability) for n in range(count)]
        machine = nvml.write(tmp_path / "machine", fleet)
        told = {
            **nvml.environment(library, machine), **live_avatar.environment(home),
            "LIVE_AVATAR_FAKE_CALLS": str(tmp_path / "calls.jsonl"),
            "AVATAR_ENGINES__TABLE": "configs/engines.yaml",
        }  # fmt: skip
        return service(1, **told, **environment)

    return start


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A portrait of 16:9, so that the largest size is needed in full."""
    (tmp_path / "in").mkdir(exist_ok=True)
    path = tmp_path / "in" / "wide.png"
    Image.fromarray(np.full((720, 1280, 3), 120, np.uint8)).save(path)
    return path


def submit(run: Service, image: Path, audio: Path, **fields: Any) -> dict[str, Any]:
    return run.submit(str(image), str(audio), **{"size": "704*384", "engine": "live_avatar", **fields})


def calls(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "start"]


@pytest.mark.parametrize(
    ("count", "gib", "capability", "profile", "steps", "ranks", "form"),
    [
        (1, 79.1, (8, 0), "single_80gb", 4, 1, "mp4"),
        (1, 47.5, (8, 9), "single_fp8_48gb", 3, 1, "webm"),
        (4, 79.1, (8, 0), "tpp_4gpu", 3, 4, "mp4"),
        (5, 79.1, (9, 0), "tpp_5gpu", 4, 5, "mp4"),
    ],
)
def test_a_request_becomes_a_verified_video_on_the_hardware_there_is(
    gpus: Gpus,
    tmp_path: Path,
    wide: Path,
    voice: Path,
    count: int,
    gib: float,
    capability: tuple[int, int],
    profile: str,
    steps: int,
    ranks: int,
    form: str,
) -> None:
    run = gpus(count, gib, capability, LIVE_AVATAR_FAKE_SECONDS_PER_BLOCK="0.3")
    accepted = submit(run, wide, voice, engine="auto", output_format=form)
    assert (accepted["engine"], accepted["profile"]) == ("live_avatar", profile)
    assert any(note["code"] == "experimental" for note in accepted["notes"]) == (profile == "tpp_4gpu")
    seen: list[tuple[float, str]] = []

    def look(task: dict[str, Any]) -> bool:
        seen.append((task["progress"], task["phase"]))
        return task["status"] in ("completed", "failed", "cancelled")

    task = run.until(accepted["task_id"], look)
    assert task["status"] == "completed", (task["error"], task["log_excerpt"])
    assert [progress for progress, _ in seen] == sorted(progress for progress, _ in seen)
    assert seen[-1] == (1.0, "done")
    assert "generating" in {phase for _, phase in seen}
    video = task["video"]
    assert (video["width"], video["height"]) == (task["plan"]["width"], task["plan"]["height"])
    assert video["video_codec"] == {"mp4": "h264", "webm": "vp9"}[form]
    assert 0 <= video["frames"] - task["plan"]["frames"] <= 15
    assert task["params"]["sample_steps"] == steps
    started = calls(tmp_path)
    assert len(started) == ranks
    visible = {call["environ"]["CUDA_VISIBLE_DEVICES"] for call in started}
    assert len(visible) == 1
    assert len(visible.pop().split(",")) == count


def test_eight_gpus_run_a_gang_of_five_and_three_single_tasks_side_by_side(
    gpus: Gpus, tmp_path: Path, wide: Path, voice: Path
) -> None:
    run = gpus(8, 79.1, (9, 0), LIVE_AVATAR_FAKE_SECONDS_PER_BLOCK="1")
    tasks = [submit(run, wide, voice)["task_id"] for _ in range(4)]
    for task in tasks:
        run.until(task, lambda seen: seen["status"] == "processing", 20)
    profiles = [run.task(task)["profile"] for task in tasks]
    assert profiles == ["tpp_5gpu", "single_80gb", "single_80gb", "single_80gb"]
    assert [run.ended(task)["status"] for task in tasks] == ["completed"] * 4
    given = {call["environ"]["CUDA_VISIBLE_DEVICES"] for call in calls(tmp_path)}
    handed_out = [uuid for devices in given for uuid in devices.split(",")]
    assert len(handed_out) == len(set(handed_out)) == 8


def post(run: Service, **fields: Any) -> tuple[int, dict[str, Any]]:
    status, answer = run.call("POST", "/api/v1/generate", json={"prompt": "p", **fields})
    return status, dict(answer)


def test_what_no_hardware_can_run_is_a_503_that_says_what_would_fit_and_never_a_preview_in_production(
    gpus: Gpus, wide: Path, voice: Path
) -> None:
    run = gpus(2, 23.6, (8, 9), AVATAR_CONFIG="production")
    media = {"image_path": str(wide), "audio_path": str(voice)}
    for engine in ("live_avatar", "auto"):
        status, problem = post(run, engine=engine, **media)
        assert (status, problem.get("error_code")) == (503, "no_hardware"), problem
        assert "GiB" in problem["detail"]
    health = run.call("GET", "/api/v1/health")[1]
    assert [gpu["total_gib"] for gpu in health["gpus"]] == [23.6, 23.6]
    assert [engine["available"] for engine in health["engines"] if engine["name"] == "live_avatar"] == [False]
    assert run.call("GET", "/api/v1/tasks")[1]["tasks"] == []
    asked_for = submit(run, wide, voice, engine="preview", size="384*256")
    assert run.ended(asked_for["task_id"])["status"] == "completed"


def test_running_out_of_memory_is_retried_once_at_the_next_smaller_size_and_told(
    gpus: Gpus, wide: Path, voice: Path
) -> None:
    run = gpus(1, 79.1, (9, 0), LIVE_AVATAR_FAKE="oom_once")
    task = run.ended(submit(run, wide, voice)["task_id"])
    assert task["status"] == "completed", (task["error"], task["log_excerpt"])
    assert task["attempt"] == 2
    told = [(item["field"], item["from"], item["to"]) for item in task["adjustments"]]
    assert told == [("size", "704*384", "688*368")]
    assert (task["video"]["width"], task["video"]["height"]) == (640, 384)


@pytest.mark.parametrize(
    ("fake", "code"),
    [
        ("oom", "oom"),
        ("nccl_error", "nccl_error"),
        ("port_in_use", "port_in_use"),
        ("missing_audio_track", "engine_output_invalid"),
        ("short", "engine_output_invalid"),
        ("truncated", "engine_output_invalid"),
        ("no_file", "engine_output_invalid"),
    ],
)
def test_a_failure_of_live_avatar_gets_its_code_and_its_log(
    gpus: Gpus, wide: Path, voice: Path, fake: str, code: str
) -> None:
    run = gpus(1, 47.5, (8, 9), LIVE_AVATAR_FAKE=fake)
    task = run.ended(submit(run, wide, voice)["task_id"])
    assert (task["status"], task["error_code"]) == ("failed", code), (task["error"], task["log_excerpt"])
    assert task["error"]
    assert task["log_excerpt"]


def test_a_lora_that_is_none_is_named(gpus: Gpus, tmp_path: Path, wide: Path, voice: Path) -> None:
    run = gpus(1, 47.5, (8, 9))
    (tmp_path / "home" / "ckpt" / "LiveAvatar" / "liveavatar.safetensors").write_bytes(b"no tensors at all")
    task = run.ended(submit(run, wide, voice)["task_id"])
    assert (task["status"], task["error_code"]) == ("failed", "lora_invalid"), (task["error"], task["log_excerpt"])


def test_missing_weights_are_told_before_anything_is_queued(
    gpus: Gpus, tmp_path: Path, wide: Path, voice: Path
) -> None:
    run = gpus(1, 79.1, (9, 0))
    (tmp_path / "home" / "ckpt" / "Wan2.2-S2V-14B" / "Wan2.1_VAE.pth").write_bytes(b"")
    body = {"prompt": "p", "image_path": str(wide), "audio_path": str(voice), "engine": "live_avatar"}
    answer = run.http.request("POST", run.url + "/api/v1/generate", json=body)
    assert answer.status == 503
    assert "Wan2.1_VAE.pth" in answer.json()["detail"]
    assert str(tmp_path) not in answer.json()["detail"]


def test_cancelling_frees_every_gpu_of_a_gang(gpus: Gpus, wide: Path, voice: Path) -> None:
    run = gpus(5, 79.1, (9, 0), LIVE_AVATAR_FAKE_SECONDS_PER_BLOCK="5")
    first = submit(run, wide, voice)["task_id"]
    run.until(first, lambda seen: seen["phase"] == "generating")
    assert run.call("DELETE", f"/api/v1/task/{first}")[0] == 202
    assert run.ended(first)["status"] == "cancelled"
    second = submit(run, wide, voice)["task_id"]
    assert run.until(second, lambda seen: seen["status"] == "processing", 10)["profile"] == "tpp_5gpu"
