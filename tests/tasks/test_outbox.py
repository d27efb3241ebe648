"""The outbox: what is written with an end, whose turn it is, and what a lost race leaves."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy import insert as insert_row
from sqlalchemy.exc import IntegrityError
from standardwebhooks import Webhook, WebhookVerificationError

from tasks.model import Event, LostRace, Status, Task
from tasks.outbox import LOG_LENGTH, PER_HOST, PER_TENANT, Attempt, Delivery, Message, NoMessage
from tasks.schema import HEAD, webhooks
from tasks.store import Store
from tasks.totals import Total
from tasks.webhook_secrets import signature
from tests.conftest import NOON
from tests.tasks.conftest import Clock
from tests.tasks.migrations import bring
from tests.tasks.record_release import FILE
from tests.tasks.test_previous_release import insert, say
from tests.tasks.test_store import BROKEN, CLAIM, DONE, submit

URL = "https://hooks.example.com/end?token=t"
HORIZON, LEASE, MINUTE = timedelta(hours=6), timedelta(seconds=30), timedelta(minutes=1)


def ended(store: Store, number: int = 1, url: str | None = URL, **changes: object) -> Task:
    """Submit a task that is cancelled at once."""
    return store.happen(submit(store, number, webhook_url=url, **changes), Event.CANCEL)


def message(store: Store, task: Task) -> Message:
    return store.outbox.of([task.id])[task.id]


def answered(status: int, at: datetime = NOON) -> Attempt:
    return Attempt(at, 12, status, None)


def test_every_end_writes_its_message_and_nothing_else_does(store: Store) -> None:
    tasks = [submit(store, number, webhook_url=URL) for number in range(4)]
    running = [store.happen(task, Event.CLAIM, CLAIM) for task in tasks[:3]]
    store.happen(running[2], Event.REQUEUE)
    assert store.outbox.of([task.id for task in tasks]) == {}
    store.finish(running[0].id, 1, Event.COMPLETE, DONE)
    store.finish(running[1].id, 1, Event.FAIL, BROKEN)
    store.happen(tasks[3], Event.CANCEL)
    ended(store, 5, url=None)
    found = store.outbox.of([task.id for task in tasks])
    assert list(found) == [tasks[0].id, tasks[1].id, tasks[3].id]
    one = found[tasks[0].id]
    assert (one.id, one.host, one.status, one.attempts) == (f"msg_{one.task_id}", "hooks.example.com", "pending", 0)


def test_an_end_that_lost_its_race_writes_no_message(store: Store) -> None:
    task = submit(store, webhook_url=URL)
    store.happen(task, Event.CANCEL)
    with pytest.raises(LostRace):
        store.happen(task, Event.CANCEL)
    assert store.census().webhooks.pending == 1


def test_of_two_that_claim_one_message_one_wins_and_a_lease_that_runs_out_is_another_s(
    store: Store, clock: Clock
) -> None:
    task = ended(store)
    (seen,) = store.outbox.due(HORIZON)
    first = store.outbox.claim(seen, LEASE)
    with pytest.raises(LostRace):
        store.outbox.claim(seen, LEASE)
    assert store.outbox.due(HORIZON) == []
    assert store.outbox.next_turn() == NOON + LEASE
    clock.now += LEASE
    second = store.outbox.claim(*store.outbox.due(HORIZON), LEASE)
    assert second.attempts == 2
    with pytest.raises(LostRace):
        store.outbox.settle(first, answered(200), Delivery.DELIVERED, None)
    store.outbox.settle(second, answered(200), Delivery.DELIVERED, None)
    assert message(store, task).deliveries == (answered(200),)
    assert store.outbox.next_turn() is None


def test_a_message_is_due_again_when_its_next_attempt_is(store: Store, clock: Clock) -> None:
    ended(store)
    claimed = store.outbox.claim(*store.outbox.due(HORIZON), LEASE)
    store.outbox.settle(claimed, answered(500), Delivery.PENDING, NOON + MINUTE)
    assert (store.outbox.due(HORIZON), store.outbox.next_turn()) == ([], NOON + MINUTE)
    clock.now += MINUTE
    assert len(store.outbox.due(HORIZON)) == 1


def test_a_clock_that_is_set_back_holds_no_message_longer_than_the_longest_wait(store: Store, clock: Clock) -> None:
    ended(store)
    clock.now -= HORIZON
    assert store.outbox.due(HORIZON) == []
    clock.now -= MINUTE
    assert len(store.outbox.due(HORIZON)) == 1


def test_nobodys_many_messages_hide_anothers_one(store: Store, clock: Clock) -> None:
    for number in range(30):
        ended(store, number, f"https://dead.example/{number}", tenant="many")
    for number in range(30, 60):
        ended(store, number, f"https://dead{number}.example/", tenant="wide")
    clock.now += MINUTE
    few = ended(store, 60, tenant="few")
    due = store.outbox.due(HORIZON)
    assert [one.tenant for one in due[:3]].count("few") == 1
    assert sum(one.host == "dead.example" for one in due) == PER_HOST
    assert PER_TENANT <= sum(one.tenant == "wide" for one in due) <= 4 * PER_TENANT
    assert few.id in [one.task_id for one in due]


def test_thousands_for_a_dead_host_are_passed_over_and_not_sorted(store: Store) -> None:
    """Counted in steps of SQLite's machine, which no busy processor changes."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    event.listen(store._engine, "checkout", lambda raw, *_: raw.set_progress_handler(step, 1))
    costs = []
    for more in (range(50), range(50, 1050)):
        with store._writing.begin() as db:
            db.execute(insert_row(webhooks), [waiting(number) for number in more])
        steps = 0
        assert [one.task_id for one in store.outbox.due(HORIZON)] == ["gen_0", "gen_1"]
        costs.append(steps)
    assert (costs[1] - costs[0]) / 1000 < 15


