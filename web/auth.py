"""Credentials: an API key or a JWT becomes a caller, or the one uniform refusal.

Which algorithms a token may use is fixed by the settings, never by the token: HS256 with the shared secret, or those of
public keys with the issuer's key set. Nothing else in a token's header is followed (`jku`, `jwk`, `x5u`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jwt
from flask import Request

from config_loader import AuthSettings
from tasks.keys import SCOPES, ApiKeys, is_tenant
from web.jwks import ALGORITHMS, KeySet, NoKeys

_LEEWAY_SECONDS = 30
_DEFAULT_SCOPE = "generate read"


class Refused(Exception):
    """The credentials are missing or no good. Why is not told."""


class CannotTell(Exception):
    """The token's issuer cannot be asked now."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the tenant that everything it makes belongs to, and what it may do."""

    tenant: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes

    @property
    def sees(self) -> str | None:
        """The tenant whose things it sees; None: all tenants'."""
        return None if "admin" in self.scopes else self.tenant


NOBODY_IN_PARTICULAR = Caller("default", frozenset({"generate", "read"}))
"""Every caller, while there is no authentication."""

ANONYMOUS = Caller("anonymous", frozenset({"generate", "read"}))
"""Who sends no credentials where auth.allow_anonymous lets them in."""


class Authenticator:
    """Turns a request's credentials into a caller."""

    def __init__(self, settings: AuthSettings, keys: ApiKeys) -> None:
        self._settings, self._keys = settings, keys
        self._secret = settings.jwt_secret.get_secret_value()
        self._issuer_keys = KeySet(settings.jwks_url) if settings.jwks_url else None

    def caller(self, request: Request) -> Caller:
        """Return who calls. Raises Refused or CannotTell."""
        if not self._settings.enabled:
            return NOBODY_IN_PARTICULAR
        sent = credentials(request)
        if sent is None:
            if self._settings.allow_anonymous:
                return ANONYMOUS
            raise Refused
        return self._by_key(sent) if sent.startswith("la_") else self._by_token(sent)

    def _by_key(self, text: str) -> Caller:
        key = self._keys.find(text)
        if key is None:
            raise Refused
        return Caller(key.tenant, key.scopes)

    def _by_token(self, token: str) -> Caller:
        try:
            return self._caller_of(self._claims(token))
        except NoKeys:
            raise CannotTell from None
        except (jwt.PyJWTError, ValueError, TypeError, UnicodeError) as error:
            raise Refused from error

    def _claims(self, token: str) -> dict[str, Any]:
        settings = self._settings
        key, algorithms = self._key_for(jwt.get_unverified_header(token))
        claims: dict[str, Any] = jwt.decode(
            token, key, algorithms=algorithms, leeway=_LEEWAY_SECONDS, audience=settings.audience or None,
            issuer=settings.issuer or None,
            options={
                "require": ["exp", "sub", settings.tenant_claim], "verify_aud": bool(settings.audience),
                "verify_iss": bool(settings.issuer),
            },
        )  # fmt: skip
        return claims

    def _key_for(self, header: dict[str, Any]) -> tuple[str | jwt.PyJWK, list[str]]:
        """Return what verifies a token with this header, and with which algorithms alone."""
        if header.get("alg") == "HS256" and self._secret:
            return self._secret, ["HS256"]
        key_id = header.get("kid")
        if self._issuer_keys is None or not isinstance(key_id, str) or header.get("alg") not in ALGORITHMS:
            raise Refused
        key = self._issuer_keys.key(key_id)
        if key is None:
            raise Refused
        return key, [name for name in ALGORITHMS if name == key.algorithm_name]

    def _caller_of(self, claims: dict[str, Any]) -> Caller:
        tenant, scope = claims[self._settings.tenant_claim], claims.get("scope", _DEFAULT_SCOPE)
        if not isinstance(tenant, str) or not is_tenant(tenant) or not isinstance(scope, str):
            raise Refused
        return Caller(tenant, frozenset(scope.split()) & frozenset(SCOPES))


def credentials(request: Request) -> str | None:
    """Return the key or token that a request carries, None where it carries none. Raises Refused for a muddle."""
    header, key = request.headers.get("Authorization"), request.headers.get("X-API-Key")
    if header is not None and key is not None:
        raise Refused
    if header is None:
        return key
    kind, _, value = header.partition(" ")
    if kind.lower() != "bearer" or not value.strip():
        raise Refused
    return value.strip()
