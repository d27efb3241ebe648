"""A service for visitors of the page, one for all tests of a module."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import jwt
from playwright.sync_api import Browser

from tests.e2e.browser import Visit, visit
from tests.e2e.conftest import Service, engine_table, fake_row, write_portrait, write_voice

JWT_SECRET = "secret-of-the-page-tests-0123456789"


@dataclass
class Studio:
    """A service that asks for credentials; visitors are tenants.

    Beside the preview it has engines that talk without end, fail, copy, and get on until `go` is there.
    """

    run: Service
    browser: Browser
    portrait: Path
    voice: Path
    go: Path
    visitors: Iterator[int] = field(default_factory=count)
    uploads: tuple[str, str] | None = None  # of the visitor that is in

    def key(self) -> str:
        """Return the credentials of a tenant of its own."""
        claims = {"exp": int(time.time()) + 3600, "sub": "u", "tenant": f"visitor-{next(self.visitors)}"}
        return jwt.encode(claims, JWT_SECRET, "HS256")

    @contextmanager
    def visit(self, *failures: str, **context: Any) -> Iterator[Visit]:
        """Let a visitor in who has given a key; `run` asks as they do, and nothing of theirs stays open."""
        key, self.uploads = self.key(), None
        self.run.http.headers = {"Authorization": f"Bearer {key}"}
        try:
            with visit(self.browser, self.run.url, failures, key, **context) as guest:
                yield guest
        finally:
            self.end_tasks()

    def end_tasks(self) -> None:
        tasks = self.run.call("GET", "/api/v1/tasks?status=queued,processing&limit=200")[1]["tasks"]
        for task in tasks:  # newest first, so that none of them starts
            self.run.call("POST", f"/api/v1/task/{task['task_id']}/cancel")  # or it has just ended, and stays
        for task in tasks[-1:]:
            self.run.ended(task["task_id"])

    def submit(self, engine: str, **fields: Any) -> str:
        if self.uploads is None:
            self.uploads = self.run.upload("image", self.portrait), self.run.upload("audio", self.voice)
        return str(self.run.submit(*self.uploads, engine=engine, **fields)["task_id"])


@contextmanager
def opened(folder: Path, ready_video: Path, browser: Browser) -> Iterator[Studio]:
    """Open one with its data in `folder`."""
    go = folder / "go"
    talks = fake_row(
        folder, ready_video, "chatter", steps=3, steps_reason="it knows no more", estimate={"load_seconds": 85}
    )
    settings = engine_table(
        folder,
        talks=talks,
        breaks=fake_row(folder, ready_video, "fail"),
        copies=fake_row(folder, ready_video),
        paced=fake_row(folder, ready_video, "when_told", env={"FAKE_GO": str(go)}, estimate={"seconds_per_frame": 1}),
    )
    auth = {"AVATAR_AUTH__ENABLED": "true", "AVATAR_AUTH__JWT_SECRET": JWT_SECRET}
    limits = {"AVATAR_INPUTS__MAX_IMAGE_BYTES": "300000"}
    run = Service(folder, {**settings, **auth, **limits}, workers=1)
    inputs = folder / "in"
    try:
        run.start()
        yield Studio(run, browser, write_portrait(inputs / "portrait.png"), write_voice(inputs / "voice.wav"), go)
    finally:
        run.clean_up()
