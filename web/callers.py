"""Who calls, and whether they may.

As long as there is no authentication, the service is for programs on its own machine. A request that came through a
proxy, or that names another host, came from somewhere else: loopback behind a proxy is the whole internet, and a page
in a browser on this machine can aim a name of its own at 127.0.0.1.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

from flask import Flask, request

from config_loader import ConfigError, Settings
from web.errors import ApiError, Code

_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9.-]+))(?::[0-9]{1,5})?")


def current_tenant() -> str:
    """Return the tenant that the request belongs to."""
    return "default"


def refuse_open_address(settings: Settings) -> None:
    """Raise ConfigError for an address that others can reach."""
    if not is_loopback(settings.host):
        raise ConfigError(
            f"host: {settings.host!r} can be reached from other machines, and the service has no authentication; "
            "set host (AVATAR_HOST) to 127.0.0.1, ::1 or localhost"
        )


def register(app: Flask) -> None:
    """Refuse requests from elsewhere."""
    app.before_request(_refuse_strangers)


def _refuse_strangers() -> None:
    if any(name == "Forwarded" or name.startswith("X-Forwarded-") for name, _ in request.headers):
        raise ApiError(Code.FORBIDDEN, "requests through a proxy are refused while authentication is off")
    host = _HOST.fullmatch(request.environ.get("HTTP_HOST", ""))
    if host is None or not is_loopback(host["v6"] or host["name"]):
        raise ApiError(Code.FORBIDDEN, "the Host header must be a loopback address while authentication is off")
    peer = request.environ.get("REMOTE_ADDR", "")
    if peer and not is_loopback(peer):
        raise ApiError(Code.FORBIDDEN, "other machines are refused while authentication is off")


def is_loopback(host: str) -> bool:
    """Tell whether `host` is an address or name that only this machine can reach."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
