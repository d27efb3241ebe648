"""What a chaos round needs of a machine: a small disk, simulated GPUs, stand-in engines, a portrait and a voice."""

from __future__ import annotations

import shutil
import subprocess
import sys
import wave
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image

from config_loader import load_engines, load_settings
from task_manager import TaskManager
from tests.conftest import ROOT
from tests.fakes.nvml import build as nvml
from tests.tasks import conftest
from tests.tasks.conftest import write_video

DISK_MIB = 512  # free space is asked for at admission, so it must not be tiny
GPUS = 4
_FILE_LIMIT_BYTES = 4096


@contextmanager
def small_disk(folder: Path, allowed: bool = True) -> Iterator[str]:
    """Mount a tmpfs on the folder where that is allowed; yield why not, or nothing."""
    folder.mkdir()
    if not allowed:
        yield "nothing may be mounted"
        return
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "chaos", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        why = made.stderr.strip() if made.returncode else ""
    except FileNotFoundError:
        why = "there is no mount here"
    try:
        yield why
    finally:
        if not why:
            subprocess.run(["umount", "-l", str(folder)], timeout=20, check=True)


def limit_files(processes: Iterable[psutil.Process], limited: bool) -> None:
    """Let these and what they start write no file past a few KiB, or let them again: EFBIG stands in for ENOSPC."""
    for process in processes:
        with suppress(psutil.Error):
            _, most = process.rlimit(psutil.RLIMIT_FSIZE)
            process.rlimit(psutil.RLIMIT_FSIZE, (_FILE_LIMIT_BYTES if limited else most, most))


class SteeredClock:
    """A wall clock that can be set for the service alone; what only counts stays true. See tests/fakes/clock/clock.c.

    libfaketime is not used: with a fake time that is behind, it breaks sleeps until a moment, which are Python's own.
    """

    def __init__(self, folder: Path) -> None:
        self._file, library = folder / "clock", folder / "clock.so"
        self.jump(0)
        compiler = shutil.which("cc") or shutil.which("gcc")
        self.problem = "" if compiler else "no C compiler"
        self.environment: dict[str, str] = {}
        if compiler:
            source = ROOT / "tests" / "fakes" / "clock" / "clock.c"
            command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", library, source]
            subprocess.run(command, timeout=60, check=True)
            self.environment = {"LD_PRELOAD": str(library), "STEERED_CLOCK": str(self._file)}

    def jump(self, days: int) -> None:
        """Set the clock this far off the true one."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write((days * 86_400).to_bytes(8, sys.byteorder, signed=True))


def simulated_gpus(folder: Path) -> tuple[dict[str, str], str]:
    """Return the variables that show GPUs to the service, and why there are none, or nothing."""
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        return {}, "no C compiler for the simulated NVML"
    return nvml.environment(nvml.build(folder), nvml.write(folder / "machine", nvml.fleet(GPUS))), ""


def engines(folder: Path) -> Path:
    """Write the engine table: short, long, deaf and failing tasks on the CPU, gangs and single ones on GPUs."""
    claims = folder / "claims"
    claims.mkdir()
    (folder / "starts.txt").touch()
    common = {
        "FAKE_VIDEO": str(write_video(folder / "ready.mp4")), "FAKE_STARTS": str(folder / "starts.txt"),
        "FAKE_CLAIMS": str(claims),
    }  # fmt: skip

    def row(behaviour: str, seconds: float, **more: object) -> dict[str, object]:
        env = {**common, "FAKE_ENGINE": behaviour, "FAKE_SECONDS": str(seconds)}
        return {
            "name": behaviour, "script": str(ROOT / "tests/fakes/engine.sh"), "grace_seconds": 1.0, "env": env, **more,
        }  # fmt: skip

    gang = {"builds": [{"base_gib": 1.0}]}
    table = yaml.safe_load((ROOT / "configs" / "engines.yaml").read_text())
    preview = table["engines"]["preview"]
    made = {
        "short": [row("copy", 0)],
        "long": [row("slow_copy", 3)],
        "deaf": [row("stubborn_copy", 2)],
        "failing": [row("fail", 0)],
        "gang": [row("slow_copy", 2, name="two", gpus=2, **gang), row("slow_copy", 2, name="one", gpus=1, **gang)],
    }
    path = folder / "engines.yaml"
    engines = {"preview": preview, **{name: {"profiles": rows} for name, rows in made.items()}}
    path.write_text(yaml.safe_dump({"engines": engines}, sort_keys=False))
    return path


def inputs(folder: Path) -> tuple[Path, Path]:
    """Make a portrait and a second of a tone; return both."""
    folder.mkdir()
    portrait, voice = folder / "portrait.png", folder / "voice.wav"
    noise = np.random.default_rng(1).integers(0, 255, (72, 96, 3), np.uint8)
    Image.fromarray(noise).resize((384, 256)).save(portrait)
    tone = np.sin(np.arange(16_000) * 2 * np.pi * 220 / 16_000) * 8000
    with wave.open(str(voice), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(tone.astype("<i2").tobytes())
    return portrait, voice


def sweep_later(data: Path, table: Path) -> None:
    """Sweep the data folder of a service as if two hours had gone by, but keep what ended while the clock was wrong."""
    kept = {"results_hours": 0, "inputs_hours": 0, "logs_hours": 0, "records_days": 0}
    settings = load_settings({"data_dir": str(data), "engines": {"table": str(table)}, "retention": kept})
    manager = TaskManager(settings, load_engines(settings))
    conftest.sweep_later(manager)
    manager.store.close()
