"""What browsers are told: headers of every answer, which origins may read, which hosts are served; bodies that drip."""

from __future__ import annotations

import http.client
import json
import logging
import select
import socket
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3
from flask.testing import FlaskClient

from config_loader import ConfigError
from tasks.spec import LOG_FILE
from tests.web.conftest import Serve, Service, form, png, wav
from tests.web.servers import gunicorn, werkzeug
from web.headers import ALLOWED_HEADERS, EXPOSED_HEADERS

TASKS = "/api/v1/tasks"
OURS, OTHER = "https://app.example.com", "https://evil.example"


def policy(answer: Any) -> dict[str, str]:
    rules = [rule.strip().partition(" ") for rule in answer.headers["Content-Security-Policy"].split(";")]
    return {name: value for name, _, value in rules}


def test_every_answer_tells_browsers_to_keep_their_hands_off(service: Service) -> None:
    task = service.complete(service.start(service.submit()))
    paths = [
        TASKS, "/nowhere", "/docs", "/docs/start.js", "/api/v1/health", "/api/v1/openapi.json", f"{TASKS}?limit=x",
        f"/results/{task.id}/video.mp4", f"/api/v1/task/{task.id}/log",
    ]  # fmt: skip
    for path in paths:
        answer = service.client.get(path)
        assert answer.headers["X-Content-Type-Options"] == "nosniff", path
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert policy(answer)["default-src"] == "'none'"
        assert not {"Strict-Transport-Security", "Access-Control-Allow-Origin"} & set(answer.headers.keys())


def test_a_page_runs_only_its_own_scripts_and_a_result_none(service: Service) -> None:
    page = policy(service.client.get("/docs"))
    assert (page["script-src"], page["frame-ancestors"], page["form-action"]) == ("'self'", "'none'", "'none'")
    task = service.complete(service.start(service.submit()))
    for name in ("video.mp4", "poster.jpg"):
        result = policy(service.client.get(f"/results/{task.id}/{name}"))
        assert result["sandbox"] == ""
        assert "script-src" not in result
    assert service.client.get(f"/api/v1/task/{task.id}/log").mimetype in ("text/plain", "application/problem+json")


def test_https_is_insisted_on_behind_https_only(serve: Serve) -> None:
    service = serve(http={"trusted_proxies": ["127.0.0.1"]}, auth={"enabled": True})
    secure = service.client.get("/docs", headers={"X-Forwarded-Proto": "https"})
    assert secure.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert "Strict-Transport-Security" not in service.client.get("/docs").headers


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_proxy_that_was_not_named_is_told_of_once(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    forwarded = {"X-Forwarded-For": "203.0.113.9"}
    named = serve(http={"trusted_proxies": ["127.0.0.1"]}, auth={"enabled": True})
    named.client.get("/docs", headers=forwarded)
    forgotten = serve(auth={"enabled": True}, data_dir=str(named.settings.data_dir / "other"))
    forgotten.client.get("/docs")
    assert not warnings(caplog)
    for _ in range(3):
        forgotten.client.get("/docs", headers=forwarded)
    (told,) = warnings(caplog)
    assert "127.0.0.1" in told
    assert "AVATAR_HTTP__TRUSTED_PROXIES" in told


# --- other origins ----------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(serve: Serve) -> Service:
    return serve(cors={"origins": [OURS, "http://localhost:3000"]})


def preflight(client: FlaskClient, path: str, origin: str, method: str = "GET") -> Any:
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": "x-api-key"}
    return client.options(path, headers=asked)


def test_a_page_of_a_configured_origin_may_ask_send_and_read(shared: Service) -> None:
    asked = preflight(shared.client, "/api/v1/task/gen_20261122_0000000000000001", OURS, "DELETE")
    assert (asked.status_code, asked.data) == (204, b"")
    assert asked.headers["Access-Control-Allow-Origin"] == OURS
    assert set(asked.headers["Access-Control-Allow-Methods"].split(", ")) == {"DELETE", "GET", "HEAD"}
    assert asked.headers["Access-Control-Allow-Headers"] == ALLOWED_HEADERS
    assert {"X-API-Key", "Idempotency-Key", "X-Request-ID", "If-Range"} <= set(ALLOWED_HEADERS.split(", "))
    for answer in (
        shared.client.post("/api/v1/generate", data=form(), headers={"Origin": OURS}),
        shared.client.get("/nowhere", headers={"Origin": OURS}),
    ):
        assert answer.status_code in (201, 404)
        assert answer.headers["Access-Control-Allow-Origin"] == OURS
        assert answer.headers["Access-Control-Expose-Headers"] == EXPOSED_HEADERS
        assert "Origin" in answer.headers["Vary"]
        assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin", [OTHER, "null", OURS + ".evil.example", "http://app.example.com", OURS + ":8443", OURS.upper(), "*", ""]
)
def test_a_page_of_any_other_origin_may_not(shared: Service, origin: str) -> None:
    asked = preflight(shared.client, TASKS, origin)
    read = shared.client.get(TASKS, headers={"Origin": origin})
    sent = shared.client.post("/api/v1/generate", data=form(), headers={"Origin": origin})
    assert (asked.status_code, read.status_code, sent.status_code) == (405, 200, 403)
    for answer in (asked, read, sent):
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert "Origin" in answer.headers["Vary"]


