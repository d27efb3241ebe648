"""A TaskManager with a scheduler, stand-in engines and inputs, all in a folder of the test's own."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from config_loader import Settings, load_engines, load_settings
from task_manager import TaskManager
from tasks.clock import ClockGuard
from tasks.launch import Launcher
from tasks.model import OutputFormat, Priority, Task
from tasks.profile import EngineTable
from tasks.retention import Sweeper
from tasks.spawner import Spawner
from tasks.store import Store, utc_now
from tasks.submission import PreparedInput, Submission
from tests.conftest import NOON, PATIENCE, ROOT
from utils.media import AudioFacts, ImageFacts
from utils.process import is_alive, marked

FRAMES, SECONDS = 25, 1.0


def write_video(path: Path, frames: int = FRAMES, sound: bool = True) -> Path:
    """Write an mp4 of 64x64 pixels at 25 frames a second, with sound of the same length."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=48_000) if sound else None
        for number in range(frames):
            picture = np.full((64, 64, 3), number * 9 % 256, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        if audio is not None:
            tone = av.AudioFrame.from_ndarray(np.zeros((1, frames * 1920), np.float32), format="fltp", layout="mono")
            tone.sample_rate = 48_000
            container.mux(audio.encode(tone))
            container.mux(audio.encode())
    return path


@pytest.fixture(scope="session")
def ready_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "ready.mp4")


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path / 'avatar.db'}", tmp_path, now=clock)
    yield made
    made.close()


class KeptSpawner:
    """A spawner that outlives its scheduler and serves the next test's: starting one takes a second of processor."""

    def __init__(self) -> None:
        self.own = Spawner()
        self.keep()

    def keep(self) -> None:
        """Start it where it is gone: whoever had it is done with it.

        By the thread that lives as long as the tests, for a spawner is killed when the thread that started it ends.
        """
        if self.own._process is not None and self.own._process.poll() is not None:
            self.own.close()
        self.own.warm_up()
        self._kept, self.free = self.own._process, True

    @property
    def pid(self) -> int:
        """The one that serves now: another module's tests may keep one of their own in this process."""
        assert self.own._process is not None
        return self.own._process.pid

    def warm_up(self) -> None:
        self.own.warm_up()

    def be_ready(self) -> None:
        self.own.be_ready()

    def spawn(self, folder: Path, environment: Mapping[str, str], lock: int) -> int:
        return self.own.spawn(folder, environment, lock)

    def close(self) -> None:
        if self.own._process is not self._kept:  # one that a scheduler's thread started, with which it would end
            self.own.close()
        self.free = True


@pytest.fixture(scope="session")
def kept_spawner() -> Iterator[KeptSpawner]:
    kept = KeptSpawner()
    yield kept
    kept.own.close()


def wait_until(holds: Callable[[], bool], what: str = "what was waited for", seconds: float = PATIENCE) -> None:
    """Wait until something holds; fail loudly after `seconds`."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come in {seconds} s"
        pause.wait(0.02)


class Notebook:
    """What a guard of the clock keeps from beat to beat, for this one guard."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        return self._kept.get(name)

    def set(self, name: str, value: Any) -> None:
        self._kept[name] = value


def sweep_later(manager: TaskManager) -> None:
    """Sweep as if two hours had gone by, after which a file without a row belongs to nobody.

    Under a guard that keeps its own beats: a service sweeps by the true time meanwhile, and each would find that the
    other's clock had jumped.
    """
    later = lambda: utc_now() + timedelta(hours=2)  # noqa: E731
    guard = ClockGuard(Notebook(), later)
    Sweeper(manager.store, manager.folders, manager.disk, manager.retention, later, guard).sweep()


def is_gone(process: psutil.Process) -> bool:
    """Say whether a process has ended. Whoever collects it may do so between any two looks at it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill(processes: Iterable[psutil.Process]) -> None:
    """kill -9 of all; with its parent dies who asked for that, so some may be gone when their turn comes."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


