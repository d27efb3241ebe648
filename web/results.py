"""Published files: whole, in ranges, or as an attachment. Behind nginx, who may have a file is decided here, and nginx
sends it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from flask import Response, request, send_file

from api_schema import ResultQuery
from task_manager import TaskManager
from web.callers import seen_tenant
from web.errors import ApiError, Code
from web.headers import SANDBOXED
from web.links import Links
from web.parse import parse_query
from web.tasks import known_id

TYPES: Mapping[str, str] = {
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
}
_ONE_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-[0-9]{1,18})")
_LAST_BYTES = re.compile(r"bytes=-([0-9]{1,18})")


def send(manager: TaskManager, links: Links, accel_prefix: str, task_id: str, name: str) -> Response:
    """Answer with one published file of a task, to its tenant or to whoever has a link that is good.

    With an `accel_prefix` the answer is empty, and tells nginx where below that address it finds the file.
    """
    query = parse_query(ResultQuery)
    as_attachment = query.download == "1"
    if query.signature is not None and not links.allows(task_id, name, query.expires or 0, query.signature):
        raise ApiError(Code.UNAUTHORIZED, "the link has expired or is not valid")
    tenant = seen_tenant() if query.signature is None else None
    view = manager.view(known_id(task_id), tenant)
    try:
        path = manager.result_file(view.task, name)
        # RFC 9110 has a server ignore a Range that makes no sense; several ranges at once are of no use here.
        sensible = _is_one_range(request.headers.get("Range"))
        if not sensible:
            request.environ.pop("HTTP_RANGE", None)
        else:
            _ask_for_no_more_than_all(path)
        response = _file(path, f"{task_id}{path.suffix}", as_attachment)
        if accel_prefix and sensible:  # nginx would answer some of the others 416
            response = _handed_over(response, accel_prefix + quote(str(path.relative_to(manager.folders.results))))
    except FileNotFoundError:
        manager.view(task_id, tenant)  # it may have gone since: 410, not 404
        raise ApiError(Code.NOT_FOUND, "the task has no such file") from None
    response.headers["Content-Security-Policy"] = SANDBOXED
    response.headers["Cache-Control"] = "private, no-cache"
    return response


def _handed_over(response: Response, address: str) -> Response:
    """Return an answer that nginx completes: it has the tag, the length and the ranges of its own."""
    response.close()
    kept = {name: response.headers[name] for name in ("Content-Type", "Content-Disposition")}
    return Response(headers={**kept, "X-Accel-Redirect": address})


def _file(path: Path, download_name: str, as_attachment: bool) -> Response:
    kind = TYPES.get(path.suffix, "application/octet-stream")
    return send_file(path, kind, as_attachment, download_name=download_name)


def _ask_for_no_more_than_all(path: Path) -> None:
    """Make of a range that asks for more last bytes than there are the whole file, as RFC 9110 has it."""
    found = _LAST_BYTES.fullmatch(request.environ.get("HTTP_RANGE", ""))
    if found is not None and int(found[1]) > path.stat().st_size > 0:
        request.environ["HTTP_RANGE"] = "bytes=0-"  # which Werkzeug knows how to answer


def _is_one_range(asked: str | None) -> bool:
    """Say whether the header asks for one range that could be, or for none."""
    if asked is None:
        return True
    found = _ONE_RANGE.fullmatch(asked)
    return found is not None and not (found[1] and found[2] and int(found[1]) > int(found[2]))
