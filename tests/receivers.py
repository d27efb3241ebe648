"""A receiver of webhooks on loopback, which answers as a test says and keeps what it was told."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Told:
    """One request, and the status it was answered (None: it never was)."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int | None

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    def verifies(self, secret: str) -> bool:
        """Say whether a receiver that knows `secret` takes this request."""
        try:
            return bool(Webhook(secret).verify(self.body, dict(self.headers)))
        except WebhookVerificationError:
            return False


Answer = Callable[[str, int], int | None]
"""Of a path and how often it was asked before, the status; None: never, while the receiver runs."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # one more than the usual 5 that come while it is stalled is told only a second later


class Receiver:
    """Answers each request by `answer`; by 204 where there is none."""

    def __init__(self, answer: Answer | None) -> None:
        self._answer = answer or (lambda path, before: 204)
        self._changed = threading.Condition()
        self.told: list[Told] = []
        self.ending = threading.Event()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver.take(self.path, {key.lower(): text for key, text in self.headers.items()}, body)
                if status is None:
                    receiver.ending.wait(WAIT_SECONDS)
                    return
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def take(self, path: str, headers: Mapping[str, str], body: bytes) -> int | None:
        with self._changed:
            status = self._answer(path, len(self.at(path)))
            self.told.append(Told(path, headers, body, status))
            self._changed.notify_all()
        return status

    def at(self, path: str) -> list[Told]:
        return [one for one in self.told if one.path == path]

    def wait(self, number: int, path: str = "/hook") -> list[Told]:
        """Return what `path` was told once that is `number` requests; fail loudly when it does not come to that."""
        deadline = time.monotonic() + WAIT_SECONDS
        with self._changed:
            while len(found := self.at(path)) < number:
                assert self._changed.wait(deadline - time.monotonic()), f"{len(found)} of {number} requests to {path}"
            return found

    def close(self) -> None:
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@contextmanager
def receiver(answer: Answer | None = None) -> Iterator[Receiver]:
    """Run a receiver."""
    made = Receiver(answer)
    try:
        yield made
    finally:
        made.close()
