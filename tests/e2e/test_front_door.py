"""The service as it is shipped, two workers, with authentication on: what strangers send it, byte for byte."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tasks.store import Store
from tests.e2e.conftest import Service

HOST, CLOSE, TASKS = "Host: 127.0.0.1\r\n", "Connection: close\r\n", "/api/v1/tasks"


def status(run: Service, key: str, method: str = "GET", path: str = TASKS) -> int:
    """Ask on a connection of its own, which any of the workers may accept."""
    connection = http.client.HTTPConnection("127.0.0.1", run.port, timeout=60)
    try:
        connection.request(method, path, headers={"X-API-Key": key})
        return connection.getresponse().status
    finally:
        connection.close()


def mode(path: Path) -> int:
    """Return the mode of a file; 0 where the service has removed it meanwhile."""
    with suppress(FileNotFoundError):
        return path.lstat().st_mode
    return 0


def raw(run: Service, request: str) -> bytes:
    """Send a request as it is; return all that comes until the service closes the connection."""
    with socket.create_connection(("127.0.0.1", run.port), 60) as sock:
        sock.sendall(request.encode("latin-1"))
        return b"".join(iter(lambda: sock.recv(65536), b""))


def posting(key: str, headers: str, body: str) -> str:
    return f"POST /api/v1/generate HTTP/1.1\r\n{HOST}{CLOSE}X-API-Key: {key}\r\n{headers}\r\n{body}"


def smuggled(key: str) -> dict[str, str]:
    """Requests whose end two programs could see at different places; behind each, one that would delete."""
    behind = f"DELETE /api/v1/task/gen_20261122_0000000000000001 HTTP/1.1\r\n{HOST}X-API-Key: {key}\r\n\r\n"
    json_type, chunked = "Content-Type: application/json\r\n", "Transfer-Encoding: chunked\r\n"
    return {
        "both lengths": posting(key, f"{json_type}Content-Length: 4\r\n{chunked}", "0\r\n\r\n" + behind),
        "two lengths": posting(key, f"{json_type}Content-Length: 2\r\nContent-Length: 90\r\n", "{}" + behind),
        "a signed length": posting(key, f"{json_type}Content-Length: +2\r\n", "{}" + behind),
        "a negative length": posting(key, f"{json_type}Content-Length: -1\r\n", "{}" + behind),
        "a length of 5,000 digits": posting(key, f"{json_type}Content-Length: {'9' * 5000}\r\n", "{}"),
        "an odd encoding": posting(key, f"{json_type}Transfer-Encoding: xchunked\r\n", "0\r\n\r\n" + behind),
        "a space before the colon": posting(key, f"{json_type}Content-Length : 2\r\n", "{}" + behind),
        "a negative chunk": posting(key, json_type + chunked, "-5\r\n{}\r\n0\r\n\r\n" + behind),
        "bare line feeds": f"GET {TASKS} HTTP/1.1\n{HOST}X-API-Key: {key}\n\n" + behind,
        "a bare carriage return": f"GET {TASKS} HTTP/1.1\r\n{HOST}X: a\rX-API-Key: {key}\r\n\r\n" + behind,
        "two hosts": f"GET {TASKS} HTTP/1.1\r\n{HOST}Host: evil.example\r\nX-API-Key: {key}\r\n\r\n" + behind,
    }  # fmt: skip


def test_the_shipped_service_is_entered_by_its_door_alone(service: Callable[..., Service], tmp_path: Path) -> None:
    run = service(2, AVATAR_AUTH__ENABLED="true", AVATAR_AUTH__JWT_SECRET="s" * 32)
    store = Store(f"sqlite:///{run.data / 'avatar.db'}", run.data, prepare=False)  # of another process, as commands are
    mine, theirs = (store.keys.create(tenant)[1] for tenant in ("acme", "evil"))

    # What a client says of itself is not believed of a program on this machine either.
    for header in ("X-Forwarded-Proto: https", "X-Forwarded-Ssl: on", "X-Forwarded-Protocol: ssl"):
        answer = raw(run, f"GET /docs HTTP/1.1\r\n{HOST}{CLOSE}{header}\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 "), header
        assert b"Strict-Transport-Security" not in answer, header
    for header in (f"PATH_INFO: {TASKS}", "SCRIPT_NAME: /api", "Script-Name: /api", "REMOTE_USER: acme"):
        answer = raw(run, f"GET /api/v1/health HTTP/1.1\r\n{HOST}{CLOSE}{header}\r\n\r\n")
        assert (answer[:13], b'"status":"healthy"' in answer) == (b"HTTP/1.1 200 ", True), (header, answer)

    for name, request in smuggled(mine).items():
        answer = raw(run, request)
        assert answer.startswith(b"HTTP/1.1 400 "), (name, answer[:200])
        assert answer.count(b"HTTP/1.1 ") == 1, (name, "what stood behind it was answered too")
        assert b"application/problem+json" in answer, name

    # A key that is revoked opens nothing from then on, whichever worker is asked, and its use was noted.
    assert [status(run, theirs) for _ in range(8)] == [200] * 8
    store.keys.revoke(theirs.split("_")[1])
    assert [status(run, theirs) for _ in range(16)] == [401] * 16
    assert [key.tenant for key in store.keys.all() if key.last_used_at is not None and key.revoked_at] == ["evil"]
    store.close()

    # Nothing of the data is for other users of the machine.
    open_to_all = [path for path in (run.data, *run.data.rglob("*")) if mode(path) & 0o007]
    assert open_to_all == []

    run.stop()
    log = (tmp_path / "server.log").read_text(errors="replace")
    assert "Traceback" not in log
    told = [json.loads(line) for line in log.splitlines() if line.startswith("{") and '"logger": "access"' in line]
    assert {"time", "level", "logger", "message", "method", "route", "status", "duration_ms", "request_id"} == set(
        told[-1]
    )
    assert not [entry for entry in told if entry["status"] >= 500]
