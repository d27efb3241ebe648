"""What a preview costs: memory that does not grow with the recording, time in proportion to its encoder's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


def peak_megabytes(folder: Path, image: Path, seconds: int) -> float:
    """Return the engine's largest resident size while it makes a video of `seconds` of speech."""
    sound, rate = speech(12)
    audio = write_wav(folder / f"{seconds}.wav", np.tile(sound, seconds // 12 + 1)[: seconds * rate], rate)
    argv = [sys.executable, "-c", SPAWN_AND_WEIGH, *command(folder / "out", image, audio, num_clip=900)]
    done = subprocess.run(argv, env=environment(), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The shipped portrait, so small that its video has a quarter of the pixels of 384*256."""
    with Image.open(PORTRAIT) as portrait:
        portrait.convert("RGB").resize((192, 105)).save(tmp_path / "small.png")
    return tmp_path / "small.png"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_five_minutes_cost_hardly_more_than_a_few_seconds_and_stay_under_300_mb(tmp_path: Path, small: Path) -> None:
    """The length is tried on a small face, whose frames alone would take 280 MB more if they were kept, the size on a
    large one. The sum is what five minutes of the large one take."""
    short, long = peak_megabytes(tmp_path, small, 12), peak_megabytes(tmp_path, small, 300)
    assert long - short < 30
    assert peak_megabytes(tmp_path, PORTRAIT, 12) + (long - short) < MAX_MEGABYTES


@pytest.mark.alone
def test_drawing_costs_less_than_encoding(tmp_path: Path) -> None:
    """`python -m engines.preview.bench` holds the limits of idle cores; processor time can be judged on busy ones."""
    audio = bench.ten_seconds(SPEECH, tmp_path / "ten.wav")
    job = Job(PORTRAIT, audio, bench.SIZE, num_clip=9, seed=0, output_dir=tmp_path)
    for _ in range(6):  # who shares the processors' caches costs them time, too: then it is measured again
        plan, whole, encoding = bench.measure(job, runs=1)
        assert plan.frames == 250
        if whole.processor < 2 * encoding.processor and whole.processor < plan.video_seconds / 3:
            break
    assert whole.processor < 2 * encoding.processor
    assert whole.processor < plan.video_seconds / 3
