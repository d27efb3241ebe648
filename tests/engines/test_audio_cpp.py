"""The example of wrapping another program: the row of audio.cpp, enabled, against a stand-in for its command line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from config_loader import load_engines, load_settings
from task_manager import TaskManager
from tasks.model import ErrorCode, Status, Task
from tests.conftest import ROOT
from tests.fakes.nvml import build as nvml
from tests.tasks.conftest import Bench, bench, kept_spawner, ready_video  # noqa: F401 - fixtures

FAKES = ROOT / "tests" / "fakes" / "audio_cpp"
MODEL_FILES = (
    "Wan2.2-S2V-Support-Q4_K_S-F16.gguf", "Wan2.2-S2V-VAE-F16.gguf", "Wan2.2-S2V-14B-NVFP4-LORA.gguf",
)  # fmt: skip
ROW: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "engines.yaml").read_text())["engines"]["audio_cpp"]

Start = Callable[..., TaskManager]


@pytest.fixture
def start(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Start:  # noqa: F811
    """Return a function that starts a manager with the shipped row on one card of 16 GB."""
    library = nvml.build(bench.folder)
    machine = nvml.write(bench.folder / "machine", [nvml.FakeGpu("GPU-1", total_gib=15.9, capability=(12, 0))])
    for name, value in nvml.environment(library, machine).items():
        monkeypatch.setenv(name, value)
    model = bench.folder / "gguf"
    model.mkdir()
    for name in MODEL_FILES:
        (model / name).write_bytes(b"GGUF")

    def started(left: str, **environment: str) -> TaskManager:
        env = {
            "AUDIO_CPP_CLI": str(FAKES / "audiocpp_cli"), "AUDIO_CPP_MODEL": str(model),
            "AUDIO_CPP_FFMPEG": str(FAKES / "ffmpeg"), "AUDIO_CPP_FAKE": left,
            "AUDIO_CPP_FAKE_CALLS": str(bench.folder / "calls.jsonl"), **environment,
        }  # fmt: skip
        (row,) = ROW["profiles"]
        manager = bench.open(
            **{**row, "script": str(ROOT / row["script"]), "env": env, "first_clip_silence_seconds": 0}
        )
        deadline = time.monotonic() + 60
        while not manager.health().gpus:
            assert time.monotonic() < deadline, "the GPU is not seen"
            time.sleep(0.05)
        return manager

    return started


def calls(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def completed(task: Task) -> Task:
    assert task.status is Status.COMPLETED, task.failure
    assert task.result is not None
    assert (task.result.video.fps, task.result.video.frames) == (16, 16)
    return task


def test_the_example_is_shipped_disabled_and_has_no_mistake() -> None:
    assert ROW["enabled"] is False
    assert "audio_cpp" not in [engine.name for engine in load_engines(load_settings()).engines]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a "quoted" $(touch pwned) `x`\nsecond line', 'a "quoted" $(touch pwned) `x`\nsecond line'),
        ("--audio", " --audio"),
    ],
)
def test_a_request_becomes_the_program_s_arguments_and_its_mp4_the_video(
    bench: Bench, start: Start, prompt: str, text: str  # noqa: F811
) -> None:  # fmt: skip
    manager = start("mp4")
    task = completed(bench.ended(manager, bench.submit(manager, prompt=prompt, sample_steps=4, seed=7)))
    inputs, folder = manager.folders.inputs(task.id), manager.folders.attempt(task.id, 1)
    options = [
        "generation_mode=liveavatar", f"reference_image_path={inputs / 'image.png'}", "height=64", "width=64",
        "num_clips=1", "num_inference_steps=4", "seed=7",
    ]  # fmt: skip
    low_vram = [
        "denoiser_layerwise=true", "denoiser_layerwise_batch=16", "target_cache_blocks=1", "vae_cache_f16=true",
        "vae_encoder_chunk_size=4", "vae_decoder_tile_size=320",
    ]  # fmt: skip
    assert calls(bench.folder) == [
        {
            "program": "cli",
            "argv": [
                "--task", "gen", "--family", "liveavatar", "--model", str(bench.folder / "gguf"), "--backend", "cuda",
                "--threads", "8", "--audio", str(inputs / "audio.wav"), "--text", text,
                *(word for option in options for word in ("--request-option", option)),
                "--session-option", "liveavatar.denoiser_weight_streaming=true",
                *(word for option in low_vram for word in ("--request-option", option)),
                "--out-dir", str(folder / "made"), "--log",
            ],
        }
    ]  # fmt: skip
    assert not list(bench.folder.rglob("pwned"))


def test_raw_frames_become_a_video_where_there_is_an_ffmpeg(bench: Bench, start: Start) -> None:  # noqa: F811
    manager = start("raw")
    completed(bench.ended(manager, bench.submit(manager)))
    assert [call["program"] for call in calls(bench.folder)] == ["cli", "ffmpeg"]


@pytest.mark.parametrize(
    ("left", "environment", "code", "words"),
    [
        ("raw", {"AUDIO_CPP_FFMPEG": "/none"}, ErrorCode.ENGINE_FAILED, "there is no ffmpeg to make an mp4"),
        ("nothing", {}, ErrorCode.ENGINE_FAILED, "left neither an mp4 nor"),
        ("mp4", {"AUDIO_CPP_CLI": "/none"}, ErrorCode.ENGINE_FAILED, "the program is not there (AUDIO_CPP_CLI)"),
        ("mp4", {"AUDIO_CPP_MODEL": "/none"}, ErrorCode.WEIGHTS_MISSING, "model are missing"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    bench: Bench, start: Start, left: str, environment: dict[str, str], code: ErrorCode, words: str  # noqa: F811
) -> None:  # fmt: skip
    manager = start(left, **environment)
    task = bench.ended(manager, bench.submit(manager))
    assert task.failure is not None
    assert (task.failure.code, words in task.failure.message) == (code, True), task.failure


def test_cancelling_ends_the_program_behind_the_script(bench: Bench, start: Start) -> None:  # noqa: F811
    manager = start("hang")
    task = bench.submit(manager)
    bench.until(manager, task, lambda seen: (bench.folder / "calls.jsonl").exists())
    manager.delete(task.id, task.tenant)
    ended = bench.ended(manager, task)
    assert ended.status is Status.CANCELLED
    assert bench.left_of(ended) == []
