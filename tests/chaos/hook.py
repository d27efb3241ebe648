"""A receiver of webhooks in a chaos round: it fails at times, and notes what it is told and how the row is then."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from tests.receivers import Receiver

SETTINGS = {
    "AVATAR_WEBHOOKS__ALLOWED_NETWORKS": "127.0.0.0/8", "AVATAR_WEBHOOKS__TIMEOUT_SECONDS": "3",
    "AVATAR_WEBHOOKS__RETRY_SECONDS": ",".join(["0.3"] * 60),
}  # fmt: skip


class Hook(Receiver):
    """Fails the first message of some tasks, and all while it is `down`."""

    def __init__(self, note: Callable[..., None], row: Callable[[str], tuple[Any, ...] | None]) -> None:
        self.down, self._note, self._row = False, note, row
        super().__init__(self._status)

    def _status(self, path: str, before: int) -> int:
        return 503 if self.down or (before == 0 and zlib.crc32(path.encode()) % 3 == 0) else 204

    def take(self, path: str, headers: Mapping[str, str], body: bytes) -> int | None:
        told = json.loads(body)["data"]
        task, status = told["task_id"], super().take(path, headers, body)
        row = None
        with suppress(sqlite3.OperationalError):  # where the disk has no room for the write-ahead log's index
            row = self._row(task)
        self._note(
            "told", task=task, id=headers["webhook-id"], said=told["status"], row=row and row[0], taken=status == 204
        )
        return status
