"""The life of one task as server-sent events: `task`, the task as JSON at each change, and `log`, lines of its log.

The id of each event says how far its reader has come: the tag of the task as last told, then attempt and byte of the
log. Whoever comes again with it gets what came after, nothing twice. Where a new attempt begins, the rest of the old
one's log comes before the `task` that tells of it, and that comes before the new log. The `task` that tells of the end
comes last, after all of the log; who has seen it is answered 204, upon which an EventSource asks no more.
"""

from __future__ import annotations

import logging
import re
import secrets
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from flask import Response, request, stream_with_context
from sqlalchemy.exc import DBAPIError

from task_manager import TaskGone, TaskManager, TaskUnknown, TaskView
from web.answers import Shown
from web.callers import current_tenant, seen_tenant, still_admitted
from web.errors import ApiError, Code
from web.log_lines import read_lines
from web.tasks import TURNED_AWAY_SECONDS, known_id
from web.waiting import Place, Waiting

log = logging.getLogger("web")

HEARTBEAT = b":\n\n"
"""A comment: proxies see that the connection lives, and the server whether its client does."""

_RETRY_MS = (1000, 3000)
"""After how long clients come again; each is told another time, so that after a restart not all come at once."""

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_TYPE = "text/event-stream; charset=utf-8"
_ID = re.compile(r"([0-9]{1,18}-[0-9]{1,18}|):([0-9]{1,9}):([0-9]{1,18})")
"""The tag is missing where the log of an ended task comes before anything else was told."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a reader has come: the tag last told, and attempt and byte of the log. It is the id of an event."""

    tag: str = ""
    attempt: int = 0
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.tag}:{self.attempt}:{self.offset}"


def position_of(event_id: str, view: TaskView) -> Position:
    """Return the position that an id stands for: the beginning, for one that no event of this task can have had.

    A browser that came with such an id could not be helped by an error: it would neither show it nor ask otherwise.
    """
    found = _ID.fullmatch(event_id)
    if found is None or int(found[2]) > view.task.attempt:
        return Position()
    return Position(found[1], int(found[2]), int(found[3]))


def stream(manager: TaskManager, waiting: Waiting[Shown], heartbeat_seconds: float, task_id: str) -> Response:
    """Answer with the events from where the client has come, or with 204 when it has seen the end."""
    view = manager.view(known_id(task_id), seen_tenant())
    at = position_of(request.headers.get("Last-Event-ID", ""), view)
    if view.task.status.ended and at.tag == view.tag:
        return Response(status=204, headers=_HEADERS)
    if request.method == "HEAD":
        return Response(headers=_HEADERS, content_type=_TYPE)
    place = waiting.take(task_id, current_tenant())
    if place is None:
        text = "too many requests are held open; ask again later, or without waiting"
        raise ApiError(Code.BUSY, text, retry_after=TURNED_AWAY_SECONDS)
    sock = request.environ.get("gunicorn.socket") or request.environ.get("werkzeug.socket")
    client = _Client(sock, heartbeat_seconds)
    client.limit_sending(2 * heartbeat_seconds)
    told = _Stream(place, client, lambda attempt: manager.log_path(task_id, attempt), at, heartbeat_seconds)
    response = Response(stream_with_context(told.chunks()), headers=_HEADERS, content_type=_TYPE)
    response.call_on_close(place.leave)
    return response


class _Client:
    """The other end: who asks, and its socket as far as the server lets it be seen."""

    def __init__(self, sock: object, seconds: float) -> None:
        """`seconds`: how often it is found out anew whether it may read."""
        self._socket = sock if type(sock) is socket.socket else None
        self._seconds, self._admitted_at = seconds, time.monotonic()

    def limit_sending(self, seconds: float) -> None:
        """Let a send fail that is not taken for so long, and one that the other host never acknowledges."""
        if self._socket is None:
            return
        self._socket.settimeout(seconds)  # of this answer: gunicorn sets it anew for each request
        if self._socket.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))

    def stays(self) -> bool:
        """Say whether it is there, and may still read: a key may be revoked, a token runs out."""
        if self._has_gone():
            return False
        now = time.monotonic()
        if now >= self._admitted_at + self._seconds:
            self._admitted_at = now
            return still_admitted()
        return True

    def _has_gone(self) -> bool:
        """Say whether it closed the connection: the first that is sent upon that is lost without an error."""
        if self._socket is None:
            return False
        look = select.poll()
        look.register(self._socket, getattr(select, "POLLRDHUP", 0))
        return bool(look.poll(0))


class _Stream:
    """Tells one client."""

    def __init__(
        self, place: Place[Shown], client: _Client, log_path: Callable[[int], Path], at: Position, heartbeat: float
    ) -> None:
        self._place, self._client, self._log_path, self._at = place, client, log_path, at
        self._heartbeat = heartbeat
        self._log_size = 0

    def chunks(self) -> Iterator[bytes]:
        """Yield what is to be sent, until the end of the task, of the service, or of the record."""
        low, high = _RETRY_MS
        yield f"retry: {low + secrets.randbelow(high - low)}\n\n".encode()
        try:
            yield from self._until_the_end()
        except (TaskGone, TaskUnknown):
            return  # who comes again is told so
        except (DBAPIError, OSError):
            # The headers are sent; who comes again with its last id gets the proper answer, or what it missed.
            log.warning("a stream of events broke off", exc_info=True)

    def _until_the_end(self) -> Iterator[bytes]:
        silent_since = time.monotonic()
        while True:
            seen = self._place.see()
            for event in self._news(seen):
                yield event
                silent_since = time.monotonic()
            if seen.ended:
                return
            woken = self._place.wait(silent_since + self._heartbeat - time.monotonic(), self._log_now())
            if self._place.stopped or not self._client.stays():
                return
            if not woken:
                yield HEARTBEAT
                silent_since = time.monotonic()

    def _log_now(self) -> tuple[Path, int]:
        return self._log_path(self._at.attempt), self._log_size

    def _news(self, seen: Shown) -> Iterator[bytes]:
        """Yield what the client has not been told."""
        attempt = seen.view.task.attempt
        if attempt != self._at.attempt:
            yield from self._log(complete=True)
        if not seen.ended:
            yield from self._task(seen)
        if attempt != self._at.attempt:
            self._at = replace(self._at, attempt=attempt, offset=0)
        yield from self._log(seen.ended)
        if seen.ended:
            yield from self._task(seen)

    def _task(self, seen: Shown) -> Iterator[bytes]:
        if seen.tag != self._at.tag:
            self._at = replace(self._at, tag=seen.tag)
            yield self._event("task", [seen.body])

    def _log(self, complete: bool) -> Iterator[bytes]:
        path = self._log_path(self._at.attempt)
        while True:
            piece = read_lines(path, self._at.offset, complete)
            self._at, self._log_size = replace(self._at, offset=piece.end), piece.size
            if not piece.lines:
                return
            yield self._event("log", piece.lines)

    def _event(self, name: str, lines: Iterable[str]) -> bytes:
        data = "".join(f"data: {line}\n" for line in lines)
        return f"event: {name}\nid: {self._at}\n{data}\n".encode()
