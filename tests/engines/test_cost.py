"""What a preview costs: memory that does not grow with the recording, time in proportion to its encoder's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engines.preview import bench
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
def test_a_preview_is_made_faster_than_it_plays_and_near_its_encoders_speed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`make bench-preview` holds the real limits on an idle machine; here others may be at work."""
    bench.main(["--image", str(PORTRAIT), "--audio", str(SPEECH), "--runs", "2"])
    words = capsys.readouterr().out.split()
    speed, ratio = float(words[words.index("x") - 1]), float(words[words.index("encoding", words.index("/")) + 1])
    assert speed > 2
    assert ratio < 2.5
