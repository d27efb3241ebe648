"""A store of 100,000 finished tasks is about as quick as one of a few."""

from __future__ import annotations

import os
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import yaml

from tasks.model import Phase, RunnerId, Status
from tasks.schema import tasks
from tasks.store import Store
from tests.conftest import make_task
from tests.e2e.conftest import Service
from tests.tasks.test_store import DONE

FEW, MANY = 60, 100_000
SLOWER_AT_MOST = 1.2
LOOKS = 8
NOISE_SECONDS = 0.0005
"""What the machine may add to the quartile of the shortest answers."""

START_SECONDS = 1.0
ID = "gen_20261122_"


def fill(data: Path, count: int) -> None:
    """Make a database with so many finished tasks and their idempotency keys; retention has seen them already."""
    data.mkdir(parents=True)
    now = datetime.now(UTC)
    task = make_task(
        id="first", status=Status.COMPLETED, attempt=1, phase=Phase.DONE, progress=1.0, submit_time=now, updated_at=now,
        start_time=now, finish_time=now - timedelta(minutes=5), slot="cpu-0", runner=RunnerId("host", "b" * 36, 7, 9),
        result=DONE.result, heartbeat_at=now,
    )  # fmt: skip
    store = Store(f"sqlite:///{data / 'avatar.db'}", data)
    store.state.set("retention_settled", {"ended": int(now.timestamp() * 1e6), "seq": count})
    store.add(lambda ahead, at: task, lambda *_: "", priority=1, max_queued=1, tenant="default")
    store.close()
    names = [column.name for column in tasks.columns if column.name != "seq"]
    listed = ", ".join(f'"{name}"' for name in names)
    values = [f"'{ID}' || printf('%016x', n)" if name == "id" else f'"{name}"' for name in names]
    with closing(sqlite3.connect(data / "avatar.db", isolation_level=None)) as db:
        for pragma in ("journal_mode=DELETE", "synchronous=OFF", "cache_size=-200000"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("BEGIN")
        db.execute(
            f"INSERT INTO tasks ({listed}) "
            f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count}) "
            f"SELECT {', '.join(values)} FROM tasks, numbers"
        )
        db.execute(
            f"INSERT INTO idempotency_keys SELECT tenant, id, '{'f' * 64}', id, '{'a' * 600}', NULL, NULL FROM tasks"
        )
        db.execute("COMMIT")
    with (data / "avatar.db").open("rb") as file:
        os.fsync(file.fileno())  # else the service's first write would have to wait for all of it


@pytest.fixture
def services(tmp_path: Path) -> Iterator[list[Service]]:
    """Return two services that are not started, one with few tasks and one with many; their engine does nothing."""
    script, table = tmp_path / "idle.sh", tmp_path / "engines.yaml"
    script.write_text("#!/bin/sh\nexec sleep 600\n")
    script.chmod(0o755)
    profile = {"name": "only", "script": str(script), "grace_seconds": 1.0}
    table.write_text(yaml.safe_dump({"engines": {"idle": {"profiles": [profile]}}}))
    settings = {"AVATAR_INPUTS__FOLDERS": str(tmp_path / "in"), "AVATAR_ENGINES__TABLE": str(table)}
    made = []
    for name, count in (("few", FEW), ("many", MANY)):
        began = time.monotonic()
        fill(tmp_path / name / "data", count)
        print(f"\n{name}: {count:,} tasks written in {time.monotonic() - began:.1f} s")
        made.append(Service(tmp_path / name, settings, 1))
    yield made
    for one in made:
        one.clean_up()


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


@pytest.mark.alone
@pytest.mark.timeout(900)
def test_a_hundred_thousand_finished_tasks_slow_nothing_down(
    services: list[Service], portrait: Path, voice: Path
) -> None:
    assert starts_as_quickly(services)
    media = [(one.upload("image", portrait), one.upload("audio", voice)) for one in services]
    last = f"{ID}{FEW:016x}"
    actions: dict[str, tuple[int, Callable[[Service, int], object]]] = {
        "submit": (20, lambda one, n: one.submit(*media[n], size="384*256")),
        "poll": (100, lambda one, n: one.call("GET", f"/api/v1/task/{last}")),
        "page": (25, lambda one, n: one.call("GET", "/api/v1/tasks?limit=50")),
        "page of rare ones": (50, lambda one, n: one.call("GET", "/api/v1/tasks?limit=50&status=failed,cancelled")),
        "health": (50, lambda one, n: one.call("GET", "/api/v1/health")),
        "metrics": (25, lambda one, n: one.call("GET", "/metrics")),
    }
    slow = [name for name, (rounds, act) in actions.items() if not is_as_quick(name, services, rounds, act)]
    assert slow == []


def starts_as_quickly(services: list[Service]) -> bool:
    """Start both, and say whether many tasks add less than a second to that. A look that says no is taken again."""
    for _ in range(LOOKS):
        few, many = (seconds(one.start) for one in services)
        print(f"start: {few:.2f} s with few tasks, {many:.2f} s with many")
        if many - few < START_SECONDS:
            return True
        for one in services:
            one.stop()
    return False


def is_as_quick(name: str, services: list[Service], rounds: int, act: Callable[[Service, int], object]) -> bool:
    """Say whether `act` takes about as long with many tasks. A look that says no is taken again."""
    for _ in range(LOOKS):
        pairs = [[seconds(partial(act, one, n)) for n, one in enumerate(services)] for _ in range(rounds)]
        few, many = (statistics.quantiles(times, n=4)[0] for times in zip(*pairs, strict=True))
        print(f"{name}: {few * 1000:.1f} ms with few tasks, {many * 1000:.1f} ms with many: {many / few:.2f} times")
        if many <= few * SLOWER_AT_MOST + NOISE_SECONDS:
            return True
    return False
