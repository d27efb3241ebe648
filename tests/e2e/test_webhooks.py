"""Webhooks of a real service: its own runner, its own scheduler, kill -9 where it hurts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.model import Status
from tasks.store import Store
from tests.conftest import ROOT
from tests.e2e.conftest import Service
from tests.receivers import receiver

SETTINGS = {
    "AVATAR_WEBHOOKS__ALLOWED_NETWORKS": "127.0.0.0/8",
    "AVATAR_WEBHOOKS__RETRY_SECONDS": "0.1,0.1",
    "AVATAR_WEBHOOKS__TIMEOUT_SECONDS": "10",
    "AVATAR_ENV": "test",
}


def secret_by_command(run: Service) -> str:
    made = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "app", "webhooks", "secret"],
        cwd=ROOT, env={**os.environ, **run.environment, "AVATAR_DATA_DIR": str(run.data)}, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def wait_for_end(store: Store, task_id: str) -> None:
    deadline = time.monotonic() + 60
    while store.get(task_id).status is not Status.COMPLETED:
        assert time.monotonic() < deadline, store.get(task_id)
        time.sleep(0.05)


@pytest.mark.timeout(180)
def test_kill_9_before_and_during_the_telling_loses_nothing_and_a_second_message_has_the_first_one_s_id(
    service: Callable[..., Service], tmp_path: Path, portrait: Path, voice: Path
) -> None:
    """The service dies while the task runs, its runner ends the task alone, and the next one dies as it tells."""
    go = tmp_path / "go"
    with receiver() as hook:
        run = service(1, "when_told", fake={"env": {"FAKE_GO": str(go)}}, **SETTINGS)
        accepted = run.submit(str(portrait), str(voice), engine="fake", webhook_url=hook.url("/hook?token=canary"))
        task_id = accepted["task_id"]
        run.until(task_id, lambda task: task["phase"] == "generating")
        run.kill()
        go.touch()
        store = Store(f"sqlite:///{run.data / 'avatar.db'}", run.data, prepare=False)
        wait_for_end(store, task_id)
        assert (store.census().webhooks.pending, hook.told) == (1, [])
        store.close()
        run.environment["AVATAR_FAILPOINT"] = "message-sent"
        run.start()
        first, second = hook.wait(2, "/hook?token=canary")
        task = run.until(task_id, lambda task: task["webhook"]["status"] == "delivered")
        secret = secret_by_command(run)
    assert (run.data / "failpoint-message-sent").exists()
    assert {first.id, second.id} == {task["webhook"]["message_id"]}
    assert [first.verifies(secret), second.verifies(secret)] == [True, True]
    assert (second.json["type"], second.json["data"]["status"]) == ("task.completed", "completed")
    assert task["webhook"]["attempts"] == 2
    log = (tmp_path / "server.log").read_text(errors="replace")
    assert [kept for kept in ("canary", secret.removeprefix("whsec_")) if kept in log] == []
