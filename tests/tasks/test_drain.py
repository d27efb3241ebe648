"""The drain as the store sees it: told to all, and stronger than a scheduler that looked a moment too early."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from app import create_app
from tasks import drain
from tasks.model import Event, Facts, LostRace, Status
from tasks.store import Store
from tests.conftest import NOON, PATIENCE, make_task
from tests.tasks.conftest import Bench


@pytest.fixture
def stores(tmp_path: Path) -> list[Store]:
    """Two processes' views of one database."""
    return [Store(f"sqlite:///{tmp_path / 'avatar.db'}", tmp_path) for _ in range(2)]


def test_one_process_begins_and_ends_it_for_all(stores: list[Store]) -> None:
    one, other = (store.state for store in stores)
    assert drain.current(other) is None
    assert not drain.end(one)
    drain.begin(one, "a new version", NOON)
    assert drain.current(other) == drain.Drain(NOON, "a new version")
    assert drain.end(other)
    assert drain.current(one) is None


def test_a_second_word_keeps_the_beginning_and_the_reason(stores: list[Store]) -> None:
    state = stores[0].state
    drain.begin(state, "a new version", NOON)
    assert drain.begin(state, "", NOON.replace(hour=13)) == drain.Drain(NOON, "a new version")
    assert drain.begin(state, "a disk", NOON.replace(hour=13)) == drain.Drain(NOON, "a disk")


def test_no_claim_succeeds_once_the_drain_is_on_whatever_the_scheduler_saw_before(stores: list[Store]) -> None:
    scheduler, operator = stores
    task, _ = scheduler.add(
        lambda ahead, now: make_task(), lambda task, position: "{}", priority=0, max_queued=9, tenant="default"
    )
    claim = Facts(slot="cpu-0", profile="preview_cpu")
    drain.begin(operator.state, "", NOON)
    with pytest.raises(LostRace):
        scheduler.happen(task, Event.CLAIM, claim)
    assert scheduler.counts() == {Status.QUEUED: 1, Status.PROCESSING: 0}
    drain.end(operator.state)
    running = scheduler.happen(task, Event.CLAIM, claim)
    drain.begin(operator.state, "", NOON)
    assert scheduler.happen(running, Event.REQUEUE).status is Status.QUEUED


def test_a_wait_without_a_service_ends_when_the_runner_does_and_tells_of_the_one_that_died(bench: Bench) -> None:
    manager = bench.open("hang")
    task = bench.until(manager, bench.submit(manager), lambda seen: bool(seen.runner))
    bench.stop(manager)
    app = create_app(bench.load("hang")[0])
    command = app.test_cli_runner().invoke
    assert command(args=["drain", "on"]).exit_code == 0
    running = command(args=["drain", "wait", "--timeout", "0.1"])
    assert (running.exit_code, running.stderr) == (1, "1 task still running after 0.1 s\n")
    os.kill(task.runner.pid, signal.SIGKILL)
    waited = command(args=["drain", "wait", "--timeout", str(PATIENCE)])
    assert (waited.exit_code, waited.stdout.splitlines()[-1]) == (0, "no task is running")
    assert waited.stderr == "1 task lost the process that ran it: tried again once the service is up\n"
    app.extensions["task_manager"].store.close()
