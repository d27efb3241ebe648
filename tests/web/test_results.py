"""Published files: types, ranges, tags, attachments, and what is not there."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from werkzeug.test import TestResponse

from tasks.model import Event
from tests.web.conftest import DONE, Service

VIDEO = bytes(range(100))
Get = Callable[..., TestResponse]


@pytest.fixture
def published(service: Service) -> Get:
    task = service.complete(service.start(service.submit()), VIDEO)

    def get(name: str = "video.mp4", query: str = "", **headers: str) -> TestResponse:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return service.client.get(f"/results/{task.id}/{name}{query}", headers=named)

    return get


@pytest.mark.parametrize(("name", "kind"), [("video.mp4", "video/mp4"), ("poster.jpg", "image/jpeg")])
def test_a_result_is_sent_whole_with_its_type(published: Get, name: str, kind: str) -> None:
    answer = published(name)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, kind)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Content-Disposition"].startswith("inline")
    assert published(name, If_None_Match=answer.headers["ETag"]).status_code == 304


def test_a_download_is_an_attachment_named_after_the_task(published: Get) -> None:
    answer = published(query="?download=1")
    assert re.fullmatch(r"attachment; filename=gen_20261122_0{15}1\.mp4", answer.headers["Content-Disposition"])
    assert answer.data == VIDEO


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-9", 0, 9),
        ("bytes=90-", 90, 99),
        ("bytes=-5", 95, 99),
        ("bytes=50-500", 50, 99),
        ("bytes=0-0", 0, 0),
        ("bytes=-100", 0, 99),
        ("bytes=-101", 0, 99),
        ("bytes=-999999999999999999", 0, 99),
    ],
)
def test_a_range_is_sent_alone(published: Get, asked: str, first: int, last: int) -> None:
    answer = published(Range=asked)
    assert (answer.status_code, answer.data) == (206, VIDEO[first : last + 1])
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/100"


@pytest.mark.parametrize("asked", ["bytes=100-", "bytes=-0", "bytes=100-200", "bytes=999999999999999999-"])
def test_a_range_outside_the_file_is_416(published: Get, asked: str) -> None:
    answer = published(Range=asked)
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, "bytes */100")
    assert answer.json["error_code"] == "range_not_satisfiable"


@pytest.mark.parametrize(
    "asked", ["bytes=0-1,5-6", "bytes=5-2", "lines=1-2", "bytes=x-y", "bytes=", "0-9", "bytes=" + "9" * 5000 + "-",
              "bytes=-"]
)  # fmt: skip
def test_a_range_that_is_not_one_range_is_ignored(published: Get, asked: str) -> None:
    answer = published(Range=asked)
    assert (answer.status_code, answer.data) == (200, VIDEO)


def test_a_range_of_an_older_file_is_not_mixed_into_a_newer_one(published: Get) -> None:
    answer = published(Range="bytes=0-9", If_Range='"older"')
    assert (answer.status_code, answer.data) == (200, VIDEO)


@pytest.mark.parametrize(
    "name", ["none.mp4", "..", "...", "engine.log", "VIDEO.MP4", "%2e%2e%2fvideo.mp4", "v" * 5000, "%00"]
)
def test_a_name_that_was_not_published_is_404(published: Get, name: str) -> None:
    assert published(name).status_code == 404


def test_a_result_that_is_not_there_yet_is_409(service: Service) -> None:
    for task in (service.submit(1), service.start(service.submit(2))):
        answer = service.client.get(f"/results/{task.id}/video.mp4")
        assert (answer.status_code, answer.json["error_code"]) == (409, "not_ready")


def test_a_published_file_that_is_gone_is_404(service: Service) -> None:
    task = service.start(service.submit())
    service.manager.store.finish(task.id, task.attempt, Event.COMPLETE, DONE)
    assert service.client.get(f"/results/{task.id}/video.mp4").status_code == 404
