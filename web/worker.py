"""gunicorn's worker, but for what it says of requests that it cannot read: it would answer with a page, and quote the
request line or the header at fault, in the answer and in its log. Those may hold a key, or a signed link."""

from __future__ import annotations

import errno
import ssl
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from socket import socket
from typing import Any

from gunicorn import util
from gunicorn.http import errors
from gunicorn.workers.gthread import ThreadWorker

from web.errors import PROBLEM, Code, problem

_STATUSES: Mapping[type[Exception], HTTPStatus] = {
    errors.LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    errors.LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
}


class Worker(ThreadWorker):  # type: ignore[misc]
    """Answers what is no proper request with problem details, and logs its kind alone."""

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Called by gunicorn for each request. A client that takes nothing any more (web.events) has gone."""
        try:
            return bool(super().handle_request(req, conn))
        except TimeoutError:
            raise BrokenPipeError(errno.EPIPE, "the client does not read") from None

    def handle_error(self, req: Any, client: socket, addr: tuple[str, int] | None, exc: Exception) -> None:
        """Called by gunicorn for a request that never reached the application, or whose answer it could not send."""
        own_fault = isinstance(exc, (errors.InvalidResponseHeader, errors.InvalidResponseHeaderName))
        if isinstance(exc, (errors.ParseException, ssl.SSLError)) and not own_fault:
            self.log.warning("a request from %s was refused: %s", addr[0] if addr else "?", type(exc).__name__)
            _send(client, _STATUSES.get(type(exc), HTTPStatus.BAD_REQUEST))
        else:
            self.log.error("a request could not be handled", exc_info=exc)
            _send(client, HTTPStatus.INTERNAL_SERVER_ERROR)


def _send(client: socket, status: HTTPStatus) -> None:
    found = uuid.uuid4().hex
    code = Code.INTERNAL if status >= 500 else Code.INVALID_INPUT if status == 400 else Code.TOO_LARGE
    body = problem(status, code, "the request could not be read" if status < 500 else "the service has failed", found)
    head = [
        f"HTTP/1.1 {status} {status.phrase}", "Connection: close", f"Content-Type: {PROBLEM}",
        f"Content-Length: {len(body)}", "Cache-Control: no-store", "X-Content-Type-Options: nosniff",
        f"X-Request-ID: {found}", "", body,
    ]  # fmt: skip
    try:
        util.write_nonblock(client, "\r\n".join(head).encode())
    except OSError:
        return  # it did not wait for the answer
