"""The shipped configs/nginx.conf in a real nginx on a free port, and a client that sees it from any address."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, needs_package
from tests.e2e.conftest import DEADLINE
from tests.web.conftest import Service

PROBLEM = "application/problem+json"


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    data: bytes

    def problem(self) -> dict[str, Any]:
        """Return the problem details that the answer must be."""
        assert self.headers["Content-Type"] == PROBLEM, self.data[:200]
        told: dict[str, Any] = json.loads(self.data)
        assert told["status"] == self.status
        assert {"type", "title", "detail", "error", "error_code", "request_id"} <= set(told)
        assert told["request_id"] == self.headers["X-Request-ID"]
        return told


@dataclass
class Front:
    """An nginx, and the service behind it as seen from its data."""

    port: int
    folder: Path
    service: Service | None = None
    own: dict[str, str] = field(default_factory=dict)

    def ask(
        self, path: str, headers: dict[str, str] | None = None, method: str = "GET", body: Any = None,
        address: str = "127.0.0.1",
    ) -> Answer:  # fmt: skip
        """Send one request; from another loopback address it is another client to nginx."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE, source_address=(address, 0))
        try:
            connection.request(method, path, body, self.own if headers is None else headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def result(self, query: str = "", **headers: str) -> Answer:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return self.ask(f"/results/gen_20261122_0000000000000001/video.mp4{query}", self.own | named)


def rendered(folder: Path, port: int, results: Path, upstream: str, tls: str = "") -> str:
    """Return the shipped configuration with the paths and addresses of a test."""
    text = (ROOT / "configs" / "nginx.conf").read_text()
    if tls:
        text = "".join(line.replace("#tls ", "") for line in text.splitlines(True) if "#plain" not in line)
        text = text.replace("listen 443", f"listen 127.0.0.1:{tls}").replace("/etc/live-avatar/tls", str(folder))
    changes = {
        "user www-data": "user root", "/run/nginx.pid": f"{folder}/pid", "/var/log/nginx": str(folder),
        "/var/lib/nginx": str(folder / "bodies"), "/var/lib/live-avatar/results": str(results),
        "listen 80": f"listen 127.0.0.1:{port}", "server 127.0.0.1:5000 max_fails=0;": upstream,
        "worker_processes auto": "worker_processes 2",
    }  # fmt: skip
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@contextmanager
def nginx(folder: Path, port: int, text: str, address: str = "127.0.0.1") -> Iterator[None]:
    """Run nginx with this configuration until the end; it is there once it listens at this address."""
    (folder / "bodies").mkdir(exist_ok=True)
    (folder / "nginx.conf").write_text(text)
    program = needs_package("nginx")
    arguments = [program, "-c", str(folder / "nginx.conf"), "-e", str(folder / "start.log"), "-g", "daemon off;"]
    with (folder / "nginx.out").open("wb") as out:
        process = subprocess.Popen(arguments, stdout=out, stderr=out)
        try:
            deadline = time.monotonic() + DEADLINE
            while True:
                with suppress(OSError), socket.create_connection((address, port), 1):
                    break
                assert process.poll() is None, (folder / "nginx.out").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.wait(DEADLINE)