class Bench:
    """A service without its HTTP: submit, wait, look."""

    def __init__(
        self, folder: Path, video: Path, monkeypatch: pytest.MonkeyPatch, spawner: KeptSpawner | None = None
    ) -> None:
        self.folder, self.video, self.monkeypatch, self.spawner = folder, video, monkeypatch, spawner
        self.starts = folder / "starts.txt"
        self.starts.touch()
        self.managers: list[TaskManager] = []
        self.inputs = folder / "given"
        self.inputs.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), "navy").save(self.inputs / "image.png")
        (self.inputs / "audio.wav").write_bytes(b"RIFF")  # the stand-in engines do not listen

    def load(
        self, behaviour: str = "copy", settings: dict[str, Any] | None = None, **profile: Any
    ) -> tuple[Settings, EngineTable]:
        """Return settings and a table whose only engine is the stand-in with this behaviour."""
        row = {
            "name": "only",
            "script": str(ROOT / "tests" / "fakes" / "engine.sh"),
            "grace_seconds": 1.0,
            "env": {"FAKE_ENGINE": behaviour, "FAKE_VIDEO": str(self.video), "FAKE_STARTS": str(self.starts)},
        }
        row = {**row, **profile, "env": {**row["env"], **profile.get("env", {})}}
        table = self.folder / "engines.yaml"
        table.write_text(yaml.safe_dump({"engines": {"fake": {"profiles": [row]}}}))
        base = {
            "data_dir": str(self.folder / "data"),
            "engines": {"table": str(table)},
            "runner": {"poll_seconds": 0.05},
        }
        loaded = load_settings({**base, **(settings or {})})
        return loaded, load_engines(loaded)

    def open(self, behaviour: str = "copy", settings: dict[str, Any] | None = None, **profile: Any) -> TaskManager:
        """Return a started manager whose only engine is the stand-in with this behaviour."""
        manager = TaskManager(*self.load(behaviour, settings, **profile))
        self.managers.append(manager)
        self.start(manager)
        return manager

    def start(self, manager: TaskManager) -> None:
        """Start its scheduler, with the kept spawner where that is free."""
        if self.spawner is None or not self.spawner.free:
            manager.start()
            return
        self.spawner.free = False
        with self.monkeypatch.context() as patch:
            patch.setattr("task_manager.Launcher", partial(Launcher, spawner=self.spawner))
            manager.start()

    def stop(self, manager: TaskManager) -> None:
        """Stop it, and wait until it does nothing any more: a server that stops does not wait for ever, a test must."""
        manager.stop()
        parts = (
            manager._scheduler, getattr(manager, "_sweeper", None), manager._deliverer, manager._hardware.probe,
        )  # fmt: skip
        for thread in [part._thread for part in parts if part is not None]:
            if thread.ident is None:  # of a manager that was never started
                continue
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"the thread {thread.name} did not end in {PATIENCE} s"

    def lose_patience(self, manager: TaskManager, task: Task, seconds: float = 1.0) -> None:
        """From now on let a silence of `seconds` cost this attempt of `task`, and no other one.

        A lease short enough to wait for is one that a healthy runner passes where the machine stands still.
        """
        scheduler = manager._scheduler
        assert scheduler is not None
        real, silent = scheduler._end_if_stuck, (task.id, task.attempt)

        def end_if_stuck(attempt: tuple[str, int], seen: Task) -> None:
            scheduler._lease_seconds = seconds if attempt == silent else float("inf")
            real(attempt, seen)

        self.monkeypatch.setattr(scheduler, "_end_if_stuck", end_if_stuck)

    def suspend(self, manager: TaskManager, process: psutil.Process) -> None:
        """Stop a process between two of its writes: one that is stopped in the middle keeps the database from all."""
        with manager.store._writing.begin():
            process.suspend()
            wait_until(lambda: process.status() == psutil.STATUS_STOPPED)

    def submit(self, manager: TaskManager, **changes: Any) -> Task:
        values: dict[str, Any] = {
            "tenant": "default", "prompt": "a person speaks", "size": "384*256", "num_clip": 50, "sample_steps": 4,
            "output_format": OutputFormat.MP4, "seed": None, "enable_online_decode": False, "engine": "auto",
            "priority": Priority.NORMAL, "metadata": {}, "idempotency_key": None,
            "image": PreparedInput(self.inputs / "image.png", ImageFacts(64, 64), "i"),
            "audio": PreparedInput(self.inputs / "audio.wav", AudioFacts(SECONDS, 16_000, 1, 16_000), "a"),
        }  # fmt: skip
        return manager.submit(Submission(**(values | changes)), lambda view: view.task.id).task

    def until(self, manager: TaskManager, task: Task, holds: Callable[[Task], bool], seconds: float = PATIENCE) -> Task:
        """Return the task once `holds` is true of it; fail loudly after `seconds`."""
        deadline, pause = time.monotonic() + seconds, threading.Event()
        while True:
            seen = manager.view(task.id, task.tenant).task
            if holds(seen):
                return seen
            assert time.monotonic() < deadline, f"still {seen.status} {seen.phase} {seen.progress} after {seconds} s"
            pause.wait(0.01)

    def ended(self, manager: TaskManager, task: Task, seconds: float = PATIENCE) -> Task:
        return self.until(manager, task, lambda seen: seen.status.ended, seconds)

    def starts_of(self, task: Task) -> list[list[str]]:
        return [line for line in map(str.split, self.starts.read_text().splitlines()) if line[1] == task.id]

    def processes_of(self, task: Task) -> list[psutil.Process]:
        return marked({"AVATAR_TASK_ID": task.id})

    def left_of(self, task: Task) -> list[psutil.Process]:
        """The engine's processes: all of the task's but its runner, which is on its way out when the row says so."""
        return [process for process in self.processes_of(task) if task.runner is None or process.pid != task.runner.pid]

    def close(self) -> None:
        for manager in self.managers:
            self.stop(manager)
            for task in manager.store.processing():
                kill(self.processes_of(task))
                # Its runner would end by itself, but for one that a test stopped and failed before it went on.
                if task.runner is not None and is_alive(task.runner.pid, task.runner.start_time):
                    with suppress(ProcessLookupError):
                        os.kill(task.runner.pid, signal.SIGKILL)
            manager.store.close()


@pytest.fixture
def bench(
    tmp_path: Path, ready_video: Path, monkeypatch: pytest.MonkeyPatch, kept_spawner: KeptSpawner
) -> Iterator[Bench]:
    kept_spawner.keep()
    # How long a spawner is waited for before another one is asked is not to be met by chance: it may cost an attempt.
    monkeypatch.setattr("tasks.spawner._ANSWER_SECONDS", PATIENCE)
    made = Bench(tmp_path, ready_video, monkeypatch, kept_spawner)
    yield made
    made.close()