def waiting(number: int) -> dict[str, object]:
    """Return the row of a message to a host that is dead."""
    return {
        "task_id": f"gen_{number}", "tenant": "t", "url": URL, "host": "dead.example", "status": Delivery.PENDING,
        "version": 1, "attempts": 1, "created_at": NOON, "next_attempt_at": NOON - HORIZON + number * MINUTE / 60,
        "deliveries": [],
    }  # fmt: skip


def test_the_log_keeps_the_last_attempts(store: Store, clock: Clock) -> None:
    task = ended(store)
    for number in range(LOG_LENGTH + 3):
        claimed = store.outbox.claim(*store.outbox.due(HORIZON), LEASE)
        store.outbox.settle(claimed, answered(500 + number), Delivery.PENDING, clock.now)
    kept = [one.status_code for one in message(store, task).deliveries]
    assert kept == list(range(503, 503 + LOG_LENGTH))


def test_what_was_given_up_or_delivered_is_told_again_where_that_is_asked_for(store: Store) -> None:
    task = ended(store)
    claimed = store.outbox.claim(*store.outbox.due(HORIZON), LEASE)
    store.outbox.settle(claimed, answered(410), Delivery.FAILED, None)
    assert store.outbox.due(HORIZON) == []
    again = store.outbox.redeliver(task.id)
    assert (again.status, again.attempts, again.deliveries) == (Delivery.PENDING, 0, (answered(410),))
    assert [one.id for one in store.outbox.due(HORIZON)] == [again.id]


def test_why_a_task_cannot_be_told_again_is_said(store: Store) -> None:
    waiting = submit(store, webhook_url=URL)
    silent = ended(store, 2, url=None)
    for task_id, why in [("gen_x", "no task"), (waiting.id, "has not ended"), (silent.id, "no webhook_url")]:
        with pytest.raises(NoMessage, match=why):
            store.outbox.redeliver(task_id)


def test_a_message_goes_with_its_task(store: Store) -> None:
    task = ended(store)
    claimed = store.outbox.claim(*store.outbox.due(HORIZON), LEASE)
    store.ended.delete(task)
    assert store.outbox.of([task.id]) == {}
    with pytest.raises(LostRace):
        store.outbox.settle(claimed, answered(200), Delivery.DELIVERED, None)


def test_counts_tell_each_status_and_since_when_the_oldest_waits(store: Store, clock: Clock) -> None:
    for number, status in enumerate([Delivery.DELIVERED, Delivery.FAILED, Delivery.FAILED]):
        ended(store, number)
        claimed = store.outbox.claim(*store.outbox.due(HORIZON), LEASE)
        store.outbox.settle(claimed, answered(0), status, None)
    clock.now += MINUTE
    ended(store, 9)
    clock.now += MINUTE
    ended(store, 10)
    counts = store.census().webhooks
    assert (counts.pending, counts.delivered, counts.failed) == (2, 1, 2)
    assert counts.oldest_seconds == counts.overdue_seconds == MINUTE.total_seconds()
    for due in store.outbox.due(HORIZON):
        store.outbox.claim(due, LEASE)
    counts = store.census().webhooks
    assert (counts.oldest_seconds, counts.overdue_seconds) == (60, 0), "what is under way is not overdue"
    assert len(store.outbox.newest(10, [Delivery.FAILED])) == 2
    assert store.outbox.newest(1)[0].created_at == NOON + 2 * MINUTE


