"""What /metrics tells, in which form, and to whom."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flask import Response
from flask.testing import FlaskClient
from werkzeug.test import Client

from tasks import drain
from tasks.model import ErrorCode, Event, Facts, Failure
from tests.conftest import ROOT
from tests.fakes.nvml import build as nvml
from tests.web.conftest import Serve, Service, form
from tests.web.scrapes import Scrape
from web.metrics import SPARE_THREADS
from web.tally import METHODS, OTHER, Open

OWN = {"engine": "preview", "profile": "preview_cpu"}


def scrape(client: FlaskClient, **options: Any) -> Scrape:
    answer = client.get("/metrics", **options)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    return Scrape.of(answer.text)


# --- requests ---------------------------------------------------------------------------------------------------------


def test_requests_are_counted_by_route_method_and_status(service: Service) -> None:
    client = service.client
    assert client.post("/api/v1/generate", data=form()).status_code == 201
    client.get("/api/v1/task/gen_20261122_0000000000000001")
    client.head("/docs")
    seen = scrape(client)
    told = {tuple(s.labels.values()): s.value for s in seen.found("http_requests_total")}
    assert told == {
        ("POST", "/api/v1/generate", "201"): 1, ("GET", "/api/v1/task/<task_id>", "404"): 1,
        ("HEAD", "/docs", "200"): 1,
    }  # fmt: skip
    assert seen.value("http_request_duration_seconds_count") == 3
    assert 0 < seen.value("http_request_duration_seconds_sum") < 60
    assert seen.value("http_request_duration_seconds_bucket", le="+Inf") == 3
    assert seen.value("in_progress", kind="request") == 1, "the scrape itself"


def test_whatever_strangers_ask_for_adds_no_label_values(service: Service) -> None:
    client = service.client
    for number in range(20):
        client.get(f"/nothing/{number}?{number}")
        client.open(f"/api/v1/tasks/{number}", method=f"VERB{number}")
        client.open("/api/v1/tasks", method="PUT")
        client.get(f"/api/v1/task/{number}")
        client.get("/api/v1/tasks", headers={"X-Request-ID": f"id-{number}"})
    seen = list(scrape(client).found("http_requests_total"))
    assert {s.labels["route"] for s in seen} == {OTHER, "/api/v1/task/<task_id>", "/api/v1/tasks"}
    assert {s.labels["method"] for s in seen} <= set(METHODS)
    assert len(seen) == 5
    assert sum(s.value for s in seen) == 100


def test_no_label_is_an_id_or_a_tenant(service: Service) -> None:
    task = service.start(service.submit(7, tenant="acme-corporation"))
    service.client.get(f"/api/v1/task/{task.id}")
    labels = {value for sample in scrape(service.client).samples for value in sample.labels.values()}
    assert not [value for value in labels if "acme" in value or "gen_" in value]


def test_a_long_poll_is_open_while_it_waits_and_spoils_no_duration(service: Service) -> None:
    task = service.submit(1)
    poll = threading.Thread(target=Client(service.app).get, args=(f"/api/v1/task/{task.id}?wait=60",))
    poll.start()
    waiting, deadline = service.app.extensions["waiting"], time.monotonic() + 45
    while not any(place.tag is not None for place in waiting._taken()):  # until it has seen how the task is
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert scrape(service.client).value("in_progress", kind="long_poll") == 1
    service.start(task)
    poll.join(45)
    after = scrape(service.client)
    assert after.value("in_progress", kind="long_poll") == 0
    assert after.value("http_requests_total", route="/api/v1/task/<task_id>") == 1
    assert not list(after.found("http_request_duration_seconds_count", route="/api/v1/task/<task_id>"))


def test_an_event_stream_is_open_until_its_end(service: Service) -> None:
    service.app.view_functions["get_docs"] = lambda: Response(iter([b"a", b"b"]), mimetype="text/event-stream")
    answer = Client(service.app).get("/docs")
    assert scrape(service.client).value("in_progress", kind=Open.EVENT_STREAM) == 1
    answer.close()
    assert scrape(service.client).value("in_progress", kind=Open.EVENT_STREAM) == 0


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_the_queue_what_runs_and_what_ended_are_told(service: Service) -> None:
    done = service.complete(service.start(service.submit(1)))
    failed = service.start(service.submit(2))
    failure = Facts(failure=Failure(ErrorCode.OOM, "too small"))
    service.manager.store.finish(failed.id, failed.attempt, Event.FAIL, failure)
    service.start(service.submit(3))
    service.submit(4)
    seen = scrape(service.client)
    assert seen.value("queue_tasks", priority="normal", engine="preview") == seen.value("queue_tasks") == 1
    assert 0 <= seen.value("queue_oldest_seconds") < 60
    assert seen.value("running_tasks", **OWN) == seen.value("running_tasks") == 1
    assert seen.value("slots_in_use", kind="cpu") == seen.value("slots", kind="cpu") == 1
    assert 0 <= seen.value("runner_silent_seconds", **OWN) < 60
    assert {s.labels["status"]: s.value for s in seen.found("tasks_finished_total", **OWN)} == {
        "completed": 1, "failed": 1, "cancelled": 0,
    }  # fmt: skip
    assert seen.value("task_failures_total", **OWN, error_code="oom") == seen.value("task_failures_total") == 1
    assert seen.value("attempts_total", **OWN) == seen.value("attempt_waiting_seconds_count", **OWN) == 3
    assert seen.value("tasks_submitted_total", engine="preview", priority="normal") == 4
    assert seen.value("video_seconds_total", **OWN) == done.result.video.duration_seconds
    assert seen.value("task_realtime_factor_count", **OWN) == 1


def test_totals_stay_when_tasks_go(service: Service) -> None:
    task = service.complete(service.start(service.submit(1)))
    before = scrape(service.client)
    assert service.client.delete(f"/api/v1/task/{task.id}").status_code == 204
    after = scrape(service.client)
    for name in ("tasks_finished_total", "attempts_total", "tasks_submitted_total", "task_realtime_factor_count"):
        assert after.value(name) == before.value(name) > 0


def test_a_drain_and_the_scheduler_are_told(service: Service) -> None:
    before = scrape(service.client)
    assert (before.value("draining"), before.value("draining_seconds"), before.value("scheduler_held")) == (0, 0, 0)
    since = datetime.fromtimestamp(time.time() - 3600, UTC)
    drain.begin(service.manager.store.state, "a new version", since)
    after = scrape(service.client)
    assert after.value("draining") == 1
    assert after.value("draining_seconds") == pytest.approx(3600, abs=60)


def test_a_database_that_is_away_is_told_and_the_rest_still_is(service: Service, tmp_path: Path) -> None:
    service.manager.store.close()
    (service.settings.data_dir / "avatar.db").rename(tmp_path / "gone.db")
    seen = scrape(service.client)
    assert (seen.value("database_up"), seen.value("database_writable")) == (0, 0)
    assert seen.value("disk_free_bytes") > 0
    assert not list(seen.found("queue_tasks"))


# --- the host ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def with_gpus(library: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service on two GPUs, of which it has had a look."""
    machine = tmp_path / "machine"
    for name, value in nvml.environment(library, machine).items():
        monkeypatch.setenv(name, value)
    first, second = nvml.fleet(2)
    nvml.write(machine, [nvml.FakeGpu(first.uuid, free_gib=20.0, load=75), second])
    service = serve()
    probe = service.manager._hardware.probe
    probe._deadline = 60.0  # what is slow here shall not pass for hung
    probe.start()
    assert len(probe.refresh(60).gpus) == 2
    yield service
    nvml.write(machine, [])
    probe.stop()


