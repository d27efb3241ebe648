"""What holds for every request: ids, log lines, who may call, and errors without insides."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from http import HTTPStatus

import pytest
from sqlalchemy.exc import DatabaseError, OperationalError

from app import ROUTES, create_app
from config_loader import ConfigError, load_settings
from tasks.admission import NoHardware
from tests.web.conftest import Serve, Service, form
from utils.file_handler import StorageFull
from web.errors import HTTP, Code
from web.requests import JsonFormatter

TASKS = "/api/v1/tasks"


# --- ids and log lines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", ["a", "Trace-1.2_3", "x" * 64])
def test_a_sane_request_id_is_kept(spotless: Service, sent: str) -> None:
    for path in (TASKS, "/nowhere", "/api/v1/task/x"):
        assert spotless.client.get(path, headers={"X-Request-ID": sent}).headers["X-Request-ID"] == sent


@pytest.mark.parametrize("sent", ["", "x" * 65, "a b", "a\tb", 'a"b', "é", "a,b", "<script>"])
def test_any_other_request_id_is_replaced(spotless: Service, sent: str) -> None:
    answers = [spotless.client.get("/nowhere", headers={"X-Request-ID": sent}) for _ in range(2)]
    ids = {answer.headers["X-Request-ID"] for answer in answers}
    assert len(ids) == 2
    assert sent not in ids
    assert answers[0].json["request_id"] == answers[0].headers["X-Request-ID"]


def lines(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, object]]:
    return [getattr(record, "facts", {}) for record in caplog.records if record.name == name]


def test_each_request_is_one_log_line_without_its_query_and_body(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service.client.get(f"{TASKS}?cursor=canary-query", headers={"X-Request-ID": "id-1"})
    service.client.post("/api/v1/generate", json={"prompt": "canary-body"}, headers={"Authorization": "canary-key"})
    service.client.get("/canary-path")
    found = lines(caplog, "access")
    assert [(line["method"], line["route"], line["status"]) for line in found] == [
        ("GET", TASKS, 400), ("POST", "/api/v1/generate", 400), ("GET", None, 404),
    ]  # fmt: skip
    assert all(isinstance(line["duration_ms"], float) for line in found)
    assert "canary" not in caplog.text + str(found)


def test_a_log_line_is_json_with_the_request_id(service: Service) -> None:
    record = logging.LogRecord("web", logging.INFO, "", 0, "two\nlines", (), None)
    with service.app.test_request_context("/", headers={"X-Request-ID": "id-1"}):
        line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line).items() >= {"message": "two\nlines", "level": "INFO", "request_id": "id-1"}.items()
    assert "request_id" not in json.loads(JsonFormatter().format(record))


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_unknown_address_and_method_are_problems_too(spotless: Service) -> None:
    for path in ("/nowhere", "/api/v1/", "/api//v1/tasks", "/api/v1/tasks/", "/docs/../app.py", "/docs/index.html"):
        answer = spotless.client.get(path)
        assert (answer.status_code, answer.mimetype) == (404, "application/problem+json"), path
    answer = spotless.client.put(TASKS)
    assert (answer.status_code, answer.mimetype) == (405, "application/problem+json")
    assert {"GET", "HEAD"} <= set(answer.headers["Allow"].split(", "))


def test_a_bug_is_a_500_that_shows_nothing_and_logs_everything(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("canary at /srv/secret/place")

    monkeypatch.setattr(service.manager, "page", fail)
    answer = service.client.get(TASKS)
    assert (answer.status_code, answer.json["error_code"]) == (500, "internal")
    assert "canary" not in answer.text
    assert "Traceback" not in answer.text
    assert "canary" in caplog.text


def database_error(code: int, kind: type[DatabaseError] = OperationalError) -> DatabaseError:
    """Return what SQLAlchemy raises when SQLite answers with this result code."""
    cause = sqlite3.OperationalError("what SQLite says")
    cause.sqlite_errorcode = code
    return kind("", {}, cause)


@pytest.mark.parametrize(
    ("raised", "status", "code", "again"),
    [
        (StorageFull(), 507, "storage_full", False),
        (NoHardware("needs 4 GPUs with 80 GiB"), 503, "no_hardware", False),
        (database_error(sqlite3.SQLITE_FULL), 507, "storage_full", False),
        (database_error(sqlite3.SQLITE_BUSY), 503, "busy", True),
        (database_error(sqlite3.SQLITE_IOERR_SHMSIZE), 507, "storage_full", False),
        (database_error(sqlite3.SQLITE_CORRUPT, DatabaseError), 503, "database_unavailable", True),
        (database_error(sqlite3.SQLITE_IOERR_READ), 503, "database_unavailable", True),
        (database_error(sqlite3.SQLITE_READONLY), 503, "database_unavailable", True),
        (database_error(sqlite3.SQLITE_ERROR), 500, "internal", False),
    ],
    ids=["disk", "hardware", "full", "locked", "no room for its index", "damaged", "unreadable", "read-only", "a bug"],
)
def test_what_fails_below_is_told_by_its_status_and_leaves_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch, raised: Exception, status: int, code: str, again: bool
) -> None:
    def fail(*args: object) -> None:
        raise raised

    monkeypatch.setattr(service.manager, "submit", fail)
    answer = service.client.post("/api/v1/generate", data=form())
    assert (answer.status_code, answer.json["error_code"]) == (status, code)
    assert ("Retry-After" in answer.headers) is again
    assert service.files() == []


def test_a_full_queue_says_when_to_come_again(serve: Serve) -> None:
    service = serve(queue={"max_queued": 1})
    service.submit()
    answer = service.client.post("/api/v1/generate", data=form())
    assert (answer.status_code, answer.json["error_code"]) == (503, "queue_full")
    assert int(answer.headers["Retry-After"]) > 0
    assert service.files() == []


def test_a_request_that_no_hardware_can_run_is_refused_before_its_media_are_touched(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve(slots={"cpu": 0})
    monkeypatch.setattr("web.inputs.normalise", lambda *args: pytest.fail("decoded"))
    answer = service.client.post("/api/v1/generate", data=form())
    assert (answer.status_code, answer.json["error_code"]) == (503, "no_hardware")
    assert "Retry-After" not in answer.headers


def test_who_asks_for_any_engine_is_told_of_the_preview_where_it_does_not_stand_in(serve: Serve) -> None:
    service = serve(engines={"allow_fallback": False})
    answer = service.client.post("/api/v1/generate", data=form())
    assert (answer.status_code, answer.json["error_code"]) == (503, "no_hardware")
    assert answer.json["detail"].endswith("asked for by name, preview can run here")


def test_every_code_has_its_status() -> None:
    assert set(HTTP) == set(Code)
    assert all(isinstance(status, HTTPStatus) and status >= 400 for status in HTTP.values())


# --- who may call -----------------------------------------------------------------------------------------------------

LOOPBACK = ["localhost", "LOCALHOST:5000", "127.0.0.1", "127.0.0.1:80", "127.9.8.7", "[::1]", "[::1]:5000"]
ELSEWHERE = [
    "example.com", "example.com:5000", "127.0.0.1.example.com", "localhost.example.com", "127.1", "0.0.0.0", "10.0.0.1",
    "[::]", "[::ffff:10.0.0.1]", "localhost@example.com", "localhost:5000:1", "::1", "", " ", "é", "localhost\x00",
    "[::1",
    "2130706433", "localhost/", "localhost,example.com",
]  # fmt: skip


@pytest.mark.parametrize("host", LOOPBACK)
def test_a_loopback_host_is_served(spotless: Service, host: str) -> None:
    assert spotless.client.get(TASKS, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ELSEWHERE)
@pytest.mark.parametrize("path", [TASKS, "/nowhere", "/docs", "/api/v1/health"])
def test_another_host_is_403_at_every_address(spotless: Service, host: str, path: str) -> None:
    answer = spotless.client.get(path, environ_overrides={"HTTP_HOST": host})
    assert (answer.status_code, answer.json["error_code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    "name",
    [
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "x-forwarded-anything",
        "Via",
        "X-Real-IP",
        "x-client-ip",
        "CF-Connecting-IP",
        "True-Client-IP",
    ],
)
def test_a_request_that_came_through_a_proxy_is_403(spotless: Service, name: str) -> None:
    assert spotless.client.get(TASKS, headers={name: "127.0.0.1"}).status_code == 403


def test_another_machine_is_403_whatever_host_it_names(spotless: Service) -> None:
    for address, status in [("10.0.0.7", 403), ("::ffff:10.0.0.7", 403), ("127.0.0.1", 200), ("::1", 200), ("", 200)]:
        answer = spotless.client.get(TASKS, environ_overrides={"REMOTE_ADDR": address})
        assert answer.status_code == status, address


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_an_address_that_others_can_reach_is_not_started(tmp_path_factory: pytest.TempPathFactory, host: str) -> None:
    data = tmp_path_factory.mktemp("data") / "never"
    with pytest.raises(ConfigError, match="AVATAR_HOST"):
        create_app(load_settings({"data_dir": str(data), "host": host}))
    assert not data.exists()


def test_making_the_application_starts_nothing(serve: Serve) -> None:
    before = set(threading.enumerate())
    service = serve()
    assert set(threading.enumerate()) <= before
    assert service.app.extensions["task_manager"] is service.manager


def test_no_two_routes_are_the_same() -> None:
    pairs = [(method, rule) for method, rule, _, _ in ROUTES]
    assert len(set(pairs)) == len(pairs)
