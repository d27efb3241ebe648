"""What a preview costs: memory that does not grow with the recording, time in proportion to its encoder's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engines.preview import bench
from engines.preview.job import Job
from tests.engines.conftest import PORTRAIT, SPEECH, command, environment, speech, write_wav

MAX_MEGABYTES = 300


SPAWN_AND_WEIGH = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A process's peak begins with its parent's size at the fork, so a small parent must start what is weighed."""


def peak_megabytes(folder: Path, seconds: int) -> float:
    """Return the engine's largest resident size while it makes a video of `seconds` of speech."""
    sound, rate = speech(12)
    audio = write_wav(folder / f"{seconds}.wav", np.tile(sound, seconds // 12 + 1)[: seconds * rate], rate)
    argv = [sys.executable, "-c", SPAWN_AND_WEIGH, *command(folder / "out", PORTRAIT, audio, num_clip=900)]
    done = subprocess.run(argv, env=environment(), cwd=folder, capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


@pytest.mark.alone
def test_five_minutes_stay_under_300_mb_and_cost_hardly_more_than_half_a_minute(tmp_path: Path) -> None:
    short, long = peak_megabytes(tmp_path, 30), peak_megabytes(tmp_path, 300)
    assert long < MAX_MEGABYTES
    assert long - short < 30


@pytest.mark.alone
def test_drawing_costs_less_than_encoding(tmp_path: Path) -> None:
    """`python -m engines.preview.bench` holds the limits of idle cores; processor time can be judged on busy ones."""
    audio = bench.ten_seconds(SPEECH, tmp_path / "ten.wav")
    job = Job(PORTRAIT, audio, bench.SIZE, num_clip=9, seed=0, output_dir=tmp_path)
    plan, whole, encoding = bench.measure(job, runs=2)
    assert plan.frames == 250
    assert whole.processor < 2 * encoding.processor
    assert whole.processor < plan.video_seconds / 3
