"""What the engine's tests share: running it through its script as the service does, and media to feed it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from engines.preview.job import Job, make_preview
from engines.preview.progress import Progress
from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "preview.sh"
PORTRAIT = ROOT / "samples" / "portrait.png"
SPEECH = ROOT / "samples" / "speech.wav"

DEADLINE = 200.0
"""Seconds that a run of the engine may take, which has two seconds' work: other programs may have the processors."""

cv2.setNumThreads(1)


@dataclass(frozen=True)
class Run:
    """One finished run of the engine."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def video(self) -> Path:
        found = [path for path in self.folder.iterdir() if path.is_file()]
        assert len(found) == 1, f"exactly one file is expected, not {found}; stderr: {self.err}"
        return found[0]

    def said(self, tag: str) -> list[dict[str, Any]]:
        """Return the bodies of the lines `@progress` or `@note`."""
        start = f"@{tag} "
        return [json.loads(line.removeprefix(start)) for line in self.out.splitlines() if line.startswith(start)]


def command(
    folder: Path, image: Path, audio: Path, *extra: str, size: str = "384*256", num_clip: int = 9, seed: int = 1
) -> list[str]:
    """Return the engine contract's command line; the video goes to `folder`."""
    return [
        str(SCRIPT),
        "--prompt=a person speaks; $(touch pwned)",
        f"--image={image}",
        f"--audio={audio}",
        f"--size={size}",
        f"--num_clip={num_clip}",
        "--sample_steps=4",
        f"--seed={seed}",
        f"--output_dir={folder}",
        *extra,
    ]


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "AVATAR_PYTHON": sys.executable}


def run_engine(folder: Path, image: Path, audio: Path, *extra: str, **settings: Any) -> Run:
    """Run the engine to its end in a working folder of its own."""
    work, out = folder / "work", folder / "out"
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(exist_ok=True)
    argv = command(out, image, audio, *extra, **settings)
    done = subprocess.run(
        argv, cwd=work, env=environment(), capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    return Run(done.returncode, done.stdout, done.stderr, out)


def make(folder: Path, image: Path, audio: Path, size: str = "384*256", num_clip: int = 9, seed: int = 1) -> Path:
    """Make a preview within this process, which starts in a tenth of the time of a new one."""
    job = Job(image=image, audio=audio, size=size, num_clip=num_clip, seed=seed, output_dir=folder / "made")
    return make_preview(job, Progress(None), lambda: None)


@pytest.fixture
def engine(tmp_path: Path) -> Callable[..., Run]:
    """Run the engine: engine(image, audio, "--more=x", size=..., num_clip=..., seed=...)."""
    count = iter(range(100))
    return lambda image, audio, *extra, **settings: run_engine(
        tmp_path / str(next(count)), image, audio, *extra, **settings
    )


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The shipped portrait speaking the shipped text at the size of the rule."""
    run = run_engine(tmp_path_factory.mktemp("sample"), PORTRAIT, SPEECH, size="704*384")
    assert run.code == 0, run.err
    return run


def speech(seconds: float, start: float = 0.0) -> tuple[NDArray[np.float32], int]:
    """Return a part of the shipped speech as samples -1..1, and its rate."""
    with wave.open(str(SPEECH)) as file:
        rate = file.getframerate()
        file.setpos(round(start * rate))
        data = file.readframes(round(seconds * rate))
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768, rate


def write_wav(path: Path, samples: NDArray[Any], rate: int) -> Path:
    """Write samples -1..1, shaped (n,) or (n, channels), as 16-bit PCM."""
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def write_png(path: Path, rgb: NDArray[Any]) -> Path:
    Image.fromarray(rgb.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def short_speech(tmp_path: Path) -> Path:
    """1.6 seconds of the shipped speech: 40 frames."""
    return write_wav(tmp_path / "short.wav", *speech(1.6))


@pytest.fixture
def trial_png(trial_inputs: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Convert a trial portrait to the PNG that the service would hand over."""

    def convert(name: str) -> Path:
        source = trial_inputs / f"{name}.jpg"
        if not source.is_file():
            pytest.skip(f"{source.name} is not among the trial inputs")
        return write_png(tmp_path / f"{name}.png", np.asarray(Image.open(source).convert("RGB")))

    return convert


def pictures(path: Path) -> list[NDArray[np.uint8]]:
    """Return the video's frames as (height, width, 3) RGB."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
