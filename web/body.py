"""Reading bodies: JSON up to a limit, and forms whose files go to disk as they arrive.

The parts of a form are handled in the order in which they come, so that an unknown field or a file past its limit is
refused before the rest is read. What is left of a refused body is the server's to discard: it drains a little, then
closes the connection.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socket import SHUT_RD
from typing import Protocol

from flask import current_app, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Event, Field, File, MultipartDecoder, NeedData

from utils.file_handler import SavedFile, TooLarge, readable_bytes, save_stream
from web.errors import ApiError, Code, invalid, too_large
from web.parse import BODY, shown

JSON_BYTES = 2**20
FIELD_BYTES = 2**17
"""Bytes of one text field of a form; the longest metadata fit, escapes and all."""

FORM_OVERHEAD = 2**20
"""Bytes of a form beside its files: text fields, part headers, boundaries."""

MAX_PARTS = 40
_READ = 2**16


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class SentFile:
    """A file part, stored as it was sent."""

    path: Path
    saved: SavedFile


@dataclass(frozen=True, slots=True)
class Form:
    """A form: its text fields in order, and its file parts by name."""

    fields: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, SentFile] = field(default_factory=dict)


def content_type() -> str:
    """Return the type of the request's body; raise 415 unless it is JSON or a form."""
    if request.mimetype not in ("application/json", "multipart/form-data"):
        raise ApiError(Code.UNSUPPORTED_TYPE, "send application/json or multipart/form-data")
    return request.mimetype


def read_json() -> bytes:
    """Return the body. Raises ApiError past JSON_BYTES, with or without a Content-Length."""
    request.max_content_length = JSON_BYTES
    with _in_time() as stream:
        return b"".join(iter(lambda: _read(stream), b""))


def read_form(folder: Path, known: frozenset[str], files: Mapping[str, int]) -> Form:
    """Read a form; files, by name and most bytes, are stored in `folder`. Raises ApiError, StorageFull."""
    boundary = request.mimetype_params.get("boundary", "")
    if request.mimetype != "multipart/form-data":
        raise ApiError(Code.UNSUPPORTED_TYPE, "send multipart/form-data")
    if not 1 <= len(boundary) <= 200 or not boundary.isascii():
        raise invalid(BODY, "the form's Content-Type has no usable boundary")
    request.max_content_length = sum(files.values()) + FORM_OVERHEAD
    form = Form()
    with _in_time() as stream:
        events = _events(stream, boundary.encode())
        for event in events:
            if isinstance(event, File):
                _add_file(form, event, _Part(events), folder, files)
            elif isinstance(event, Field):
                _add_field(form, event, _Part(events), known, files)
    return form


@contextmanager
def _in_time() -> Iterator[Readable]:
    """Give the body, which must be there within BODY_SECONDS of the application's config in all. Raises Invalid.

    Servers hand a read over only when it is complete, so a body that drips is not seen here at all. A watchdog ends it
    at the socket: the server then takes it for one that broke off, and can still answer.
    """
    seconds, late = current_app.config["BODY_SECONDS"], threading.Event()
    environ = request.environ
    sock = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")

    def end() -> None:
        late.set()
        if sock is not None:
            with suppress(OSError):  # the client is gone already
                sock.shutdown(SHUT_RD)

    watchdog = threading.Timer(seconds, end)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield _InTime(request.stream, late)
    except Exception:
        if late.is_set():
            raise invalid(BODY, f"took longer than {seconds:g} s to arrive") from None
        raise
    finally:
        watchdog.cancel()


@dataclass(frozen=True, slots=True)
class _InTime:
    stream: Readable
    late: threading.Event

    def read(self, size: int, /) -> bytes:
        piece = self.stream.read(size)
        if self.late.is_set():  # on Linux, a socket that was shut down still yields what comes later
            raise invalid(BODY, "came too late")
        return piece


def _read(stream: Readable) -> bytes:
    try:
        return stream.read(_READ)
    except HTTPException:
        raise
    except Exception:
        # Each server has its own exceptions for a chunk that is malformed or a client that is gone.
        raise invalid(BODY, "broke off, or its chunks are malformed") from None


def _events(stream: Readable, boundary: bytes) -> Iterator[Event]:
    decoder = MultipartDecoder(boundary, max_form_memory_size=_READ * 4, max_parts=MAX_PARTS)
    ended = False
    while not ended:
        try:
            event = decoder.next_event()
            if isinstance(event, NeedData):
                decoder.receive_data(_read(stream) or None)
        except RequestEntityTooLarge:
            raise too_large(BODY, f"has more than {MAX_PARTS} parts, or a part header too long") from None
        except ValueError:
            raise invalid(BODY, "is not a complete multipart/form-data message") from None
        yield event
        ended = isinstance(event, Epilogue)


class _Part:
    """The content of the part at hand as a stream."""

    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events
        self._ended = False

    def read(self, size: int, /) -> bytes:
        # A piece may be longer than `size`: whoever reads here counts what came.
        while not self._ended:
            event = next(self._events)
            if isinstance(event, Data):
                self._ended = not event.more_data
                if event.data:
                    return event.data
        return b""


def _add_file(form: Form, event: File, part: _Part, folder: Path, files: Mapping[str, int]) -> None:
    name = event.name or ""
    if name not in files:
        raise invalid(shown(name), "must not be a file" if name else "a part has no name")
    if name in form.files:
        raise invalid(name, "is given more than once")
    try:
        sent = SentFile(folder / f"sent-{name}", save_stream(part, folder / f"sent-{name}", files[name]))
    except TooLarge as error:
        raise too_large(name, str(error)) from None
    if event.filename == "" and sent.saved.size_bytes == 0:
        sent.path.unlink()  # how browsers send a file input that was left empty
    else:
        form.files[name] = sent


def _add_field(form: Form, event: Field, part: _Part, known: frozenset[str], files: Mapping[str, int]) -> None:
    name = event.name or ""
    if name in files:
        raise invalid(name, "must be a file")
    if name not in known:
        raise invalid(shown(name), "is not a known field")
    content = bytearray()
    while piece := part.read(_READ):
        content += piece
        if len(content) > FIELD_BYTES:
            raise too_large(name, f"is longer than {readable_bytes(FIELD_BYTES)}")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise invalid(name, "is not valid UTF-8") from None
    form.fields.append((name, text.replace("\r\n", "\n")))  # forms write every newline as CR LF
