"""What browsers are told: headers of every answer, and which other origins' pages may read answers (CORS).

Answers carry no cookies and no credentials of the browser, so a page of a configured origin can do no more than a
program with the same key.
"""

from __future__ import annotations

from flask import Flask, Response, request
from werkzeug.exceptions import MethodNotAllowed

from config_loader import Settings

SANDBOXED = "sandbox; default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'"
"""Policy of files that users made: a browser shows the picture or the video, and runs nothing in it."""

ALLOWED_HEADERS = (
    "Authorization, X-API-Key, Content-Type, Idempotency-Key, If-None-Match, If-Range, Last-Event-ID, Range, "
    "X-Request-ID"
)
"""All that means something here."""

EXPOSED_HEADERS = "ETag, Location, RateLimit, RateLimit-Policy, Retry-After, X-Log-Offset, X-Request-ID"

_EVERY_ANSWER = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # a link to a result carries its permission
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_YEAR_SECONDS = 31_536_000
_PREFLIGHT_SECONDS = 600


def register(app: Flask, settings: Settings) -> None:
    """Add the headers to every answer of `app`; answer preflights of the configured origins."""
    origins = frozenset(settings.cors.origins)

    def protect(response: Response) -> Response:
        for name, value in _EVERY_ANSWER.items():
            response.headers.setdefault(name, value)
        if request.is_secure:
            response.headers["Strict-Transport-Security"] = f"max-age={_YEAR_SECONDS}"
        if origins:
            _share(response, origins)
        return response

    app.after_request(protect)
    if origins:
        app.before_request(lambda: _preflight(origins))


def _share(response: Response, origins: frozenset[str]) -> None:
    response.vary.add("Origin")
    if request.endpoint == "get_result":
        # A <video> of another page sends no Origin; who may see the file is decided by its link.
        response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    origin = request.headers.get("Origin")
    if origin in origins:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS


def _preflight(origins: frozenset[str]) -> Response | None:
    """Answer what a browser asks before it lets a page send a request; None for any other request."""
    asked = request.headers.get("Access-Control-Request-Method")
    if request.method != "OPTIONS" or asked is None or request.headers.get("Origin") not in origins:
        return None
    found = request.routing_exception
    if not isinstance(found, MethodNotAllowed):
        return None  # no such address
    response = Response(status=204)
    response.headers["Access-Control-Allow-Methods"] = ", ".join(sorted(found.valid_methods or ()))
    response.headers["Access-Control-Allow-Headers"] = ALLOWED_HEADERS
    response.headers["Access-Control-Max-Age"] = str(_PREFLIGHT_SECONDS)
    response.vary.update(("Access-Control-Request-Method", "Access-Control-Request-Headers"))
    return response
