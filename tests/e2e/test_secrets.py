"""Keys, tokens, the secret that signs them, and signed links: in no log line, no error answer and no process list."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
import psutil
import pytest

from tests.conftest import ROOT
from tests.e2e.conftest import Service

JWT_SECRET = "canary-jwt-secret-0123456789abcdef"


def make_key(run: Service) -> str:
    """Make a key as an operator does."""
    made = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "app", "keys", "create", "--tenant", "acme"],
        cwd=ROOT, env={**os.environ, **run.environment, "AVATAR_DATA_DIR": str(run.data)}, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def command_lines() -> str:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        found += process.info["cmdline"] or []
    return "\n".join(found)


def unreadable(secret: str) -> dict[str, tuple[bytes, int]]:
    """Requests that gunicorn refuses by itself, each with a secret where it would be quoted; and the status."""
    line, host = f"GET /results/x/video.mp4?signature={secret} ", "Host: localhost\r\n"
    named = {
        "a header with a NUL": (f"GET / HTTP/1.1\r\n{host}Authorization: Bearer {secret}\0\r\n\r\n", 400),
        "a header name with a space": (f"GET / HTTP/1.1\r\n{host}X {secret}: 1\r\n\r\n", 400),
        "a folded header": (f"GET / HTTP/1.1\r\n{host}X-API-Key: a\r\n {secret}\r\n\r\n", 400),
        "an unknown version": (f"{line}HTTP/7.7\r\n{host}\r\n", 400),
        "no version": (f"{line}{secret} x\r\n{host}\r\n", 400),
        "a method": (f"G{secret}\x01T / HTTP/1.1\r\n{host}\r\n", 400),
        "a long line": (f"GET /?{secret}{'x' * 9000} HTTP/1.1\r\n{host}\r\n", 414),
        "many headers": (f"GET / HTTP/1.1\r\n{host}" + f"X-API-Key: {secret}\r\n" * 100 + "\r\n", 431),
    }
    return {name: (text.encode(), status) for name, (text, status) in named.items()}


def raw(port: int, request: bytes) -> bytes:
    """Send bytes; return all that comes until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), 60) as sock:
        sock.sendall(request)
        return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest.mark.timeout(240)
def test_no_secret_is_told_to_anyone_who_does_not_have_it(
    service: Callable[..., Service], tmp_path: Path, portrait: Path, voice: Path
) -> None:
    auth = {"AVATAR_AUTH__ENABLED": "true", "AVATAR_AUTH__JWT_SECRET": JWT_SECRET, "AVATAR_LOG_LEVEL": "DEBUG"}
    go = tmp_path / "go"
    run = service(1, "when_told", fake={"env": {"FAKE_GO": str(go)}}, **auth)
    key = make_key(run)
    token = jwt.encode({"exp": int(time.time()) + 600, "sub": "u", "tenant": "acme"}, JWT_SECRET, "HS256")
    run.http.headers = {"X-API-Key": key}
    accepted = run.submit(str(portrait), str(voice), engine="fake")
    run.until(accepted["task_id"], lambda task: task["phase"] == "generating")
    while_it_runs = command_lines()
    go.touch()
    url = run.ended(accepted["task_id"])["output_video_url"]
    signature = parse_qs(urlsplit(url).query)["signature"][0]
    secrets = {"key": key, "its half": key.split("_", 2)[2], "token": token, "jwt": JWT_SECRET, "link": signature}

    told, own = [], {"X-API-Key": key}
    for path, headers, status in [
        (url, {}, 200), (url + "A", {}, 401), (f"/{key}", {}, 404), ("/api/v1/health", own, 200),
        ("/api/v1/tasks", {"Authorization": f"Bearer {token}"}, 200), ("/api/v1/tasks", {"X-API-Key": key + "x"}, 401),
        ("/api/v1/tasks", {"Authorization": f"Bearer {token}x"}, 401), (f"/api/v1/tasks?key={key}", own, 400),
        (f"/api/v1/tasks?cursor={token}", own, 400),
    ]:  # fmt: skip
        answer = run.http.request("GET", run.url + path, headers=headers)
        assert answer.status == status, (path, answer.data)
        if path != "/api/v1/tasks" or status != 200:  # to its tenant, that tells of the link
            told.append(f"{answer.headers} {answer.data!r}")
    for secret in (key, token, signature):
        for name, (request, wanted) in unreadable(secret).items():
            answered = raw(run.port, request)
            assert answered.startswith(f"HTTP/1.1 {wanted} ".encode()), (name, answered[:100])
            assert b"application/problem+json" in answered, name
            told.append(answered.decode())
    run.stop()
    kept = [path.read_text(errors="replace") for path in (run.data / "tasks").rglob("*") if path.is_file()]
    places = {
        "an answer": "\n".join(told), "the server's log": (tmp_path / "server.log").read_text(errors="replace"),
        "a process list": while_it_runs, "the task's files": "\n".join(kept),
    }  # fmt: skip
    assert "was refused: InvalidHeader" in places["the server's log"]
    assert accepted["task_id"] in while_it_runs, "its engine was not seen"
    assert kept
    found = [(name, where) for name, secret in secrets.items() for where, text in places.items() if secret in text]
    assert not found