def test_each_attempt_is_counted_once_also_when_its_task_is_gone(store: Store, clock: Clock) -> None:
    tasks = [ended(store, number) for number in range(2)]
    for status in (Delivery.PENDING, Delivery.FAILED):
        for due in store.outbox.due(HORIZON):
            claimed = store.outbox.claim(due, LEASE)
            store.outbox.settle(claimed, answered(500), status, clock.now if status is Delivery.PENDING else None)
            with pytest.raises(LostRace):
                store.outbox.settle(claimed, answered(500), status, None)
    store.ended.delete(tasks[0])
    grown = store.census().totals
    assert {key.label: value for key, value in grown.items() if key.name == Total.WEBHOOKS} == {
        "pending": 2, "failed": 2,
    }  # fmt: skip


def test_a_task_that_a_runner_of_the_release_before_ended_is_told_too(tmp_path: Path) -> None:
    """That runner writes the end without a message; what it said is replayed word for word."""
    recorded = json.loads(FILE.read_text())
    path = tmp_path / "avatar.db"
    bring(path, HEAD)
    with closing(sqlite3.connect(path, isolation_level=None)) as runner:
        for life in recorded["lives"]:
            insert(runner, "tasks", life["task"] | {"webhook_url": URL})
            for step in life["steps"]:
                say(runner, step["said"])
    store = Store(f"sqlite:///{path}", tmp_path)
    assert store.census().webhooks.pending == 0
    finished = store.get("gen_20261122_fail").finish_time
    assert store.outbox.adopt(finished + MINUTE) == 0
    assert [store.outbox.adopt(None), store.outbox.adopt(None)] == [2, 0]
    assert {one.task_id for one in store.outbox.newest(9)} == {"gen_20261122_complete", "gen_20261122_fail"}
    assert store.get("gen_20261122_requeue").status is Status.QUEUED
    store.close()


def test_an_error_of_the_database_tells_no_address(store: Store) -> None:
    submit(store, webhook_url=URL)
    with pytest.raises(IntegrityError) as caught:
        submit(store, webhook_url=URL)
    assert "INSERT" in str(caught.value)
    assert "token" not in str(caught.value)


# --- secrets ----------------------------------------------------------------------------------------------------------


def verifies(store: Store, secret: str) -> bool:
    """Say whether a receiver that has `secret` takes what is signed now."""
    body, at = b'{"type":"task.completed"}', int(datetime.now().timestamp())
    signed = signature(store.webhook_secrets.of("acme"), "msg_1", at, body)
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(at), "webhook-signature": signed}
    try:
        return bool(Webhook(secret).verify(body, headers))
    except WebhookVerificationError:
        return False


def test_after_a_rotation_both_secrets_verify_until_the_old_one_ends(store: Store, clock: Clock) -> None:
    (old,) = store.webhook_secrets.of("acme")
    assert store.webhook_secrets.of("acme") == [old]
    assert store.webhook_secrets.of("other")[0].text != old.text
    new, kept = store.webhook_secrets.rotate("acme", timedelta(hours=24))
    assert (kept.text, kept.expires_at) == (old.text, NOON + timedelta(hours=24))
    assert verifies(store, old.text)
    assert verifies(store, new.text)
    clock.now += timedelta(hours=24)
    assert not verifies(store, old.text)
    assert verifies(store, new.text)


def test_a_second_rotation_ends_the_first_secret_and_one_without_overlap_ends_all_before(store: Store) -> None:
    (first,) = store.webhook_secrets.of("acme")
    store.webhook_secrets.rotate("acme", timedelta(hours=24))
    third, second = store.webhook_secrets.rotate("acme", timedelta(hours=24))
    assert [verifies(store, one.text) for one in (first, second, third)] == [False, True, True]
    (fourth,) = store.webhook_secrets.rotate("acme", timedelta(0))
    assert [verifies(store, one.text) for one in (second, third, fourth)] == [False, False, True]


def test_a_secret_is_in_no_representation(store: Store) -> None:
    (secret,) = store.webhook_secrets.of("acme")
    assert secret.text.startswith("whsec_")
    assert secret.text[6:] not in repr([secret])


def test_a_secret_is_for_a_tenant_that_can_be(store: Store) -> None:
    with pytest.raises(ValueError, match="tenant"):
        store.webhook_secrets.of("a b")
