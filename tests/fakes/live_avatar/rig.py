"""Runs a launch script against the stand-in as the runner does, and tells what came of it."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import uuid
import wave
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from tasks.engine_process import EngineProcess, Progress
from tests.fakes.live_avatar.build import TORCHRUN, environment, make_checkout
from utils.process import kill_all, marked, watch

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
SINGLE, MULTI, FOUR = "infinite_inference_single_gpu.sh", "infinite_inference_multi_gpu.sh", "run_4gpu_tpp.sh"
STEPS = {SINGLE: 4, MULTI: 4, FOUR: 3}
RANKS = {SINGLE: 1, MULTI: 5, FOUR: 4}
COMMAND_LINE = "minimal_inference/s2v_streaming_interact.py"
DEADLINE = 150.0


def write_media(folder: Path, seconds: float = 1.0, width: int = 160, height: int = 96) -> tuple[Path, Path]:
    """Write an image and a recording of 16 kHz as the service hands them over."""
    image, audio = folder / "image.png", folder / "audio.wav"
    Image.new("RGB", (width, height), "teal").save(image)
    second = b"".join(level.to_bytes(2, "little", signed=True) for level in (0, 6000, 0, -6000)) * 4000
    with wave.open(str(audio), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((second * (int(seconds) + 1))[: round(seconds * 16_000) * 2])
    return image, audio


def finished_bars(text: str) -> int:
    """Count the bars of blocks that a rank's standard error tells as done: those whose last piece ends the line."""
    pieces = re.findall(r"[^\r\n]+(?:\r|\n|$)", text)
    return sum(bool(re.match(r"\s*100%\|.*\| (\d+)/\1 \[.*\n", piece)) for piece in pieces)


@dataclass
class Run:
    """What a script that has ended left behind. `progress` and `log` are in the order in which they came."""

    code: int
    log: str
    progress: list[Progress]
    folder: Path

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "out").iterdir())

    @property
    def video(self) -> Path:
        return self.folder / "out" / "video.mp4"

    def rank(self, rank: int, stream: str = "stderr") -> str:
        """What one of several ranks said, byte for byte."""
        (found,) = (self.folder / "ranks").glob(f"*/attempt_0/{rank}/{stream}.log")
        return found.read_bytes().decode()

    @property
    def cause(self) -> str:
        """The last line of a traceback in the log that names a rank's exception, if not an echo of another's."""
        found = re.findall(r"^(?:\[default\d+\]:)?\[rank\d+\]: (\w[\w.]*(?:Error|Exception)\b.*)", self.log, re.M)
        own = [line for line in found if not re.search("Connection (closed|reset) by peer", line)]
        return str((own or found or [""])[-1])


