"""Reading and ending tasks: one, many, its log."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path

from flask import Response, request

from api_schema import TASK_ID, LogQuery, TaskQuery, TasksAnswer, TasksQuery
from task_manager import TaskManager, TaskUnknown, TaskView
from tasks.model import Status, Task
from utils.file_handler import PathRefused, open_under
from web import answers
from web.answers import Shown
from web.callers import current_tenant, seen_tenant
from web.errors import invalid
from web.links import Links
from web.parse import parse_query
from web.waiting import Waiting

LOG_BYTES = 2**20
"""Most bytes of a log in one answer."""

TURNED_AWAY_SECONDS = 5
"""Retry-After of a wait that was answered at once because too many wait already."""

_TASK_ID = re.compile(TASK_ID)
_CURSOR = re.compile(r"before:([1-9][0-9]{0,18})")


def known_id(task_id: str) -> str:
    """Return a well-formed task id; no row and no file is touched for any other. Raises TaskUnknown."""
    if not _TASK_ID.fullmatch(task_id):
        raise TaskUnknown
    return task_id


def show(manager: TaskManager, waiting: Waiting[Shown], links: Links, task_id: str) -> Response:
    """Answer with the task, at once or when it has changed, or with 304."""
    seconds = parse_query(TaskQuery).wait
    sent = request.if_none_match
    now, turned_away = Shown(manager.view(known_id(task_id), seen_tenant()), links), False
    if seconds is not None:
        since = now.tag

        def changed(now: Shown) -> bool:
            return not (sent.contains_weak(now.tag) if sent else now.tag == since)

        now, turned_away = waiting.until(task_id, lambda now: now.ended or changed(now), seconds, current_tenant())
    return _task_response(now, turned_away)


def _task_response(shown: Shown, turned_away: bool) -> Response:
    headers = {}
    if not shown.ended:
        headers["Retry-After"] = str(TURNED_AWAY_SECONDS if turned_away else _ask_again(shown.view))
    response = answers.respond_text(shown.body, 200, headers)
    response.set_etag(_etag(shown.view), weak=True)
    response.make_conditional(request)
    return response


def _etag(view: TaskView) -> str:
    """Return the entity tag: that of the task, and once it has ended, also how far that has been told."""
    return f"{view.tag}-{view.message.version}" if view.message else view.tag


def _ask_again(view: TaskView) -> int:
    """Return after how many seconds a client without `?wait` does well to ask again: 1 to 30, a tenth of the rest."""
    return max(1, min(30, round((view.eta_seconds or 0.0) / 10)))


def page(manager: TaskManager, links: Links) -> Response:
    """Answer with a page of tasks, newest first."""
    query = parse_query(TasksQuery)
    before = _read_cursor(query.cursor) if query.cursor else None
    views = manager.page(seen_tenant(), query.status, query.limit + 1, before)
    shown, more = views[: query.limit], len(views) > query.limit
    cursor = _cursor(shown[-1].task) if more else None
    return answers.respond(TasksAnswer(tasks=[answers.task_answer(view, links) for view in shown], next_cursor=cursor))


def _cursor(task: Task) -> str:
    return base64.urlsafe_b64encode(f"before:{task.seq}".encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> int:
    try:
        text = base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)).decode()
    except ValueError:
        text = ""
    found = _CURSOR.fullmatch(text)
    if found is None or int(found[1]) >= 2**63:
        raise invalid("cursor", "is not a next_cursor of this service")
    return int(found[1])


def delete(manager: TaskManager, links: Links, task_id: str) -> Response:
    """Cancel the task, ask it to end, or remove it."""
    view = manager.delete(known_id(task_id), seen_tenant())
    return Response(status=204) if view is None else _ending(view, links)


def cancel(manager: TaskManager, links: Links, task_id: str) -> Response:
    """Cancel the task, or ask it to end; whatever happens meanwhile, nothing is removed."""
    return _ending(manager.cancel(known_id(task_id), seen_tenant()), links)


def _ending(view: TaskView, links: Links) -> Response:
    status = 202 if view.task.status is Status.PROCESSING else 200
    return answers.respond(answers.task_answer(view, links), status)


def log(manager: TaskManager, task_id: str) -> Response:
    """Answer with the engine's log from a byte on, and tell where to go on."""
    offset = parse_query(LogQuery).offset
    tenant = seen_tenant()
    path = manager.log_file(manager.view(known_id(task_id), tenant).task)
    try:
        text, end = read_log(path, offset) if path else (b"", 0)
    except PathRefused:  # an engine put something else in its place
        manager.log_file(manager.view(task_id, tenant).task)  # or it has gone since: 410
        text, end = b"", 0
    headers = {"X-Log-Offset": str(end), "Cache-Control": "private, no-cache"}
    return Response(text, headers=headers, content_type="text/plain; charset=utf-8")


def read_log(path: Path, offset: int, most: int = LOG_BYTES) -> tuple[bytes, int]:
    """Return up to `most` bytes of a log from byte `offset`, and the offset behind them.

    A log that is shorter than `offset` is that of a new attempt, and is read from its beginning. A character whose
    last bytes are not written yet is left for the next time.
    """
    with open_under(path.parent, path.name) as file:
        if offset > os.fstat(file.fileno()).st_size:
            offset = 0
        file.seek(offset)
        text = whole_characters(file.read(most))
    return text, offset + len(text)


def whole_characters(text: bytes) -> bytes:
    for cut in range(1, min(4, len(text)) + 1):
        byte = text[-cut]
        if 0xC0 <= byte < 0xF8:  # the first byte of a character of 2 to 4 bytes
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return text[:-cut] if cut < length else text
        if not 0x80 <= byte < 0xC0:
            break
    return text
