"""Who calls, and whether they may: decided once for a request, before anything of it is read.

While there is no authentication, the service is for programs on its own machine. A request that came through a proxy,
or that names another host, came from somewhere else: loopback behind a proxy is the whole internet, and a page in a
browser on this machine can aim a name of its own at 127.0.0.1.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from typing import Literal

from flask import Flask, g, request

from config_loader import AuthSettings, ConfigError, Settings
from tasks.keys import ApiKeys
from tasks.store import utc_now
from utils.setting_types import Networks
from web.auth import Authenticator, Caller, CannotTell, Refused, credentials
from web.errors import ApiError, Code

log = logging.getLogger("auth")

Need = Literal["generate", "read", "metrics", "link", "open"]
"""What a route asks of its caller: a scope, `metrics` one that an address may stand for; `read` or a signed link; or
nothing, but what is sent must be good."""

_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9.-]+))(?::[0-9]{1,5})?")
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_PROXIES = ("Forwarded", "Via", "X-Real-Ip", "X-Client-Ip", "Cf-Connecting-Ip", "True-Client-Ip")
"""Headers by which a proxy is known that sends no X-Forwarded-*, as WSGI writes their names."""

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_ASK_AGAIN_SECONDS = 15


def current_caller() -> Caller | None:
    """Return who calls; None for someone unknown, at an address that asks for no credentials."""
    caller: Caller | None = g.caller
    return caller


def current_tenant() -> str:
    """Return the tenant that what the request makes belongs to."""
    return _known().tenant


def seen_tenant() -> str | None:
    """Return the tenant whose things the request may see and end; None: those of all."""
    return _known().sees


def still_admitted() -> bool:
    """Say whether the request, long under way, would be let in again with what it may see."""
    authenticator: Authenticator | None = g.get("authenticator")
    if authenticator is None:
        return True  # the address asks for nothing
    try:
        return authenticator.caller(request) == current_caller()
    except Refused:
        return False
    except CannotTell:
        return True  # known once, and asked again soon


def _known() -> Caller:
    caller = current_caller()
    if caller is None:
        raise RuntimeError("this address must ask for credentials")
    return caller


def refuse_unsafe_settings(settings: Settings) -> None:
    """Raise ConfigError for settings under which strangers could use the service, saying what to do."""
    if settings.auth.enabled or settings.auth.allow_anonymous:
        return
    fix = (
        "set auth.enabled (AVATAR_AUTH__ENABLED=true) and make a key with `flask --app app keys create --tenant NAME`, "
        "or auth.allow_anonymous (AVATAR_AUTH__ALLOW_ANONYMOUS=true) if everyone who reaches it may use it"
    )
    if settings.env == "production":
        raise ConfigError(f"auth.enabled: production needs authentication; {fix}")
    if not is_loopback(settings.host):
        raise ConfigError(
            f"host: {settings.host!r} can be reached from other machines, and authentication is off; {fix}, or set "
            "host (AVATAR_HOST) to 127.0.0.1, ::1 or localhost"
        )
    if settings.http.trusted_proxies:
        raise ConfigError(f"http.trusted_proxies: a proxy brings the whole internet, and authentication is off; {fix}")


def refuse_without_credentials(settings: AuthSettings, keys: ApiKeys) -> None:
    """Raise ConfigError where authentication is on and nobody could have credentials, saying what to do.

    Keys that have all expired or been revoked are no reason not to start: what waits is still worked on, and links to
    results still open. The log says so.
    """
    if not settings.enabled or settings.allow_anonymous or settings.takes_tokens:
        return
    made, now = keys.all(), utc_now()
    if not made:
        raise ConfigError(
            "auth.enabled: nobody has credentials yet; make a key with `flask --app app keys create --tenant NAME`, or "
            "set auth.jwt_secret (AVATAR_AUTH__JWT_SECRET) or auth.jwks_url (AVATAR_AUTH__JWKS_URL)"
        )
    if not any(key.usable(now) for key in made):
        log.warning("every API key is revoked or has expired: see `flask --app app keys list`")


def register(app: Flask, settings: Settings, authenticator: Authenticator, needs: Mapping[str, Need]) -> None:
    """Find out who calls before every request; `needs` is by endpoint."""
    if not (settings.auth.enabled or settings.auth.allow_anonymous):
        origins = frozenset(settings.cors.origins)
        app.before_request(lambda: _refuse_strangers(origins))
    scrapers = settings.metrics.allow if settings.auth.enabled else (*settings.metrics.allow, *_LOOPBACK)
    app.before_request(_admitter(authenticator, needs, scrapers))


def _admitter(authenticator: Authenticator, needs: Mapping[str, Need], scrapers: Networks) -> Callable[[], None]:
    def admit() -> None:
        g.caller = None
        need = needs.get(request.endpoint or "")
        if need is None or (need == "open" and not _sent_any()) or (need == "link" and request.args.get("signature")):
            return  # no such address; or the handler looks itself
        if need == "metrics" and not _sent_any() and _is_from(scrapers):
            return
        try:
            g.caller, g.authenticator = authenticator.caller(request), authenticator
        except Refused:
            raise ApiError(Code.UNAUTHORIZED, "credentials are missing or not valid") from None
        except CannotTell:
            raise ApiError(
                Code.BUSY, "the issuer of the token cannot be asked; try again", retry_after=_ASK_AGAIN_SECONDS
            ) from None
        scope = "read" if need == "link" else need
        if scope != "open" and not g.caller.may(scope):
            raise ApiError(Code.FORBIDDEN, f"these credentials lack the scope {scope}")

    return admit


def _is_from(networks: Networks) -> bool:
    """Say whether the request came straight from one of the networks: behind a proxy anyone may be at its address."""
    try:
        peer = ip_address(request.environ.get("REMOTE_ADDR", ""))
    except ValueError:
        return False
    return not _is_forwarded() and any(peer in network for network in networks)


def _is_forwarded() -> bool:
    return any(name in _PROXIES or name.startswith("X-Forwarded-") for name, _ in request.headers)


def _sent_any() -> bool:
    try:
        return credentials(request) is not None
    except Refused:
        return True


def _refuse_strangers(origins: frozenset[str]) -> None:
    if _is_forwarded():
        raise ApiError(Code.FORBIDDEN, "requests through a proxy are refused while authentication is off")
    host = _HOST.fullmatch(request.environ.get("HTTP_HOST", ""))
    if host is None or not is_loopback(host["v6"] or host["name"]):
        raise ApiError(Code.FORBIDDEN, "the Host header must be a loopback address while authentication is off")
    peer = request.environ.get("REMOTE_ADDR", "")
    if peer and not is_loopback(peer):
        raise ApiError(Code.FORBIDDEN, "other machines are refused while authentication is off")
    origin = request.headers.get("Origin")
    if request.method not in _SAFE_METHODS and origin not in origins and not _is_own_page(origin):
        told = "pages of origins that cors.origins does not name are refused while authentication is off"
        raise ApiError(Code.FORBIDDEN, told)


def _is_own_page(origin: str | None) -> bool:
    """Say whether a request comes from no page (a program sends no Origin), or from one of this very service."""
    return origin is None or origin == f"{request.scheme}://{request.host}"


def is_loopback(host: str) -> bool:
    """Tell whether `host` is an address or name that only this machine can reach."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
