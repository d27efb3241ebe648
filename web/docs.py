"""The OpenAPI document as a page: Swagger UI from its package, shown by files of our own, from no other host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from flask import Response, send_file
from werkzeug.exceptions import NotFound

from task_manager import TaskManager
from web.openapi import document

_OWN = Path(__file__).resolve().parent / "static" / "docs"
_PACKAGE = Path(str(files("flask_swagger_ui"))) / "dist"
_FILES: Mapping[str, tuple[Path, str]] = {
    "start.js": (_OWN, "text/javascript"),
    "docs.css": (_OWN, "text/css"),
    "swagger-ui-bundle.js": (_PACKAGE, "text/javascript"),
    "swagger-ui.css": (_PACKAGE, "text/css"),
}
# Swagger UI draws its arrows from data: URLs. The styles that its script sets on elements need no leave.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def openapi(manager: TaskManager, secured: bool) -> Response:
    """Answer with the document."""
    return Response(
        json.dumps(document(manager.engine_names(), secured)),
        content_type="application/json",
        headers={"Cache-Control": "no-cache"},
    )


def page() -> Response:
    """Answer with the page."""
    response = send_file(_OWN / "index.html", "text/html")
    response.headers["Content-Security-Policy"] = _POLICY
    return response


def asset(name: str) -> Response:
    """Answer with one of the page's files; browsers ask each time whether one of ours still holds."""
    if name not in _FILES:
        raise NotFound
    folder, kind = _FILES[name]
    return send_file(folder / name, kind, max_age=3600 if folder == _PACKAGE else None)
