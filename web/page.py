"""The web page: its files, read once when the service starts, and what it must know before it asks the API."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flask import Flask, Response, request
from werkzeug.exceptions import NotFound

from api_schema import MAX_PROMPT, VERSION
from config_loader import Settings
from utils.media_kinds import MediaLimits
from utils.plan import SIZES

_ROOT = Path(__file__).resolve().parent.parent
_STATIC = _ROOT / "web" / "static"
_EXAMPLE = _ROOT / "samples"
_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".wav": "audio/wav",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_FACTS = "{{facts}}"
"""Where in index.html the facts stand, as the content of a <meta>."""


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    kind: str
    tag: str


class Page:
    """Holds the files in memory, so that a service whose folder is replaced by a newer release still serves its own."""

    def __init__(self, app: Flask, settings: Settings, engines: Iterable[tuple[str, str]]) -> None:
        """`engines`: name and title of each that may be asked for. Raises OSError where a file cannot be read."""
        self._app = app
        self._facts = _facts(settings, engines)
        self._index = (_STATIC / "index.html").read_text("utf-8")
        paths = {f"{path.parent.name}/{path.name}": path for kind in ("css", "js", "img") for path in _in(kind)}
        paths |= {f"example/{name}": _EXAMPLE / name for name in ("portrait.png", "speech.wav")}
        self._files = {name: _file(path.read_bytes(), path.suffix) for name, path in paths.items()}

    def index(self) -> Response:
        """Answer with the page."""
        rules = {rule.rule for rule in self._app.url_map.iter_rules()}
        facts = self._facts | {"events": "/api/v1/task/<task_id>/events" in rules}
        text = self._index.replace(_FACTS, html.escape(json.dumps(facts)))
        response = _send(_file(text.encode(), ".html"))
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Permissions-Policy"] = "microphone=(self), camera=(), geolocation=()"
        return response

    def asset(self, name: str) -> Response:
        """Answer with one of the page's own files."""
        if name not in self._files:
            raise NotFound
        return _send(self._files[name])


def _facts(settings: Settings, engines: Iterable[tuple[str, str]]) -> dict[str, object]:
    limits, media = settings.inputs, MediaLimits()
    return {
        "version": VERSION,
        "auth": settings.auth.enabled and not settings.auth.allow_anonymous,  # whether a key must be given
        "keys": settings.auth.enabled,  # whether one may be
        "sizes": SIZES,
        "engines": [{"name": name, "title": title} for name, title in engines],
        "limits": {
            "prompt": MAX_PROMPT, "image_bytes": limits.max_image_bytes, "audio_bytes": limits.max_audio_bytes,
            "image_pixels": limits.max_image_pixels, "image_min_side": media.min_image_side,
            "image_max_side": media.max_image_side, "image_aspect": media.max_aspect,
            "audio_min_seconds": media.min_audio_seconds, "audio_max_seconds": limits.max_audio_seconds,
        },
    }  # fmt: skip


def _in(folder: str) -> list[Path]:
    return sorted(path for path in (_STATIC / folder).glob("*") if path.suffix in _TYPES)


def _file(content: bytes, suffix: str) -> _File:
    return _File(content, _TYPES[suffix], hashlib.sha256(content).hexdigest()[:32])


def _send(file: _File) -> Response:
    """Send it. Browsers keep it, and ask each time whether it still holds: a new release shows at once."""
    response = Response(file.content, content_type=file.kind, headers={"Cache-Control": "no-cache"})
    response.set_etag(file.tag)
    response.make_conditional(request)
    return response
