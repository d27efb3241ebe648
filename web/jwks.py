"""The public keys of a token issuer: fetched with deadlines, cached, and the last good set kept while it is away."""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.request
from collections.abc import Mapping
from typing import Any

import jwt

log = logging.getLogger("auth")

_FRESH_SECONDS = 300.0
_PAUSE_SECONDS = 15.0
"""No more often is the issuer asked, however many tokens name keys that it does not have."""
_TIMEOUT_SECONDS = 5.0
_LARGEST = 512 * 1024

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Of public keys only: a secret must never be taken from what an issuer publishes."""


class NoKeys(Exception):
    """The issuer could not be asked, and has never answered."""


class KeySet:
    """The keys behind one URL. Safe to share between threads."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._keys: Mapping[str, jwt.PyJWK] | None = None
        self._fetched_at = self._tried_at = float("-inf")

    def key(self, key_id: str) -> jwt.PyJWK | None:
        """Return the key of this id, or None where the issuer has none. Raises NoKeys."""
        keys = self._keys
        if keys is None or key_id not in keys or time.monotonic() - self._fetched_at > _FRESH_SECONDS:
            keys = self._look()
        if keys is None:
            raise NoKeys
        return keys.get(key_id)

    def _look(self) -> Mapping[str, jwt.PyJWK] | None:
        with self._lock:
            if time.monotonic() - self._tried_at >= _PAUSE_SECONDS:
                self._tried_at = time.monotonic()
                try:
                    self._keys, self._fetched_at = _read(self._fetch()), time.monotonic()
                except (OSError, ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
                    log.error("the issuer's keys cannot be fetched, going on with those known: %s", error)
            return self._keys

    def _fetch(self) -> bytes:
        request = urllib.request.Request(self._url, headers={"Accept": "application/json"})  # noqa: S310 - see settings
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            deadline, parts, size = time.monotonic() + _TIMEOUT_SECONDS, [], 0
            while part := answer.read1(65_536):
                parts.append(part)
                size += len(part)
                if size > _LARGEST or time.monotonic() > deadline:
                    raise ValueError("the answer is too large or too slow")
            return b"".join(parts)


def _read(text: bytes) -> dict[str, jwt.PyJWK]:
    """Return the signing keys by id. Keys of unknown kinds are passed over, as RFC 7517 asks."""
    keys = {}
    for raw in json.loads(text)["keys"]:
        if _signs(raw):
            try:
                keys[raw["kid"]] = jwt.PyJWK(raw)
            except jwt.PyJWTError as error:
                log.warning("a key of the issuer is passed over: %s", error)
    return keys


def _signs(raw: Mapping[str, Any]) -> bool:
    return isinstance(raw.get("kid"), str) and raw.get("use", "sig") == "sig" and raw.get("kty") in ("RSA", "EC", "OKP")