def test_gpus_are_told_and_a_hanging_nvml_holds_no_scrape_up(with_gpus: Service, tmp_path: Path) -> None:
    seen = scrape(with_gpus.client)
    assert seen.value("gpu_memory_bytes", gpu="0") == 80 * 2**30
    assert seen.value("gpu_memory_free_bytes", gpu="0") == 20 * 2**30
    assert [s.value for s in seen.found("gpu_utilization_ratio")] == [0.75]
    assert seen.value("gpu_state", gpu="1", state="free") == 1
    assert seen.value("slots", kind="gpu") == 2
    assert (seen.value("gpu_look_stale"), seen.value("gpus_lost")) == (0, 0)
    probe, deadline = with_gpus.manager._hardware.probe, time.monotonic() + 60
    with probe._changed:  # between two looks, of which none begins meanwhile
        assert probe._changed.wait_for(lambda: probe._done == probe._begun, 60)
        begun = probe._begun
        nvml.write(tmp_path / "machine", nvml.fleet(2), hang=["nvmlDeviceGetCount_v2"])
    while probe._begun == begun:
        assert time.monotonic() < deadline
        probe.refresh(0.1)
    probe._deadline = 0.2  # for snapshots: the look that has begun is given a minute, and hangs
    while not scrape(with_gpus.client).value("gpu_look_stale"):
        assert time.monotonic() < deadline
    began = time.monotonic()
    late = scrape(with_gpus.client)
    assert time.monotonic() - began < 30, "it waited for NVML"
    assert late.value("gpu_memory_bytes", gpu="0") == 80 * 2**30, "what was last seen"
    assert late.value("gpu_look_age_seconds") > 0.2


