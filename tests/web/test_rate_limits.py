"""How often, and how much: rate limits and quotas of a tenant, and what a refused request is told."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from redis import Redis
from werkzeug.test import TestResponse

from tasks.model import Event
from tasks.quotas import QuotaExceeded
from tests.conftest import NOON, needs_package
from tests.ports import reserve, reserved
from tests.web.conftest import Serve, Service, form, png
from web import limits
from web.limits import network

Limited = Callable[..., Service]
FEW = {"generate": 3, "uploads": 4, "reads": 5, "refusals": 6}


@pytest.fixture
def limited(serve: Serve) -> Limited:
    """Return a function that makes a service with few requests a minute; its arguments are settings."""

    def make(limits: dict[str, Any] | None = None, auth: dict[str, Any] | None = None, **more: Any) -> Service:
        return serve(limits={**FEW, **(limits or {})}, auth={"enabled": True, **(auth or {})}, **more)

    return make


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is asked is asked in one moment: no minute passes in which a request would be forgotten."""
    moment = time.time()
    monkeypatch.setattr(time, "time", lambda: moment)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that is there may take its time on a busy machine."""
    monkeypatch.setattr(limits, "_REDIS_SECONDS", 30.0)


at_once = pytest.mark.usefixtures("stopped_clock")


def key(service: Service, tenant: str = "acme") -> dict[str, str]:
    scopes = frozenset({"generate", "read"})
    return {"X-API-Key": service.manager.store.keys.create(tenant, scopes)[1]}


def statuses(count: int, ask: Callable[[], TestResponse]) -> list[int]:
    return [ask().status_code for _ in range(count)]


def reader(service: Service, headers: dict[str, str], address: str = "192.0.2.7") -> Callable[[], TestResponse]:
    from_there = {"REMOTE_ADDR": address}
    return lambda: service.client.get("/api/v1/tasks", headers=headers, environ_base=from_there)


def left(answer: TestResponse) -> int:
    return int(answer.headers["RateLimit"].split("r=")[1].split(";")[0])


# --- rates ------------------------------------------------------------------------------------------------------------


@at_once
def test_a_tenant_is_told_what_is_left_and_then_when_to_come_again(limited: Limited) -> None:
    service = limited()
    read = reader(service, key(service))
    first = read()
    assert first.headers["RateLimit-Policy"] == '"reads";q=5;w=60'
    assert [left(first), *(left(read()) for _ in range(4))] == [4, 3, 2, 1, 0]
    refused = read()
    assert (refused.status_code, refused.json["error_code"], left(refused)) == (429, "rate_limited", 0)
    assert 60 <= int(refused.headers["Retry-After"]) <= 61
    assert refused.mimetype == "application/problem+json"


@at_once
def test_each_tenant_and_each_kind_of_request_is_counted_by_itself(limited: Limited) -> None:
    service = limited()
    mine, second_key, others = key(service), key(service), key(service, "other")
    assert statuses(3, reader(service, mine)) + statuses(3, reader(service, second_key)) == [200] * 5 + [429]
    assert statuses(5, reader(service, others)) == [200] * 5
    answers = statuses(4, lambda: service.client.post("/api/v1/generate", headers=mine, json={}))
    assert answers == [400, 400, 400, 429]
    answers = statuses(5, lambda: service.client.post("/api/v1/upload", headers=mine, data={}))
    assert answers == [415, 415, 415, 415, 429]


class Unread(io.BytesIO):
    """A body that nobody may read."""

    def read(self, size: int | None = -1) -> bytes:
        pytest.fail("the body was read")

    readline = readinto = read


@at_once
def test_a_request_too_many_is_refused_before_its_body_is_read_and_after_who_sent_it_is_known(
    limited: Limited,
) -> None:
    service = limited()
    mine = key(service)
    post = {"method": "POST", "headers": mine, "content_type": "application/json"}
    assert statuses(3, lambda: service.client.open("/api/v1/generate", **post, data="{}")) == [400] * 3
    unread = {"input_stream": Unread(b"{}" + bytes(100_000))}
    assert service.client.open("/api/v1/generate", **post, **unread).status_code == 429
    wrong = post | {"headers": {"X-API-Key": "la_wrong"}}
    assert service.client.open("/api/v1/generate", **wrong, **unread).status_code == 401


@at_once
def test_the_anonymous_are_counted_by_address_and_open_addresses_are_not_counted(limited: Limited) -> None:
    service = limited(auth={"allow_anonymous": True, "jwt_secret": "x" * 32})
    assert statuses(6, reader(service, {}, "192.0.2.7")) == [200] * 5 + [429]
    assert statuses(1, reader(service, {}, "192.0.2.8")) == [200]
    assert statuses(3, reader(service, {}, "2001:db8::1")) + statuses(3, reader(service, {}, "2001:db8::ffff:2")) == [
        200, 200, 200, 200, 200, 429,
    ]  # fmt: skip
    assert statuses(1, reader(service, {}, "2001:db8:0:1::1")) == [200]
    assert statuses(8, lambda: service.client.get("/api/v1/openapi.json")) == [200] * 8


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7/32"), ("2001:db8::1", "2001:db8::/64"), ("2001:db8:0:1:ff::1", "2001:db8:0:1::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"), ("", ""), ("unix:", "unix:"),
    ],
)  # fmt: skip
def test_addresses_are_counted_by_what_one_customer_gets(address: str, counted: str) -> None:
    assert network(address) == counted


@at_once
def test_a_guesser_is_stopped_and_its_neighbours_are_not(limited: Limited) -> None:
    service = limited()
    good = key(service)
    assert statuses(7, reader(service, {"X-API-Key": "la_wrong"})) == [401] * 6 + [429]
    stopped = reader(service, good)()
    assert (stopped.status_code, stopped.json["error_code"], left(stopped)) == (429, "rate_limited", 0)
    assert int(stopped.headers["Retry-After"]) > 0
    assert statuses(1, reader(service, good, "192.0.2.8")) == [200]
    assert statuses(9, reader(service, {}, "192.0.2.9")) == [401] * 9, "who sends nothing guesses nothing"
    url = "/results/gen_20261122_0000000000000001/video.mp4?expires=9999999999&signature=x"
    guess = lambda: service.client.get(url, environ_base={"REMOTE_ADDR": "192.0.2.10"})  # noqa: E731
    assert 429 in statuses(7, guess)


def test_nothing_is_limited_while_authentication_is_off(serve: Serve) -> None:
    service = serve(limits=FEW)
    answer = service.client.get("/api/v1/tasks")
    assert "RateLimit" not in answer.headers
    assert statuses(9, lambda: service.client.get("/api/v1/tasks")) == [200] * 9


@at_once
def test_each_of_several_workers_gives_its_share(limited: Limited) -> None:
    service = limited({"reads": 8}, workers=2)
    assert statuses(5, reader(service, key(service))) == [200] * 4 + [429]


# --- Redis ------------------------------------------------------------------------------------------------------------


class RedisServer:
    """A real Redis on a free loopback port that forgets all when it ends."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program, self.folder = program, folder
        self.held = reserve()
        self.port = self.held.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        self.process = subprocess.Popen([self.program, *words], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "Ready to accept connections" in line:
                return
        pytest.fail("redis-server did not start")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(needs_package("redis-server"), tmp_path)
    yield server
    server.stop()
    server.held.close()


@at_once
def test_with_redis_all_workers_count_together(limited: Limited, redis_server: RedisServer, patient: None) -> None:
    url = {"redis_url": redis_server.url, "reads": 8}
    one, two = limited(url, workers=2), limited(url, workers=2)
    mine = key(one)
    assert statuses(5, reader(one, mine)) + statuses(4, reader(two, mine)) == [200] * 8 + [429]
    with Redis.from_url(redis_server.url) as redis:
        assert redis.dbsize() == 1


def until_shared(read: Callable[[], TestResponse], amount: int) -> None:
    """Ask until the limit that is told is `amount` again; each answer must be a good one."""
    deadline = time.monotonic() + 90
    while True:
        answer = read()
        assert answer.status_code == 200
        if f"q={amount};" in answer.headers["RateLimit-Policy"]:
            return
        assert time.monotonic() < deadline, "the worker still counts for itself"
        time.sleep(0.1)  # between questions to a service that itself asks once in a second


def test_without_its_redis_a_worker_gives_its_share_and_with_it_again_the_whole(
    limited: Limited, redis_server: RedisServer, patient: None
) -> None:
    service = limited({"redis_url": redis_server.url, "reads": 2000}, workers=2)
    read = reader(service, key(service))
    assert "q=2000;" in read().headers["RateLimit-Policy"]
    redis_server.stop()
    answers = [read() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert all("q=1000;" in answer.headers["RateLimit-Policy"] for answer in answers)
    redis_server.start()
    until_shared(read, 2000)


def test_a_redis_that_answers_nothing_slows_one_request_by_its_deadline_and_not_each(
    limited: Limited, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_REDIS_SECONDS", 3.0)
    service = limited({"redis_url": redis_server.url, "reads": 2000})
    read = reader(service, key(service))
    assert read().status_code == 200
    os.kill(redis_server.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    answers = [read() for _ in range(10)]
    took = time.monotonic() - began
    assert [answer.status_code for answer in answers] == [200] * 10
    assert took < 10 * limits._REDIS_SECONDS, "each request waited"
    os.kill(redis_server.process.pid, signal.SIGCONT)
    until_shared(read, 2000)


@at_once
def test_a_redis_that_was_never_there_stops_nobody(limited: Limited) -> None:
    with reserved() as port:
        service = limited({"redis_url": f"redis://:swordfish@127.0.0.1:{port}"})
        assert statuses(6, reader(service, key(service))) == [200] * 5 + [429]
    assert "swordfish" not in repr(service.settings)


# --- quotas -----------------------------------------------------------------------------------------------------------


def submit(service: Service, headers: dict[str, str] | None = None, **sent: str) -> TestResponse:
    return service.client.post("/api/v1/generate", data=form(), headers={**(headers or {}), **sent})


def test_a_tenant_with_as_many_waiting_tasks_as_it_may_have_is_refused_and_others_are_not(serve: Serve) -> None:
    service = serve(auth={"enabled": True}, quotas={"queued_tasks": 1})
    mine, others = key(service), key(service, "other")
    first = submit(service, mine, **{"Idempotency-Key": "k"})
    refused = submit(service, mine)
    assert (first.status_code, refused.status_code, refused.json["error_code"]) == (201, 429, "quota_exceeded")
    assert int(refused.headers["Retry-After"]) > 0
    assert submit(service, mine, **{"Idempotency-Key": "k"}).json == first.json, "a repetition is no further task"
    assert submit(service, others).status_code == 201
    store = service.manager.store
    store.happen(store.get(first.json["task_id"]), Event.CANCEL)
    assert submit(service, mine).status_code == 201


def test_seconds_of_video_are_counted_by_day_and_given_back_for_what_never_started(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve(quotas={"video_seconds": 1})  # each is of half a second, and of one more clip's rest
    monkeypatch.setattr(service.manager.store, "_now", lambda: NOON)  # so that no new day begins meanwhile
    first = submit(service)
    seconds = first.json["plan"]["video_seconds"]
    assert 0.3 < seconds <= 0.5
    assert submit(service).status_code == 201
    refused = submit(service)
    assert (refused.status_code, refused.json["error_code"]) == (429, "quota_exceeded")
    assert int(refused.headers["Retry-After"]) == 12 * 3600 + 1
    assert service.client.delete(first.json["status_url"]).status_code == 200
    again = submit(service)
    assert again.status_code == 201
    task = service.start(service.manager.store.get(again.json["task_id"]))
    service.manager.store.happen(service.manager.store.request_cancel(task), Event.CANCEL)
    assert service.client.delete(again.json["status_url"]).status_code == 204
    assert submit(service).status_code == 429, "a task that had started was given back"


def test_a_video_longer_than_the_quota_is_not_told_to_come_again(serve: Serve) -> None:
    service = serve(quotas={"video_seconds": 10})
    with pytest.raises(QuotaExceeded, match=r"11\.6") as refused:
        service.submit(1)
    assert refused.value.retry_seconds is None


def test_bytes_stored_are_those_of_uploads_and_of_tasks(serve: Serve) -> None:
    service = serve(quotas={"stored_bytes": 4 * 2**20})
    assert submit(service).status_code == 201  # it may write two MiB and a little
    refused = submit(service)
    assert (refused.status_code, refused.json["error_code"]) == (429, "quota_exceeded")
    assert "Retry-After" not in refused.headers
    large = {"type": "audio", "file": (io.BytesIO(bytes(3 * 2**20)), "a.wav")}
    assert service.client.post("/api/v1/upload", data=large).status_code == 429
    assert service.queued() == 1


def silence(seconds: int) -> bytes:
    """Return a recording that is small as it is sent and large as it is kept."""
    out = io.BytesIO()
    with av.open(out, "w", format="flac") as file:
        stream = file.add_stream("flac", rate=48_000, layout="mono")
        for _ in range(seconds):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), "s16", "mono")
            frame.sample_rate = 48_000
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return out.getvalue()


def test_what_is_small_as_it_is_sent_counts_as_it_is_kept(serve: Serve) -> None:
    """Forty seconds of silence: some kilobytes of FLAC, four megabytes of WAV."""
    sent = silence(40)
    assert len(sent) < 100_000
    service = serve(quotas={"stored_bytes": 3 * 2**20})
    upload = {"type": "audio", "file": (io.BytesIO(sent), "a.flac")}
    assert service.client.post("/api/v1/upload", data=upload).status_code == 429
    refused = service.client.post("/api/v1/generate", data=form(audio=(io.BytesIO(sent), "a.flac"), num_clip=1))
    assert (refused.status_code, refused.json["error_code"]) == (429, "quota_exceeded")
    assert (service.queued(), service.files()) == (0, [])

    service = serve(quotas={"stored_bytes": 10 * 2**20}, data_dir=str(service.settings.data_dir / "larger"))
    for status in (201, 429):  # the first has its recording, and two megabytes that it may write
        asked = form(audio=(io.BytesIO(sent), "a.flac"), num_clip=1)
        assert service.client.post("/api/v1/generate", data=asked).status_code == status
    assert service.queued() == 1


def test_an_upload_that_several_tasks_use_is_kept_once(serve: Serve) -> None:
    service = serve(quotas={"stored_bytes": 14 * 2**20})
    upload = {"type": "audio", "file": (io.BytesIO(silence(40)), "a.flac")}
    path = service.client.post("/api/v1/upload", data=upload).json["path"]
    fields = {name: value for name, value in form(audio_path=path, num_clip="1").items() if name != "audio"}
    for _ in range(3):
        sent = {**fields, "image": (io.BytesIO(png()), "me.png")}
        assert service.client.post("/api/v1/generate", data=sent).status_code == 201
