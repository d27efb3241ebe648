"""A real service: gunicorn on a free loopback port, a data folder of its own, ended with the test."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import urllib3
import yaml
from PIL import Image

from tests.conftest import ROOT
from tests.ports import reserve
from tests.tasks.conftest import kill, ready_video, write_video  # noqa: F401 - a fixture
from utils.process import marked

DEADLINE = 120.0
"""Seconds that anything may take that is waited for: a machine that is busy with other things starts a server in 40."""


class _OnceOnly(urllib3.HTTPConnectionPool):
    """A connection for each request: the server may close one that is kept just as it is used again."""

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.close()
        super()._put_conn(None)


class Service:
    """Starts, stops and kills one service, and talks to it."""

    def __init__(self, folder: Path, environment: dict[str, str], workers: int) -> None:
        self.folder, self.environment, self.workers = folder, environment, workers
        self.data = folder / "data"
        self._held = reserve()  # also while it is down: else another program might be given its port
        self.port = self._held.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = urllib3.PoolManager(maxsize=32, retries=False, timeout=DEADLINE)
        self.http.pool_classes_by_scheme = {"http": _OnceOnly}
        self.process: subprocess.Popen[bytes] | None = None
        self.checkout = ROOT
        self.listener: socket.socket | None = None  # handed over as systemd does, where there is one

    def start(self, health: int = 200) -> Service:
        """Start it and wait until its health answers with this status."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AVATAR_")}
        own = {"AVATAR_DATA_DIR": str(self.data), "AVATAR_PORT": str(self.port), "WEB_CONCURRENCY": str(self.workers)}
        with (self.folder / "server.log").open("ab") as log:
            gunicorn = [sys.executable, "-m", "gunicorn", "-c", "configs/gunicorn.conf.py", "app:create_app()"]
            activate, handed = [], ()
            if self.listener is not None:
                handed = (self.listener.fileno(),)
                script = f'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&{handed[0]}'
                activate = ["bash", "-c", script, "bash"]
            self.process = subprocess.Popen(
                [*activate, *gunicorn],
                cwd=self.checkout,
                pass_fds=handed,
                env={**kept, **own, **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_for_health(health)
        return self

    def _wait_for_health(self, wanted: int) -> None:
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                if self.http.request("GET", f"{self.url}/api/v1/health").status == wanted:
                    return
            except urllib3.exceptions.HTTPError:
                pass  # not listening yet
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")[-20_000:]

    def processes(self) -> list[psutil.Process]:
        """The gunicorn master, its workers and their spawner; not the runners."""
        if self.process is None:
            return []
        master = psutil.Process(self.process.pid)
        workers = master.children()
        below: list[psutil.Process] = []
        for worker in workers:
            with suppress(psutil.NoSuchProcess):  # it was replaced meanwhile
                below += worker.children()
        return [master, *workers, *below]

    def kill(self) -> None:
        """kill -9 of the master and of all its workers."""
        assert self.process is not None
        stop_for_now(psutil.Process(self.process.pid))  # it may be about to start a worker, which nobody would know
        own = self.processes()
        kill(own)
        _, left = psutil.wait_procs(own, timeout=DEADLINE)
        assert left == []

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(DEADLINE)

    def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        answer = self.http.request(method, self.url + path, **options)
        is_json = "json" in answer.headers.get("Content-Type", "")
        return answer.status, json.loads(answer.data) if is_json else answer.data

    def upload(self, kind: str, path: Path) -> str:
        status, answer = self.call(
            "POST", "/api/v1/upload", fields={"type": kind, "file": (path.name, path.read_bytes())}
        )
        assert status == 201, answer
        return str(answer["path"])

    def submit(self, image: str, audio: str, **fields: Any) -> dict[str, Any]:
        body = {"prompt": "a person speaks", "image_path": image, "audio_path": audio, "size": "384*256", **fields}
        status, answer = self.call("POST", "/api/v1/generate", json=body)
        assert status == 201, answer
        return dict(answer)

    def task(self, task_id: str) -> dict[str, Any]:
        status, answer = self.call("GET", f"/api/v1/task/{task_id}")
        assert status == 200, answer
        return dict(answer)

    def ended(self, task_id: str, seconds: float = DEADLINE) -> dict[str, Any]:
        return self.until(task_id, lambda task: task["status"] in ("completed", "failed", "cancelled"), seconds)

    def until(self, task_id: str, holds: Callable[[dict[str, Any]], bool], seconds: float = DEADLINE) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while not holds(task := self.task(task_id)):
            assert time.monotonic() < deadline, task
            self.call("GET", f"/api/v1/task/{task_id}?wait=1")
        return task

    def clean_up(self) -> None:
        """End everything, tasks' processes too."""
        self.stop()
        for folder in (self.data / "tasks").glob("*"):
            kill(marked({"AVATAR_TASK_ID": folder.name}))
        self._held.close()


def engine_of(task_id: str) -> list[psutil.Process]:
    """Return the processes of a task but its runner, which may be on its way out."""
    found = []
    for process in marked({"AVATAR_TASK_ID": task_id}):
        with suppress(psutil.NoSuchProcess):
            found += [process] if process.name() != "avatar-runner" else []
    return found


def stop_for_now(process: psutil.Process) -> None:
    """Stop a process, and return once it stands still."""
    process.suspend()
    deadline = time.monotonic() + DEADLINE
    while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fake_row(folder: Path, video: Path, behaviour: str = "copy", **changes: Any) -> dict[str, Any]:
    """Return a profile of the stand-in engine; its starts are noted in `folder`."""
    (folder / "starts.txt").touch()
    row = {"name": "only", "script": str(ROOT / "tests/fakes/engine.sh"), "grace_seconds": 1.0, **changes}
    env = {"FAKE_ENGINE": behaviour, "FAKE_VIDEO": str(video), "FAKE_STARTS": str(folder / "starts.txt")}
    return row | {"env": {**env, **row.get("env", {})}}


def engine_table(folder: Path, **rows: dict[str, Any]) -> dict[str, str]:
    """Write the shipped table with an engine more for each of `rows`; return the settings that name it."""
    table = yaml.safe_load((ROOT / "configs" / "engines.yaml").read_text())
    table["engines"] |= {name: {"profiles": [row]} for name, row in rows.items()}
    (folder / "engines.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    return {"AVATAR_ENGINES__TABLE": str(folder / "engines.yaml"), "AVATAR_INPUTS__FOLDERS": str(folder / "in")}


@pytest.fixture
def service(tmp_path: Path, ready_video: Path) -> Iterator[Callable[..., Service]]:  # noqa: F811
    """Return a function that starts a service with the stand-in engine `fake` beside the preview."""
    made: list[Service] = []

    def start(
        workers: int = 1, behaviour: str = "copy", fake: dict[str, Any] | None = None, **environment: str
    ) -> Service:
        settings = engine_table(tmp_path, fake=fake_row(tmp_path, ready_video, behaviour, **(fake or {})))
        made.append(Service(tmp_path, {**settings, **environment}, workers))
        return made[-1].start()

    yield start
    for one in made:
        one.clean_up()


def write_portrait(path: Path, size: tuple[int, int] = (384, 256)) -> Path:
    """Write a small picture without a face."""
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 255, (72, 96, 3), np.uint8)).resize(size).save(path)
    return path


def write_voice(path: Path, seconds: float = 1.0) -> Path:
    """Write a tone, 16 kHz, mono."""
    path.parent.mkdir(exist_ok=True)
    tone = np.sin(np.arange(int(seconds * 16_000)) * 2 * np.pi * 220 / 16_000) * 8000
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(tone.astype("<i2").tobytes())
    return path


@pytest.fixture
def portrait(tmp_path: Path) -> Path:
    """A small picture without a face."""
    return write_portrait(tmp_path / "in" / "portrait.png")


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    """One second of a tone, 16 kHz, mono: 25 frames."""
    return write_voice(tmp_path / "in" / "voice.wav")