# --- who may ----------------------------------------------------------------------------------------------------------


def key(service: Service, *scopes: str) -> dict[str, str]:
    return {"X-API-Key": service.manager.store.keys.create("monitoring", frozenset(scopes))[1]}


def test_with_authentication_on_it_takes_its_own_scope_and_opens_nothing_else(serve: Serve) -> None:
    client = (service := serve(auth={"enabled": True})).client
    own = key(service, "metrics")
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers=key(service, "generate", "read")).status_code == 403
    assert client.get("/metrics", headers=own).status_code == 200
    assert client.get("/metrics", headers=key(service, "admin")).status_code == 200
    assert client.get("/api/v1/tasks", headers=own).status_code == 403
    assert client.post("/api/v1/generate", data=form(), headers=own).status_code == 403


def test_an_address_may_stand_for_a_key_but_not_behind_a_proxy(serve: Serve) -> None:
    client = serve(
        auth={"enabled": True, "allow_anonymous": True}, metrics={"allow": ["10.1.0.0/16"]},
        http={"trusted_proxies": ["127.0.0.1"]},
    ).client  # fmt: skip
    near, far = {"REMOTE_ADDR": "10.1.2.3"}, {"REMOTE_ADDR": "10.2.2.3"}
    assert client.get("/metrics", environ_base=near).status_code == 200
    assert client.get("/metrics", environ_base=far).status_code == 403
    assert client.get("/metrics").status_code == 403, "loopback was not named"
    for header in ("X-Forwarded-For", "Forwarded", "X-Forwarded-Proto"):
        assert client.get("/metrics", environ_base=near, headers={header: "10.1.2.3"}).status_code == 403
    assert client.get("/metrics", headers={"X-Forwarded-For": "10.1.2.3"}).status_code == 403, "by a trusted proxy"
    assert client.get("/metrics", environ_base=near, headers={"X-API-Key": "la_wrong"}).status_code == 401


def test_for_everyone_means_not_the_metrics(serve: Serve) -> None:
    client = serve(auth={"allow_anonymous": True}).client
    assert client.get("/api/v1/tasks", environ_base={"REMOTE_ADDR": "203.0.113.9"}).status_code == 200
    assert client.get("/metrics", environ_base={"REMOTE_ADDR": "203.0.113.9"}).status_code == 403
    assert client.get("/metrics").status_code == 200


def test_it_can_be_switched_off(serve: Serve) -> None:
    assert serve(metrics={"enabled": False}).client.get("/metrics").status_code == 404


def test_the_threads_told_are_those_of_gunicorn_s_settings() -> None:
    text = (ROOT / "configs" / "gunicorn.conf.py").read_text()
    assert f"\nthreads = _settings.http.max_waiters + {SPARE_THREADS}\n" in text
