"""`make doctor` tells what can run, on simulated machines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fakes.live_avatar import build as live_avatar
from tests.fakes.nvml import build as nvml


def doctor(environment: dict[str, str]) -> str:
    others = ("AVATAR_", "CUDA_", "LIVE_AVATAR_")  # of the machine that runs the tests
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    run = subprocess.run(
        [sys.executable, "scripts/doctor.py"],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_a_machine_without_gpus_can_run_the_preview(tmp_path: Path) -> None:
    told = doctor({"AVATAR_DATA_DIR": str(tmp_path)})
    assert "yes preview_cpu" in told
    assert "LIVE_AVATAR_HOME is not set" in told
    assert "yes single_80gb" not in told


@pytest.mark.parametrize(
    ("count", "gib", "yes", "no"),
    [
        (1, 79.1, ["single_80gb"], ["tpp_5gpu", "tpp_4gpu"]),
        (4, 79.1, ["tpp_4gpu", "single_80gb"], ["tpp_5gpu"]),
        (5, 47.5, ["tpp_5gpu_fp8_48gb", "tpp_4gpu", "single_fp8_48gb"], ["tpp_5gpu"]),
    ],
)
def test_the_profiles_that_can_run_are_told_from_those_that_cannot(
    tmp_path: Path, count: int, gib: float, yes: list[str], no: list[str]
) -> None:
    machine = nvml.write(tmp_path / "machine", nvml.fleet(count, gib))
    home = live_avatar.make_checkout(tmp_path / "home")
    variables = {**nvml.environment(nvml.build(tmp_path), machine), **live_avatar.environment(home)}
    lines = [line.strip() for line in doctor({**variables, "AVATAR_DATA_DIR": str(tmp_path)}).splitlines()]
    assert sum(line.startswith("GPU ") for line in lines) == count
    assert all(f"yes {name}" in lines for name in yes)
    assert all(any(line.startswith(f"no  {name}: it needs") for line in lines) for name in no)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    machine = nvml.write(tmp_path / "machine", nvml.fleet(1, 79.1))
    home = live_avatar.make_checkout(tmp_path / "home")
    (home / "ckpt" / "Wan2.2-S2V-14B" / "config.json").unlink()
    told = doctor({**nvml.environment(nvml.build(tmp_path), machine), **live_avatar.environment(home)})
    assert "weights are missing or empty: ckpt/Wan2.2-S2V-14B/config.json" in told
