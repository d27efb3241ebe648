"""Draining: what runs goes on, nothing new is accepted or started, and that outlives the service."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from app import create_app
from tests.conftest import ROOT
from tests.e2e.conftest import DEADLINE, Service


def drain_process(run: Service, *words: str) -> subprocess.Popen[str]:
    """Start the operator's command with the settings of the service."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AVATAR_")}
    return subprocess.Popen(
        [sys.executable, "-m", "flask", "--app", "app", "drain", *words],
        cwd=ROOT, env={**kept, **settings_of(run), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def settings_of(run: Service) -> dict[str, str]:
    return {"AVATAR_DATA_DIR": str(run.data), **run.environment}


def drain(run: Service, *words: str) -> Result:
    """Run the command in this process, on the same folder: a new one would spend two seconds on imports."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings_of(run).items():
            patch.setenv(name, value)
        app = create_app()
    try:
        return app.test_cli_runner().invoke(args=["drain", *words])
    finally:
        app.extensions["task_manager"].store.close()


def answer_before_the_body(run: Service, path: str) -> bytes:
    """Return the answer to a POST whose body is announced and never sent."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{run.port}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    with socket.create_connection(("127.0.0.1", run.port), timeout=DEADLINE) as connection:
        connection.sendall(f"{head}Content-Length: 1000000\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_drain_lets_the_running_task_end_and_holds_back_all_others_until_it_is_over(
    service: Callable[..., Service], tmp_path: Path, portrait: Path, voice: Path
) -> None:
    run = service(2, "when_told", fake={"env": {"FAKE_GO": str(tmp_path / "go")}})
    image, audio = run.upload("image", portrait), run.upload("audio", voice)
    wish = {"prompt": "a person speaks", "image_path": image, "audio_path": audio, "size": "384*256", "engine": "fake"}
    accepted = run.call("POST", "/api/v1/generate", json=wish, headers={"Idempotency-Key": "one"})
    running = accepted[1]["task_id"]
    queued, unwanted = (run.submit(image, audio, engine="fake")["task_id"] for _ in range(2))
    run.until(running, lambda seen: seen["phase"] == "generating")

    assert drain(run, "on", "--reason", "a new\n version").exit_code == 0

    status, health = run.call("GET", "/api/v1/health")
    assert (status, health["status"]) == (503, "draining")
    assert re.fullmatch(r"draining since .* UTC: a new version", health["reasons"][0])
    for path in ("/api/v1/generate", "/api/v1/upload"):
        head, _, body = answer_before_the_body(run, path).partition(b"\r\n\r\n")
        assert b" 503 " in head.splitlines()[0]
        assert b"Retry-After: 60" in head
        assert json.loads(body)["error_code"] == "draining"
    # The repetition of an accepted request gets its answer; the same wish under a new key does not.
    assert run.call("POST", "/api/v1/generate", json=wish, headers={"Idempotency-Key": "one"}) == accepted
    assert run.call("POST", "/api/v1/generate", json=wish, headers={"Idempotency-Key": "two"})[0] == 503
    assert run.call("DELETE", f"/api/v1/task/{unwanted}")[1]["status"] == "cancelled"
    assert len(run.call("GET", "/api/v1/tasks")[1]["tasks"]) == 3

    late = drain(run, "wait", "--timeout", "0.2")
    assert (late.exit_code, late.stderr.splitlines()[-1]) == (1, "1 task still running after 0.2 s")
    with drain_process(run, "wait") as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "1 task still running\n"
        (tmp_path / "go").touch()
        *said, last = waiting.communicate(timeout=DEADLINE)[0].splitlines()
        assert last == "no task is running"
        assert set(said) <= {"1 task still running"}, "said again after a while"
    assert waiting.returncode == 0
    assert run.task(running)["status"] == "completed"

    run.stop()
    run.start(health=503)
    assert drain(run, "status").stdout.endswith("0 tasks running, 1 queued\n")
    assert run.task(queued)["status"] == "queued"
    assert drain(run, "off").stdout.startswith("not draining; ")
    assert run.ended(queued)["status"] == "completed"
    assert len((tmp_path / "starts.txt").read_text().splitlines()) == 2
    assert run.call("GET", "/api/v1/health")[1]["status"] == "healthy"
