"""Webhooks from the request to the receiver: told once, signed, again and again where need be, and in nobody's way."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import jsonschema
import pytest
from flask.testing import FlaskCliRunner

from tasks.deliverer import Deliverer
from tasks.model import ErrorCode, Event, Facts, Failure, Task
from tasks.outbox import PER_HOST
from tests.ports import reserved
from tests.receivers import WAIT_SECONDS, Answer, Receiver, receiver
from tests.web.conftest import CheckedClient, Serve, Service, form
from utils.net import Reply, post
from web.links import Links
from web.webhooks import body

GENERATE = "/api/v1/generate"
SLOW = "https://slow.example/"
QUICK: dict[str, Any] = {
    "allowed_networks": ["127.0.0.0/8"], "retry_seconds": [0.05] * 5, "timeout_seconds": 60, "concurrency": 16,
}  # fmt: skip
FAILED = Facts(failure=Failure(ErrorCode.OOM, "the GPU ran out of memory", "log"))


@pytest.fixture
def listen() -> Iterator[Callable[..., Receiver]]:
    with ExitStack() as stack:
        yield lambda answer=None: stack.enter_context(receiver(answer))


@pytest.fixture
def dead_url() -> Iterator[str]:
    """An address at which nobody listens."""
    with reserved() as port:
        yield f"http://127.0.0.1:{port}/hook"


@pytest.fixture
def telling(serve: Serve) -> Iterator[Callable[..., Service]]:
    """Return a function that makes a service whose webhooks are told; its arguments are settings of theirs."""
    with ExitStack() as stack:

        def start(auth: bool = False, send: Callable[..., Any] = post, **webhooks: Any) -> Service:
            service = serve(webhooks=QUICK | webhooks, auth={"enabled": auth})
            links = Links(b"k" * 32, 600.0) if auth else Links(None, 0.0)
            made = partial(body, service.manager, links)
            settings = service.settings
            deliverer = Deliverer(service.manager.store, settings.data_dir, settings.webhooks, made, send)
            deliverer.start()
            stack.callback(deliverer.stop)
            service.app.extensions["deliverer"] = deliverer
            return service

        yield start


def told(service: Service, task: Task, status: str, seconds: float = WAIT_SECONDS) -> dict[str, Any]:
    """Return the webhook of a task once it has this status."""
    deadline = time.monotonic() + seconds
    while True:
        webhook = service.client.get(f"/api/v1/task/{task.id}").json["webhook"]
        if webhook["status"] == status:
            return dict(webhook)
        assert time.monotonic() < deadline, webhook
        time.sleep(0.02)


def secret_of(service: Service, tenant: str = "default") -> str:
    return service.manager.store.webhook_secrets.of(tenant)[0].text


def fails(times: int, status: int = 500) -> Answer:
    return lambda path, before: status if before < times else 200


# --- what is asked for ------------------------------------------------------------------------------------------------


def test_a_url_is_kept_shown_and_part_of_what_an_idempotency_key_stands_for(serve: Serve) -> None:
    service = serve()
    url = "https://hooks.example.com/end?token=t"

    def submit(**changes: Any) -> Any:
        kind = "multipart/form-data"
        headers = {"Idempotency-Key": "k"}
        return service.client.post(GENERATE, data=form(**changes), headers=headers, content_type=kind)

    first, again, another = submit(webhook_url=url), submit(webhook_url=url), submit()
    assert (first.status_code, again.data, another.status_code) == (201, first.data, 422)
    shown = service.client.get(first.headers["Location"]).json
    assert shown["webhook"] == {
        "url": url, "message_id": f"msg_{shown['task_id']}", "status": "pending", "attempts": 0,
        "next_attempt_at": None, "deliveries": [],
    }  # fmt: skip
    assert service.client.get("/api/v1/tasks").json["tasks"][0]["webhook"] == shown["webhook"]
    as_json = {"prompt": "p", "image_path": service.put("image"), "audio_path": service.put("audio")}
    plain, hooked = (service.client.post(GENERATE, json=as_json | more) for more in ({}, {"webhook_url": url}))
    assert service.client.get(plain.headers["Location"]).json["webhook"] is None
    assert service.client.get(hooked.headers["Location"]).json["webhook"]["url"] == url


def test_switched_off_none_is_accepted(serve: Serve) -> None:
    answer = serve(webhooks={"enabled": False}).client.post(
        GENERATE, data=form(webhook_url="https://example.com"), content_type="multipart/form-data"
    )
    assert (answer.status_code, answer.json["errors"]) == (
        400, [{"field": "webhook_url", "message": "webhooks are not sent here"}]
    )  # fmt: skip


# --- what arrives -----------------------------------------------------------------------------------------------------


def test_a_receiver_that_fails_three_times_gets_exactly_one_accepted_message_that_verifies(
    telling: Callable[..., Service], listen: Callable[..., Receiver]
) -> None:
    hook, service = listen(fails(3)), telling()
    task = service.complete(service.start(service.submit(webhook_url=hook.url())))
    webhook = told(service, task, "delivered")
    requests = hook.wait(4)
    assert [one.status for one in requests] == [500, 500, 500, 200]
    assert {one.id for one in requests} == {webhook["message_id"]} == {f"msg_{task.id}"}
    assert all(one.verifies(secret_of(service)) for one in requests)
    assert not requests[0].verifies("whsec_" + "A" * 44)
    assert [tried["status_code"] for tried in webhook["deliveries"]] == [500, 500, 500, 200]
    assert (webhook["attempts"], webhook["next_attempt_at"]) == (4, None)
    assert 'live_avatar_webhooks{state="delivered"} 1.0' in service.client.get("/metrics").text


def test_each_end_is_told_as_the_document_says_with_the_task_as_its_owner_reads_it(
    telling: Callable[..., Service], listen: Callable[..., Receiver]
) -> None:
    deleted = threading.Event()
    hook, service = listen(lambda path, before: 204 if deleted.wait(WAIT_SECONDS) else 500), telling(auth=True)
    key = service.manager.store.keys.create("acme")[1]
    service.client.environ_base["HTTP_X_API_KEY"] = key
    queued = [service.submit(number, webhook_url=hook.url(f"/{number}"), tenant="acme") for number in range(3)]
    service.complete(service.start(queued[0]))
    started = service.start(queued[1])
    service.manager.store.finish(started.id, 1, Event.FAIL, FAILED)
    assert service.client.delete(f"/api/v1/task/{queued[2].id}").json["webhook"]["status"] == "pending"
    deleted.set()  # until then nobody was told
    schema = {"$ref": "#/components/schemas/TaskEnded", "components": CheckedClient.served["components"]}
    for number, kind in enumerate(["completed", "failed", "cancelled"]):
        (one,) = hook.wait(1, f"/{number}")
        jsonschema.validate(one.json, schema, jsonschema.Draft202012Validator)
        assert (one.json["type"], one.json["data"]["task_id"]) == (f"task.{kind}", queued[number].id)
        assert one.verifies(secret_of(service, "acme"))
        assert not one.verifies(secret_of(service, "another"))
        told(service, queued[number], "delivered")
        read = service.client.get(f"/api/v1/task/{queued[number].id}").json
        assert one.json["timestamp"] == read["finish_time"]
        differing = {"webhook", "output_video_url", "poster_url"}
        sent = one.json["data"]
        assert {name: sent[name] for name in sent if name not in differing} == {
            name: read[name] for name in read if name not in differing
        }
    assert "signature=" in hook.at("/0")[0].json["data"]["output_video_url"]
    assert set(CheckedClient.served["webhooks"]["taskEnded"]["post"]["requestBody"]["content"]) == {"application/json"}


def test_a_rotation_verifies_with_the_secret_before_and_after(
    telling: Callable[..., Service], listen: Callable[..., Receiver]
) -> None:
    hook, service = listen(), telling()
    runner = FlaskCliRunner(service.app)
    old = runner.invoke(args=["webhooks", "secret"], catch_exceptions=False).stdout.strip()
    rotated = runner.invoke(args=["webhooks", "secret", "--rotate"], catch_exceptions=False)
    new, kept = rotated.stdout.split()
    assert kept == old
    service.manager.store.happen(service.submit(1, webhook_url=hook.url()), Event.CANCEL)
    (both,) = hook.wait(1)
    assert [both.verifies(secret) for secret in (old, new)] == [True, True]
    runner.invoke(args=["webhooks", "secret", "--rotate", "--overlap", "0"], catch_exceptions=False)
    service.manager.store.happen(service.submit(2, webhook_url=hook.url()), Event.CANCEL)
    last = hook.wait(2)[1]
    assert [last.verifies(secret) for secret in (old, new, secret_of(service))] == [False, False, True]


# --- what does not arrive ---------------------------------------------------------------------------------------------


def test_a_receiver_that_is_dead_for_good_changes_nothing_of_the_task_and_is_given_up(
    telling: Callable[..., Service], dead_url: str
) -> None:
    seen_at_first = threading.Event()

    def send(*message: Any) -> Reply:
        assert seen_at_first.wait(WAIT_SECONDS)
        return post(*message)

    service = telling(retry_seconds=[0.01, 0.01], send=send)
    task = service.complete(service.start(service.submit(webhook_url=dead_url)))
    seen = service.client.get(f"/api/v1/task/{task.id}")
    seen_at_first.set()
    assert (seen.json["status"], seen.json["error"]) == ("completed", None)
    webhook = told(service, task, "failed")
    assert [tried["error"] for tried in webhook["deliveries"]] == ["the URL's server cannot be reached"] * 3
    assert service.manager.store.get(task.id) == task
    changed = service.client.get(f"/api/v1/task/{task.id}", headers={"If-None-Match": seen.headers["ETag"]})
    assert changed.status_code == 200, "the tag tells that the webhook has moved on"
    assert service.client.get(seen.json["output_video_url"]).status_code == 200


def test_410_is_not_asked_again_and_redeliver_asks_all_the_same(
    telling: Callable[..., Service], listen: Callable[..., Receiver]
) -> None:
    hook, service = listen(fails(1, 410)), telling()
    task = service.manager.store.happen(service.submit(webhook_url=hook.url("/hook?token=t")), Event.CANCEL)
    assert told(service, task, "failed")["attempts"] == 1
    runner = FlaskCliRunner(service.app)
    listed = runner.invoke(args=["webhooks", "list", "--failed"]).output
    assert task.id in listed
    assert "token" not in listed
    again = runner.invoke(args=["webhooks", "redeliver", task.id])
    assert (again.exit_code, f"msg_{task.id}" in again.output) == (0, True)
    assert told(service, task, "delivered")["attempts"] == 1
    assert len({one.id for one in hook.wait(2, "/hook?token=t")}) == 1
    assert task.id not in runner.invoke(args=["webhooks", "list", "--failed"]).output
    shown = runner.invoke(args=["webhooks", "list", "--task", task.id]).output
    assert ("410" in shown, "200" in shown) == (True, True)
    for args in (["redeliver", "gen_x"], ["list", "--task", "gen_x"], ["secret", "--tenant", "a b"]):
        refused = runner.invoke(args=["webhooks", *args])
        assert (refused.exit_code != 0, "Traceback" in refused.output) == (True, False)


def test_a_message_that_is_under_way_is_sent_anew_only_after_that(telling: Callable[..., Service]) -> None:
    came, go, sent = threading.Event(), threading.Event(), []

    def send(url: str, *_rest: object) -> Reply:
        sent.append(url)
        if url == SLOW:
            came.set()
            assert go.wait(WAIT_SECONDS)
        return Reply(204, "")

    service = telling(send=send)
    task = service.manager.store.happen(service.submit(1, webhook_url=SLOW), Event.CANCEL)
    assert came.wait(WAIT_SECONDS)
    service.manager.store.outbox.redeliver(task.id)
    other = service.manager.store.happen(service.submit(2, webhook_url="https://quick.example/"), Event.CANCEL)
    told(service, other, "delivered")  # so what is due was looked at since
    assert sent.count(SLOW) == 1
    go.set()
    assert told(service, task, "delivered")["attempts"] == 1
    assert sent.count(SLOW) == 2


def test_a_message_at_which_the_service_itself_fails_comes_to_an_end(telling: Callable[..., Service]) -> None:
    def send(*_all: object) -> Reply:
        raise OverflowError

    service = telling(send=send, retry_seconds=[0.01])
    task = service.manager.store.happen(service.submit(webhook_url=SLOW), Event.CANCEL)
    tried = told(service, task, "failed")["deliveries"]
    assert [one["error"] for one in tried] == ["the service could not send the message"] * 2


def test_retry_after_is_waited_for(telling: Callable[..., Service]) -> None:
    service = telling(retry_seconds=[0.01, 10.0], send=lambda *_args: Reply(503, "10"))
    task = service.manager.store.happen(service.submit(webhook_url="https://example.com"), Event.CANCEL)
    deadline = time.monotonic() + WAIT_SECONDS
    while not (message := service.manager.store.outbox.of([task.id])[task.id]).deliveries:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert 9.9 <= (message.next_attempt_at - message.deliveries[0].at).total_seconds() <= 10 + WAIT_SECONDS


# --- in nobody's way --------------------------------------------------------------------------------------------------


def test_receivers_that_never_answer_delay_nobody_else_s(
    telling: Callable[..., Service], listen: Callable[..., Receiver]
) -> None:
    """Many messages of one tenant to a receiver that keeps each connection; then one of another tenant."""
    stuck, hook, service = listen(lambda path, before: None), listen(), telling(timeout_seconds=60)
    slow = [service.submit(number, webhook_url=stuck.url(f"/{number % 7}"), tenant="slow") for number in range(20)]
    for task in slow:
        service.manager.store.happen(task, Event.CANCEL)
    deadline = time.monotonic() + WAIT_SECONDS
    while len(stuck.told) < PER_HOST:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for number in range(20, 23):
        service.manager.store.happen(service.submit(number, webhook_url=hook.url()), Event.CANCEL)
    hook.wait(3)
    ended = [one for one in service.manager.store.outbox.of([task.id for task in slow]).values() if one.deliveries]
    assert not ended, "they waited for others"
    assert len(stuck.told) == PER_HOST
    stuck.ending.set()


def test_an_address_that_is_not_public_gets_no_connection_also_where_the_name_changes_its_address(
    telling: Callable[..., Service], listen: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = listen(fails(99))
    port = hook.url().split(":")[2].split("/")[0]
    given = iter([["127.0.0.1"], ["127.0.0.2"], ["127.0.0.1", "10.0.0.1"], ["::1"], ["169.254.169.254"]])

    def rebinding(host: str, number: int, **_kwargs: object) -> list[tuple[Any, ...]]:
        return [(0, 0, 0, "", (address, number)) for address in next(given)]

    service = telling(
        allowed_networks=["127.0.0.1/32"], retry_seconds=[0.01] * 4, send=partial(post, resolver=rebinding)
    )
    task = service.submit(webhook_url=f"http://hooks.example.com:{port}/hook")
    service.manager.store.happen(task, Event.CANCEL)
    webhook = told(service, task, "failed")
    refused = "the URL leads to an address that is not public"
    assert [one["status_code"] or one["error"] for one in webhook["deliveries"]] == [500, *[refused] * 4]
    assert len(hook.told) == 1


def test_a_name_that_led_inside_is_told_once_it_leads_where_it_may(
    telling: Callable[..., Service], listen: Callable[..., Receiver]
) -> None:
    hook = listen()
    port = hook.url().split(":")[2].split("/")[0]
    given = iter(["10.0.0.1", "127.0.0.1"])

    def moved(host: str, number: int, **_kwargs: object) -> list[tuple[Any, ...]]:
        return [(0, 0, 0, "", (next(given), number))]

    service = telling(allowed_networks=["127.0.0.1/32"], retry_seconds=[0.01], send=partial(post, resolver=moved))
    task = service.submit(webhook_url=f"http://hooks.example.com:{port}/hook")
    service.manager.store.happen(task, Event.CANCEL)
    first, second = told(service, task, "delivered")["deliveries"]
    assert first["error"] == "the URL leads to an address that is not public"
    assert second["status_code"] == 204


def test_a_message_of_a_removed_task_is_told_no_more(
    telling: Callable[..., Service], listen: Callable[..., Receiver]
) -> None:
    hook, service = listen(fails(99)), telling(retry_seconds=[0.05] * 100)
    task = service.manager.store.happen(service.submit(webhook_url=hook.url()), Event.CANCEL)
    hook.wait(2)
    assert service.client.delete(f"/api/v1/task/{task.id}").status_code == 204
    other = service.manager.store.happen(service.submit(2, webhook_url=hook.url("/other")), Event.CANCEL)
    seen = len(hook.told)
    hook.wait(6, "/other")
    assert len(hook.at("/hook")) <= seen + 1, "one may have been under way"
    assert service.manager.store.outbox.of([task.id, other.id]).keys() == {other.id}


def test_a_message_whose_task_was_removed_by_a_release_that_knows_none_is_forgotten(
    telling: Callable[..., Service], listen: Callable[..., Receiver]
) -> None:
    hook, service = listen(fails(99)), telling(retry_seconds=[0.05] * 100)
    task = service.manager.store.happen(service.submit(webhook_url=hook.url()), Event.CANCEL)
    hook.wait(1)
    with closing(sqlite3.connect(service.settings.data_dir / "avatar.db", timeout=30)) as db, db:
        db.execute("DELETE FROM tasks WHERE id = ?", [task.id])
    deadline = time.monotonic() + WAIT_SECONDS
    while service.manager.store.outbox.of([task.id]):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_second_process_tells_nothing_while_one_does(
    telling: Callable[..., Service], listen: Callable[..., Receiver]
) -> None:
    hook, first, second = listen(), telling(), telling()
    tasks = [first.submit(number, webhook_url=hook.url()) for number in range(6)]
    for task in tasks:
        second.manager.store.happen(task, Event.CANCEL)
    for task in tasks:
        told(second, task, "delivered")
    assert sorted(one.id for one in hook.told) == sorted(f"msg_{task.id}" for task in tasks)


def test_when_the_process_that_tells_ends_another_takes_over_with_what_was_under_way(
    telling: Callable[..., Service], listen: Callable[..., Receiver]
) -> None:
    hook = listen(lambda path, before: None if path == "/stuck" and before == 0 else 204)
    first = telling(timeout_seconds=1.5)
    stuck = first.manager.store.happen(first.submit(1, webhook_url=hook.url("/stuck")), Event.CANCEL)
    hook.wait(1, "/stuck")
    second = telling(timeout_seconds=1.5)
    began = time.monotonic()
    first.app.extensions["deliverer"].stop()
    assert time.monotonic() - began < WAIT_SECONDS
    after = second.manager.store.happen(second.submit(2, webhook_url=hook.url()), Event.CANCEL)
    for task in (after, stuck):
        told(second, task, "delivered")
    assert {one.id for one in hook.wait(2, "/stuck")} == {f"msg_{stuck.id}"}


def test_no_secret_and_no_address_is_logged(
    telling: Callable[..., Service], listen: Callable[..., Receiver], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    hook, service = listen(fails(99)), telling(retry_seconds=[0.01])
    task = service.manager.store.happen(service.submit(webhook_url=hook.url("/hook?token=canary")), Event.CANCEL)
    told(service, task, "failed")
    deadline = time.monotonic() + WAIT_SECONDS
    while "given up after 2 attempts" not in caplog.text:  # it is said once it is recorded
        assert time.monotonic() < deadline
        time.sleep(0.01)
    signed = hook.wait(1, "/hook?token=canary")[0].headers["webhook-signature"].removeprefix("v1,")
    secret = secret_of(service).removeprefix("whsec_")
    assert [kept for kept in ("canary", secret, signed) if kept in caplog.text] == []
