"""`make record-release`: writes down what a runner of this release says to its database, for the tests of the next one.

Run it when a release is made. The file it writes is replayed by test_previous_release.py on the schemas that follow.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import event

from tasks.estimate import Lesson
from tasks.model import Adjustment as Told
from tasks.model import (
    ErrorCode,
    Event,
    Facts,
    Failure,
    Lowered,
    Note,
    Phase,
    Result,
    RunnerId,
    Task,
    Video,
)
from tasks.schema import HEAD
from tasks.store import Store
from tests.conftest import NOON, make_task

FILE = Path(__file__).parent / "previous_release.json"
RUNNER = RunnerId("host", "boot", 7, 9)
VIDEO = Video(
    width=384, height=256, fps=25.0, frames=290, duration_seconds=11.6, size_bytes=1000, sha256="0" * 64,
    video_codec="h264", audio_codec="aac",
)  # fmt: skip
DONE = Facts(result=Result("video.mp4", "poster.jpg", VIDEO))
FAILED = Facts(failure=Failure(ErrorCode.ENGINE_FAILED, "it broke", "the log"))


def smaller(task: Task) -> Facts:
    return Facts(lowered=Lowered(replace(task.params, size="384*256"), task.plan, Told("size", "a", "b", "memory")))


def ends(task: Task) -> dict[str, tuple[Event, Facts, Lesson | None]]:
    lesson = Lesson("preview/preview_cpu", 2.0, 1.5, guess=60.0, first_load=1.0)
    return {
        "complete": (Event.COMPLETE, DONE, lesson),
        "fail": (Event.FAIL, FAILED, None),
        "requeue": (Event.REQUEUE, smaller(task), None),
    }


class Recorder:
    """A store whose statements are kept, on a clock that moves a second with each look."""

    def __init__(self, folder: Path) -> None:
        self.file, self.now = folder / "avatar.db", NOON
        self.store = Store(f"sqlite:///{self.file}", folder, now=self._tick)
        self.said: list[list[Any]] = []
        event.listen(self.store._engine, "before_cursor_execute", self._note)

    def _tick(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    def _note(self, connection: object, cursor: object, sql: str, parameters: Any, *more: object) -> None:
        self.said.append([sql, list(parameters)])

    def life(self, ending: str) -> dict[str, Any]:
        """Let one task live from its claim to `ending`; return its row at each step and the statements between."""
        draft = make_task(id=f"gen_20261122_{ending}")
        task, _ = self.store.add(
            lambda ahead, now: replace(draft, submit_time=now, updated_at=now), lambda task, position: "",
            priority=int(draft.priority), max_queued=9, tenant=draft.tenant,
        )  # fmt: skip
        task = self.store.happen(task, Event.CLAIM, Facts(slot="cpu-0", profile="preview_cpu"))
        own, (happens, facts, lesson) = (task.id, task.attempt), ends(task)[ending]
        store, start = self.store, self.row(task)
        verbs: list[tuple[str, Callable[[], object]]] = [
            ("note_runner", lambda: store.note_runner(*own, RUNNER)),
            ("get", lambda: store.get(task.id)),
            (
                "report",
                lambda: store.report(
                    *own, phase=Phase.GENERATING, progress=0.5, eta_seconds=7.5, notes=[Note("no_face", "none found")]
                ),
            ),
            ("beat", lambda: store.beat(*own)),
            ("finish", lambda: store.finish(*own, happens, facts, lesson)),
        ]
        steps = [self.step(task, *verb) for verb in verbs]
        with closing(sqlite3.connect(self.file)) as db:
            return {"task": start, "steps": steps, "estimates": rows_of(db, "estimates")}

    def step(self, task: Task, name: str, verb: Callable[[], object]) -> dict[str, Any]:
        before = self.row(task)
        self.said.clear()
        verb()
        after = self.row(task)
        changed = {column: value for column, value in after.items() if value != before[column]}
        return {"verb": name, "said": list(self.said), "changed": changed}

    def row(self, task: Task) -> dict[str, Any]:
        with closing(sqlite3.connect(self.file)) as db:
            return next(row for row in rows_of(db, "tasks") if row["id"] == task.id)


def rows_of(db: sqlite3.Connection, table: str) -> list[dict[str, Any]]:
    """Return a table's rows as SQLite holds them."""
    found = db.execute(f"SELECT * FROM {table}")
    return [dict(zip((name for name, *_ in found.description), row, strict=True)) for row in found]


@contextmanager
def recorder() -> Iterator[Recorder]:
    with tempfile.TemporaryDirectory() as folder:
        made = Recorder(Path(folder))
        yield made
        made.store.close()


def record() -> dict[str, Any]:
    with recorder() as made:
        lives = [made.life(ending) for ending in ("complete", "fail", "requeue")]
    return {"head": HEAD, "lives": lives}


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    target.write_text(json.dumps(record(), indent=1) + "\n")
    print(f"{target}: what a runner of schema {HEAD} says")