def test_without_configured_origins_nobody_may(spotless: Service) -> None:
    asked = preflight(spotless.client, TASKS, OURS)
    assert asked.status_code == 405
    assert not [name for name in asked.headers.keys() if name.startswith("Access-Control")]  # noqa: SIM118


SAFELISTED = {
    "cache-control",
    "content-language",
    "content-length",
    "content-type",
    "expires",
    "last-modified",
    "pragma",
}


@dataclass
class Page:
    """A page of `origin` as a browser treats it (the Fetch standard): asks first, sends then, sees what is exposed."""

    origin: str
    port: int

    def fetch(self, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, Any]:
        """Return status and the headers that the page sees. Raises PermissionError where a browser refuses."""
        asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": ",".join(sorted(headers))}
        status, told = self._send("OPTIONS", path, asked)
        methods, names = (
            {word.strip().lower() for word in told.get(f"Access-Control-Allow-{what}", "").split(",")}
            for what in ("Methods", "Headers")
        )
        if status != 204 or method.lower() not in methods or not {name.lower() for name in headers} <= names:
            raise PermissionError(f"{method} {path} was not sent")
        status, told = self._send(method, path, headers, body)
        exposed = {name.strip().lower() for name in told.get("Access-Control-Expose-Headers", "").split(",")}
        return status, {name: value for name, value in told.items() if name.lower() in exposed | SAFELISTED}

    def _send(self, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with closing(connection):
            connection.request(method, path, body, {"Origin": self.origin, **headers})
            answer = connection.getresponse()
            answer.read()
        if answer.headers.get("Access-Control-Allow-Origin") != self.origin:
            raise PermissionError(f"{method} {path} is not for {self.origin}")
        return answer.status, dict(answer.headers)


def test_a_page_of_a_second_origin_uses_the_api_and_sees_what_it_needs(serve: Serve) -> None:
    service = serve(cors={"origins": [OURS]}, auth={"enabled": True}, limits={"generate": 2})
    own = {"X-API-Key": service.manager.store.keys.create("acme", frozenset({"generate", "read"}))[1]}
    task = service.start(service.submit(1, tenant="acme"))
    folder = service.manager.folders.attempt(task.id, task.attempt)
    folder.mkdir(parents=True)
    (folder / LOG_FILE).write_text("loading\n")
    fields = {"prompt": "p", "image": ("me.png", png()), "audio": ("a.wav", wav())}
    body, kind = urllib3.encode_multipart_formdata(fields)
    sent = {**own, "Content-Type": kind, "Idempotency-Key": "once"}
    with werkzeug(service.app) as port:
        page, other = Page(OURS, port), Page(OTHER, port)
        status, seen = page.fetch("POST", "/api/v1/generate", sent, body)
        assert (status, {"Location", "RateLimit", "RateLimit-Policy", "X-Request-ID"} - set(seen)) == (201, set())
        status, seen = page.fetch("GET", f"/api/v1/task/{task.id}", {**own, "If-None-Match": '"older"'})
        assert (status, "ETag" in seen) == (200, True)
        status, seen = page.fetch("GET", f"/api/v1/task/{task.id}/log", own)
        assert (status, seen["X-Log-Offset"]) == (200, "8")
        with pytest.raises(PermissionError, match="OPTIONS"):
            other.fetch("DELETE", f"/api/v1/task/{task.id}", own)
        assert not service.manager.view(task.id, "acme").task.cancel_requested
        assert page.fetch("DELETE", f"/api/v1/task/{task.id}", own)[0] == 202
        status, seen = page.fetch("DELETE", f"/api/v1/task/{task.id}", own)
        assert (status, int(seen["Retry-After"]) > 0) == (429, True)
        assert page.fetch("GET", "/api/v1/tasks", {"X-API-Key": "la_wrong"})[0] == 401


def test_a_configured_origin_may_show_a_result_in_a_video_tag_and_nothing_else(shared: Service) -> None:
    task = shared.complete(shared.start(shared.submit()))
    for path, answer in ((f"/results/{task.id}/video.mp4", "cross-origin"), (TASKS, "same-origin")):
        assert shared.client.get(path).headers["Cross-Origin-Resource-Policy"] == answer


def test_a_preflight_needs_no_credentials_and_opens_nothing(serve: Serve) -> None:
    service = serve(cors={"origins": [OURS]}, auth={"enabled": True})
    assert preflight(service.client, TASKS, OURS).status_code == 204
    assert preflight(service.client, "/nowhere", OURS).status_code == 404
    refused = service.client.get(TASKS, headers={"Origin": OURS})
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, OURS)


