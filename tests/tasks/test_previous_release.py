"""A runner of the release before goes on working while, and after, the database is brought to this release."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tasks.model import Phase, Status
from tasks.schema import HEAD
from tasks.store import Store
from tests.tasks.migrations import bring
from tests.tasks.record_release import FILE, RUNNER, record, rows_of
from tests.tasks.test_upgrade import REVISIONS

ENDS = {"complete": Status.COMPLETED, "fail": Status.FAILED, "requeue": Status.QUEUED}


def insert(db: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    columns, holes = ", ".join(f'"{name}"' for name in row), ", ".join("?" * len(row))
    db.execute(f"INSERT INTO {table} ({columns}) VALUES ({holes})", list(row.values()))


def say(db: sqlite3.Connection, said: list[list[Any]]) -> None:
    """Execute what a runner said; each of its updates must meet its row."""
    for sql, parameters in said:
        cursor = db.execute(sql, parameters)
        if sql.startswith("SELECT") and "FROM tasks" in sql:
            assert len(cursor.fetchall()) == 1
        elif sql.startswith("UPDATE"):
            assert cursor.rowcount == 1, sql
    db.execute("COMMIT")


def replay(path: Path, recorded: dict[str, Any], migrate_after: int) -> None:
    """Let the recorded runners work, each on its own connection, and bring the database to HEAD in between."""
    bring(path, recorded["head"])
    for life in recorded["lives"]:
        with closing(sqlite3.connect(path, isolation_level=None)) as runner:
            insert(runner, "tasks", life["task"])
            expected = dict(life["task"])
            for number, step in enumerate(life["steps"]):
                if number == migrate_after:
                    bring(path, HEAD)
                say(runner, step["said"])
                expected |= step["changed"]
                row = next(row for row in rows_of(runner, "tasks") if row["id"] == expected["id"])
                assert {name: row[name] for name in expected} == expected, step["verb"]
            assert rows_of(runner, "estimates") == life["estimates"]


@pytest.mark.parametrize("migrate_after", [0, 2, 4], ids=["before", "between", "at its end"])
def test_a_runner_of_the_release_before_tells_beats_and_ends_on_the_new_schema(
    tmp_path: Path, migrate_after: int
) -> None:
    """Replays what a runner of an earlier schema said, word for word, and compares the rows with those it left then.

    `make record-release` renews the recording: run it at each release, on that release's code, so that the migrations
    after it are held against it.
    """
    recorded = json.loads(FILE.read_text())
    assert recorded["head"] in REVISIONS[:-1]
    path = tmp_path / "avatar.db"
    replay(path, recorded, migrate_after)
    store = Store(f"sqlite:///{path}", tmp_path)
    for ending, status in ENDS.items():
        task = store.get(f"gen_20261122_{ending}")
        assert (task.status, task.runner) == (status, None if status is Status.QUEUED else RUNNER)
        assert [note.code for note in task.notes] == ["no_face"]
    assert store.get("gen_20261122_complete").phase is Phase.DONE
    assert store.learned("preview/preview_cpu").samples == 1
    store.close()


def test_the_recording_can_be_renewed(tmp_path: Path) -> None:
    recorded = json.loads(json.dumps(record()))
    assert recorded["head"] == HEAD
    assert [step["verb"] for step in recorded["lives"][0]["steps"]] == [
        step["verb"] for step in json.loads(FILE.read_text())["lives"][0]["steps"]
    ]
    replay(tmp_path / "avatar.db", recorded, 0)
