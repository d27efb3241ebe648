"""Every error that a client sees: RFC 9457 problem details, shaped here and nowhere else.

`HTTP` is the one table from what went wrong to the status, and `_TRANSLATIONS` the one from what the layers below raise
to what the client is told. A handler never catches anything.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping
from enum import StrEnum
from http import HTTPStatus

from flask import Flask, Response, request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import DBAPIError
from werkzeug.exceptions import HTTPException, SecurityError

from task_manager import AlreadyEnded, ResultNotReady, TaskGone, TaskUnknown
from tasks.admission import NoHardware, UnknownEngine
from tasks.disk import is_full
from tasks.idempotency import KeyReused
from tasks.model import LostRace
from tasks.quotas import QuotaExceeded
from tasks.store import QueueFull
from tasks.trouble import Trouble, trouble_of
from utils.file_handler import StorageFull, TooLarge
from utils.media import MediaUnavailable
from web.requests import request_id

log = logging.getLogger("web")

PROBLEM = "application/problem+json"
MAX_ERRORS = 20
"""Field errors in one answer; a body of 100,000 unknown fields is not sent back."""

QUEUE_RETRY_SECONDS = 30
BUSY_RETRY_SECONDS = 5
DRAIN_RETRY_SECONDS = 60
DATABASE_RETRY_SECONDS = 60


class Code(StrEnum):
    """What went wrong, for programs: `error_code` of a problem."""

    INVALID_INPUT = "invalid_input"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    NOT_READY = "not_ready"
    ALREADY_ENDED = "already_ended"
    GONE = "gone"
    TOO_LARGE = "too_large"
    UNSUPPORTED_TYPE = "unsupported_type"
    RANGE_NOT_SATISFIABLE = "range_not_satisfiable"
    KEY_REUSED = "key_reused"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXCEEDED = "quota_exceeded"
    INTERNAL = "internal"
    QUEUE_FULL = "queue_full"
    BUSY = "busy"
    NO_HARDWARE = "no_hardware"
    DRAINING = "draining"
    DATABASE_UNAVAILABLE = "database_unavailable"
    STORAGE_FULL = "storage_full"


HTTP: Mapping[Code, HTTPStatus] = {
    Code.INVALID_INPUT: HTTPStatus.BAD_REQUEST,
    Code.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    Code.FORBIDDEN: HTTPStatus.FORBIDDEN,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.METHOD_NOT_ALLOWED: HTTPStatus.METHOD_NOT_ALLOWED,
    Code.NOT_READY: HTTPStatus.CONFLICT,
    Code.ALREADY_ENDED: HTTPStatus.CONFLICT,
    Code.GONE: HTTPStatus.GONE,
    Code.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.UNSUPPORTED_TYPE: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    Code.RANGE_NOT_SATISFIABLE: HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    Code.KEY_REUSED: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.RATE_LIMITED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.QUOTA_EXCEEDED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.QUEUE_FULL: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.BUSY: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.NO_HARDWARE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.DRAINING: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.DATABASE_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.STORAGE_FULL: HTTPStatus.INSUFFICIENT_STORAGE,
}


class FieldError(BaseModel):
    """One field of a request and what is wrong with it."""

    model_config = ConfigDict(frozen=True)
    field: str
    message: str


class Problem(BaseModel):
    """The body of every error (RFC 9457)."""

    type: str = Field(description="`about:blank`: `error_code` tells problems of one status apart.")
    title: str
    status: int
    detail: str
    error: str = Field(description="`detail` again, for simple clients.")
    error_code: Code
    request_id: str
    errors: list[FieldError] | None = Field(None, description="For invalid input: each field and what is wrong.")


class ApiError(Exception):
    """An answer other than success. `detail` is for people; it holds no path, no secret and no line break."""

    def __init__(
        self, code: Code, detail: str, *, errors: tuple[FieldError, ...] = (), retry_after: int | None = None
    ) -> None:
        super().__init__(detail)
        self.code, self.detail, self.errors, self.retry_after = code, detail, errors, retry_after


class Invalid(ApiError):
    """The request is at fault; each error names its field."""

    def __init__(self, *errors: FieldError) -> None:
        first = f"{errors[0].field}: {errors[0].message}"
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(Code.INVALID_INPUT, first + more, errors=errors[:MAX_ERRORS])


def invalid(field: str, message: str) -> Invalid:
    return Invalid(FieldError(field=field, message=message))


def too_large(field: str, message: str) -> ApiError:
    return ApiError(Code.TOO_LARGE, f"{field}: {message}", errors=(FieldError(field=field, message=message),))


def _database(error: DBAPIError) -> ApiError:
    """Say what keeps the database from its work; a statement that is at fault is a bug."""
    match trouble_of(error):
        case None:
            raise error
        case Trouble.FULL:
            return _storage_full()
        case Trouble.BUSY:
            return ApiError(Code.BUSY, "the database is busy; try again", retry_after=BUSY_RETRY_SECONDS)
    log.error("the database cannot be used", exc_info=error)
    return ApiError(
        Code.DATABASE_UNAVAILABLE, "the database cannot be used at present; the health tells why",
        retry_after=DATABASE_RETRY_SECONDS,
    )  # fmt: skip


def _system(error: OSError) -> ApiError:
    """Say what the machine is short of; any other error of the system is a bug."""
    if is_full(error):
        return _storage_full()
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EROFS):
        log.error("the system is short of something", exc_info=error)
        return ApiError(Code.BUSY, "the server is short of resources; try again", retry_after=BUSY_RETRY_SECONDS)
    raise error


def _storage_full() -> ApiError:
    return ApiError(Code.STORAGE_FULL, "no storage is left on the server")


def _quota(error: Exception) -> ApiError:
    return ApiError(Code.QUOTA_EXCEEDED, str(error), retry_after=getattr(error, "retry_seconds", None))


_Translation = Callable[[Exception], ApiError]
_TRANSLATIONS: Mapping[type[Exception], _Translation] = {
    TaskUnknown: lambda error: ApiError(Code.NOT_FOUND, "there is no such task"),
    TaskGone: lambda error: ApiError(Code.GONE, "the task was deleted or has expired"),
    ResultNotReady: lambda error: ApiError(Code.NOT_READY, "the task has no result yet"),
    AlreadyEnded: lambda error: ApiError(Code.ALREADY_ENDED, str(error)),
    UnknownEngine: lambda error: invalid("engine", str(error)),
    NoHardware: lambda error: ApiError(Code.NO_HARDWARE, str(error)),
    KeyReused: lambda error: ApiError(Code.KEY_REUSED, "this Idempotency-Key was used with another request"),
    QueueFull: lambda error: ApiError(
        Code.QUEUE_FULL, "as many tasks wait as are allowed; try again later", retry_after=QUEUE_RETRY_SECONDS
    ),
    QuotaExceeded: _quota,
    TooLarge: lambda error: ApiError(Code.TOO_LARGE, str(error)),
    StorageFull: lambda error: _storage_full(),
    MediaUnavailable: lambda error: ApiError(
        Code.BUSY, "media cannot be decoded at present; try again", retry_after=BUSY_RETRY_SECONDS
    ),
    SecurityError: lambda error: ApiError(
        Code.INVALID_INPUT, "the Host header names no host of this service: http.trusted_hosts lists them"
    ),
    LostRace: lambda error: ApiError(
        Code.BUSY, "the task changes too quickly; try again", retry_after=BUSY_RETRY_SECONDS
    ),
}

_DETAILS: Mapping[int, tuple[Code, str]] = {
    400: (Code.INVALID_INPUT, "the request is malformed"),
    403: (Code.FORBIDDEN, "this is not allowed"),
    404: (Code.NOT_FOUND, "there is nothing at this address"),
    405: (Code.METHOD_NOT_ALLOWED, "this address does not take this method"),
    413: (Code.TOO_LARGE, "the request is too large"),
    415: (Code.UNSUPPORTED_TYPE, "the body has a type that this address does not take"),
    416: (Code.RANGE_NOT_SATISFIABLE, "the range lies outside the file"),
    429: (Code.RATE_LIMITED, "too many requests; try again later"),
}
_KEPT_HEADERS = ("Allow", "Content-Range")


def register(app: Flask) -> None:
    """Answer every exception of `app` with problem details."""
    app.register_error_handler(ApiError, respond)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(DBAPIError, lambda error: respond(_database(error)))
    app.register_error_handler(OSError, lambda error: respond(_system(error)))
    for kind, translate in _TRANSLATIONS.items():
        app.register_error_handler(kind, _translated(translate))
    app.register_error_handler(Exception, _bug)


def respond(error: ApiError) -> Response:
    """Shape an error as the response."""
    status = HTTP[error.code]
    body = problem(status, error.code, error.detail, request_id(), error.errors)
    response = Response(body, status, content_type=PROBLEM)
    response.headers["Cache-Control"] = "no-store"
    if error.code is Code.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def problem(status: HTTPStatus, code: Code, detail: str, request_id: str, errors: tuple[FieldError, ...] = ()) -> str:
    """Return problem details as JSON."""
    return Problem(
        type="about:blank", title=status.phrase, status=status, detail=detail, error=detail, error_code=code,
        request_id=request_id, errors=list(errors) or None,
    ).model_dump_json(exclude_none=True)  # fmt: skip


def _translated(translate: _Translation) -> Callable[[Exception], Response]:
    return lambda error: respond(translate(error))


def _http(error: HTTPException) -> Response:
    """Shape what Flask and Werkzeug raise; their texts and pages are not used."""
    code, detail = _DETAILS.get(error.code or 500, (Code.INVALID_INPUT, "the request is malformed"))
    if (error.code or 500) >= 500:
        return _bug(error)
    response = respond(ApiError(code, detail))
    kept = dict(error.get_headers(request.environ))
    response.headers.extend({name: kept[name] for name in _KEPT_HEADERS if name in kept})
    return response


def _bug(error: Exception) -> Response:
    log.error("unexpected error", exc_info=error)
    return respond(ApiError(Code.INTERNAL, "the service has failed; its log tells more under this request_id"))