@pytest.mark.parametrize(
    "origin", ["*", "null", "https://*.example.com", OURS + "/", "app.example.com", "https://App.example.com",
               "https://app.example.com:443", "ftp://app.example.com", "https://u@app.example.com", "https://a..b"]
)  # fmt: skip
def test_an_origin_that_is_not_exact_is_refused(serve: Serve, origin: str) -> None:
    with pytest.raises(ConfigError, match=r"cors\.origins"):
        serve(cors={"origins": [origin]})


# --- hosts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [("avatar.example", 200), ("avatar.example:8443", 200), ("a.pages.example", 200), ("evil.example", 400),
     ("avatar.example.evil", 400), ("avatar.example@evil", 400), ("", 400)],
)  # fmt: skip
def test_only_configured_hosts_are_served_where_there_are_any(serve: Serve, host: str, status: int) -> None:
    service = serve(auth={"allow_anonymous": True}, http={"trusted_hosts": ["avatar.example", ".pages.example"]})
    answer = service.client.get(TASKS, environ_overrides={"HTTP_HOST": host})
    assert answer.status_code == status
    if status == 400:
        assert (answer.mimetype, answer.json["error_code"]) == ("application/problem+json", "invalid_input")
        assert "http.trusted_hosts" in answer.json["detail"]


# --- results handed to nginx ------------------------------------------------------------------------------------------


def test_with_a_prefix_nginx_is_told_where_a_result_lies_once_its_reader_is_known(serve: Serve) -> None:
    service = serve(http={"accel_prefix": "/_results/"}, auth={"enabled": True})
    key = service.manager.store.keys.create("acme", frozenset({"read"}), None)[1]
    task = service.complete(service.start(service.submit(tenant="acme")))
    client, path = FlaskClient(service.app), f"/results/{task.id}/video.mp4?download=1"
    answer = client.get(path, headers={"X-API-Key": key, "Range": "bytes=0-3"})
    assert (answer.status_code, answer.data) == (200, b"")
    assert answer.headers["X-Accel-Redirect"] == f"/_results/{task.id}/{task.attempt}/video.mp4"
    assert answer.headers["Content-Type"] == "video/mp4"
    assert answer.headers["Content-Disposition"].startswith("attachment")
    other = service.manager.store.keys.create("other", frozenset({"read"}), None)[1]
    for headers, status in (({}, 401), ({"X-API-Key": other}, 404)):
        refused = client.get(path, headers=headers)
        assert refused.status_code == status
        assert "X-Accel-Redirect" not in refused.headers


@pytest.mark.parametrize("prefix", ["/_results", "_results/", "/", "/a/b/", "/_results/../", "/é/"])
def test_a_prefix_without_both_slashes_is_refused(serve: Serve, prefix: str) -> None:
    with pytest.raises(ConfigError, match="accel_prefix"):
        serve(http={"accel_prefix": prefix})


# --- bodies that drip -------------------------------------------------------------------------------------------------

DRIPS = {
    "a JSON body": ("application/json", b"Content-Length: 9000", b" "),
    "a form": ("multipart/form-data; boundary=B", b"Content-Length: 9000", b"-"),
    "chunks": ("application/json", b"Transfer-Encoding: chunked", b"1\r\n \r\n"),
}


def drip(port: int, kind: str, length: bytes, piece: bytes) -> tuple[int, dict[str, Any], float]:
    """Send a body piece by piece until there is an answer; return status, body, seconds."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), 30) as sock:
        head = f"POST /api/v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n".encode()
        sock.sendall(head + length + b"\r\n\r\n")
        while not select.select([sock], [], [], 0.05)[0]:
            assert time.monotonic() < began + 60, "nobody ended it"
            with suppress(ConnectionError):  # the answer has just come, and with it the end
                sock.sendall(piece)
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        return answer.status, json.loads(answer.read()), time.monotonic() - began


def test_a_body_that_drips_is_ended_and_makes_no_task(tmp_path: Path, serve: Callable[..., Service]) -> None:
    with gunicorn(tmp_path, AVATAR_HTTP__BODY_SECONDS="1") as (port, _):
        for name, (kind, length, piece) in DRIPS.items():
            status, problem, seconds = drip(port, kind, length, piece)
            assert (status, "took longer than 1 s" in problem["detail"]) == (400, True), (name, problem)
            assert 1 <= seconds < 90, name
    assert serve().files() == []