@dataclass
class Rig:
    """A folder with a checkout, media and attempts. `variables` reach the script beside the service's own."""

    folder: Path
    home: Path = field(init=False)
    variables: dict[str, str] = field(default_factory=dict)
    task: str = field(default_factory=lambda: f"gen_{uuid.uuid4().hex}")
    attempt: int = 0

    def __post_init__(self) -> None:
        self.home = make_checkout(self.folder / "home")
        self.image, self.audio = write_media(self.folder)
        self.calls_file = self.folder / "calls.jsonl"

    @property
    def marks(self) -> dict[str, str]:
        return {"AVATAR_TASK_ID": self.task}

    def environ(self, **more: str) -> dict[str, str]:
        own = {
            "PATH": "/usr/bin:/bin", "HOME": str(self.folder / "user"), "AVATAR_PYTHON": sys.executable,
            "PYTHONUNBUFFERED": "1", "AVATAR_ATTEMPT": str(self.attempt), **self.marks,
            "LIVE_AVATAR_FAKE_CALLS": str(self.calls_file),
        }  # fmt: skip
        told = {**own, **environment(self.home), **self.variables, **more}
        return {name: value for name, value in told.items() if value}

    def argv(self, script: str, *more: str, **changes: Any) -> list[str]:
        """The contract's arguments; a change of None leaves one out."""
        values = {
            "prompt": "a person speaks", "image": self.image, "audio": self.audio, "size": "384*256", "num_clip": 50,
            "sample_steps": STEPS[script], "seed": 7, "output_dir": self.attempt_folder / "out",
        }  # fmt: skip
        given = {**values, **changes}
        return [
            str(SCRIPTS / script),
            *(f"--{name}={value}" for name, value in given.items() if value is not None),
            *more,
        ]

    @property
    def attempt_folder(self) -> Path:
        return self.folder / "attempts" / str(self.attempt)

    def start(self, script: str, *more: str, wrapper: tuple[str, ...] = (), fake: str = "", **changes: Any) -> Job:
        """Start a script in an attempt of its own; `fake` is what the stand-in shall do wrong."""
        self.attempt += 1
        self.attempt_folder.mkdir(parents=True)
        argv, folder = self.argv(script, *more, **changes), self.attempt_folder
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            engine = EngineProcess(
                [*wrapper, *argv], folder, folder / "engine.log", self.environ(LIVE_AVATAR_FAKE=fake), [null]
            )
        finally:
            os.close(null)
        return Job(engine, folder)

    def run(self, script: str, *more: str, **changes: Any) -> Run:
        return self.start(script, *more, **changes).wait()

    def upstream(self, *more: str, ranks: int = 1, torchrun: tuple[str, ...] = ("--standalone",), **flags: Any) -> Run:
        """Start upstream's command line through torchrun without a script."""
        self.attempt += 1
        folder = self.attempt_folder
        (folder / "out").mkdir(parents=True)
        values = {
            "task": "s2v-14B", "size": "384*256", "ckpt_dir": "ckpt/Wan2.2-S2V-14B/", "infer_frames": 48,
            "sample_steps": 4, "prompt": "x", "image": self.image, "audio": self.audio,
            "training_config": "liveavatar/configs/s2v_causal_sft.yaml", "save_file": folder / "out" / "video.mp4",
            **({"num_gpus_dit": 4} if ranks > 1 else {}),
        }  # fmt: skip
        own = [f"--{name}={value}" for name, value in {**values, **flags}.items() if value is not None]
        vae = ["--enable_vae_parallel"] if ranks > 1 else []
        with (folder / "engine.log").open("wb") as log:
            done = subprocess.run(
                [TORCHRUN, *torchrun, f"--nproc_per_node={ranks}", COMMAND_LINE, *own, *vae, *more], cwd=self.home,
                env=self.environ(), stdout=log, stderr=log, timeout=DEADLINE, check=False,
            )  # fmt: skip
        return Run(done.returncode, (folder / "engine.log").read_bytes().decode(), [], folder)

    def calls(self, event: str = "start") -> list[dict[str, Any]]:
        """The stand-in's diary, in the order of ranks."""
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        found = [call for call in map(json.loads, lines) if call["event"] == event]
        return sorted(found, key=lambda call: call["rank"])

    def left(self) -> list[int]:
        return [process.pid for process in marked(self.marks)]

    def sweep(self) -> bool:
        return kill_all(below=None, marks=self.marks, deadline=10)


class Job:
    """A script at work."""

    def __init__(self, engine: EngineProcess, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self.progress: list[Progress] = []

    @property
    def log(self) -> str:
        return (self.folder / "engine.log").read_bytes().decode()

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until the log holds `text` so many times."""
        until = time.monotonic() + DEADLINE
        while True:
            ended = self.engine.poll() is not None  # before the look: what it said last is in the log then
            if self.log.count(text) >= times:
                return
            assert not ended, self.log
            assert time.monotonic() < until, self.log
            time.sleep(0.02)

    def wait(self, deadline: float = DEADLINE, listen: bool = True) -> Run:
        """Return the end; SIGKILL and fail when it does not come. Progress is read as it comes, or only then."""
        until, descriptor = time.monotonic() + deadline, watch(self.engine.pid)
        assert descriptor is not None
        try:
            while not select.select([descriptor], [], [], 0.05)[0]:
                if listen:
                    self._listen()
                if time.monotonic() > until:
                    self.engine.kill()
                    raise AssertionError(f"no end after {deadline} s: {self.log}")
        finally:
            os.close(descriptor)
        while (code := self.engine.poll()) is None:
            time.sleep(0.001)
        self._listen()
        os.close(self.engine.channel)
        return Run(code, self.log, self.progress, self.folder)

    def terminate(self) -> tuple[Run, float]:
        """Ask it to stop, and return its end and how many seconds that took."""
        began = time.monotonic()
        self.engine.terminate()
        return self.wait(), time.monotonic() - began

    def kill(self) -> Run:
        os.kill(self.engine.pid, signal.SIGKILL)
        return self.wait()

    def _listen(self) -> None:
        self.progress += [said for said in self.engine.read() if isinstance(said, Progress)]
