"""What every request gets: an id that is on its answer and on all its log lines, and one line of access log."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import uuid
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TextIO, cast

from flask import Flask, Request, Response, has_request_context, request

access_log = logging.getLogger("access")

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class ApiRequest(Request):
    """A request that knows its id and its start."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.started = time.monotonic()

    @cached_property
    def id(self) -> str:
        """The client's X-Request-ID where it is a sane one, else a new one."""
        sent = self.headers.get("X-Request-ID", "")
        return sent if _SANE_ID.fullmatch(sent) else uuid.uuid4().hex


def request_id() -> str:
    """Return the id of the request being answered."""
    return cast(ApiRequest, request).id


def register(app: Flask) -> None:
    """Tell the id in every answer of `app`, and log each."""
    app.request_class = ApiRequest
    app.after_request(_finish)


def _finish(response: Response) -> Response:
    current = cast(ApiRequest, request)
    response.headers["X-Request-ID"] = current.id
    route = current.url_rule.rule if current.url_rule else None
    facts = {
        "method": current.method, "route": route, "status": response.status_code,
        "duration_ms": round((time.monotonic() - current.started) * 1000, 1),
    }  # fmt: skip
    access_log.info("request", extra={"facts": facts})
    return response


# --- log lines --------------------------------------------------------------------------------------------------------


class JsonFormatter(logging.Formatter):
    """One JSON object a line; within a request it holds the request's id."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON; whatever was said by others is escaped and stays on its line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname, "logger": record.name, "message": record.getMessage(),
        }  # fmt: skip
        line |= getattr(record, "facts", {})
        if has_request_context():
            line["request_id"] = request_id()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the moment of writing."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(JsonFormatter())

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def configure_logging(level: str) -> None:
    """Write log lines of `level` and above to stderr as JSON. A second call changes the level alone."""
    root = logging.getLogger()
    root.setLevel(level)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if not any(isinstance(handler, _StderrHandler) for handler in root.handlers):
        root.addHandler(_StderrHandler())
