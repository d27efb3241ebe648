"""The public keys of a token issuer: fetched with deadlines, cached, and the last good set kept while it is away.

Whoever brings a token that a known key has signed waits for the issuer only where the set is too old to be trusted as
it is, and never again while the issuer fails to answer.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import time
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import jwt

from utils.net import FetchError, FetchPolicy, fetch

log = logging.getLogger("auth")

_FRESH_SECONDS = 300.0
"""An older set is asked for anew while it is used; at twice this age it is used only if there is no newer one."""
_PAUSE_SECONDS = 15.0
"""No more often is the issuer asked, however many tokens name keys that it does not have."""
_TIMEOUT_SECONDS = 5.0
_LARGEST = 512 * 1024
_ANYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
"""The address is the operator's choice, and may be on a network of theirs."""

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Of public keys only: a secret must never be taken from what an issuer publishes."""


class NoKeys(Exception):
    """The issuer could not be asked, and has never answered."""


class KeySet:
    """The keys behind one URL. Safe to share between threads."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._policy = FetchPolicy(_LARGEST, _TIMEOUT_SECONDS, _TIMEOUT_SECONDS, allowed_networks=_ANYWHERE)
        self._lock = threading.Lock()
        self._keys: Mapping[str, jwt.PyJWK] | None = None
        self._fetched_at = self._tried_at = float("-inf")
        self._answered = threading.Event()  # whether nobody is asking; a new one for each time
        self._answered.set()
        self._away = False

    def key(self, key_id: str) -> jwt.PyJWK | None:
        """Return the key of this id, or None where the issuer has none. Raises NoKeys."""
        keys = self._keys
        age = time.monotonic() - self._fetched_at
        if keys is None or key_id not in keys:
            self._ask().wait(2 * _TIMEOUT_SECONDS)
        elif age > _FRESH_SECONDS:
            answered = self._ask()
            if age > 2 * _FRESH_SECONDS and not self._away:
                answered.wait(2 * _TIMEOUT_SECONDS)
        if self._keys is None:
            raise NoKeys
        return self._keys.get(key_id)

    def _ask(self) -> threading.Event:
        """See that the issuer is asked, unless it was a moment ago; return what is set once it answered or failed."""
        with self._lock:
            if self._answered.is_set() and time.monotonic() - self._tried_at >= _PAUSE_SECONDS:
                self._tried_at, answered = time.monotonic(), threading.Event()
                threading.Thread(target=self._look, args=(answered,), name="issuer", daemon=True).start()
                self._answered = answered
            return self._answered

    def _look(self, answered: threading.Event) -> None:
        try:
            self._keys, self._fetched_at, self._away = _read(self._fetch()), time.monotonic(), False
        except (OSError, FetchError, ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError) as error:
            self._away = True
            log.error("the issuer's keys cannot be fetched, going on with those known: %s", error)
        finally:
            answered.set()

    def _fetch(self) -> bytes:
        with tempfile.TemporaryDirectory(prefix="avatar-keys-") as folder:
            answer = Path(folder) / "keys.json"
            fetch(self._url, answer, self._policy)
            return answer.read_bytes()


def _read(text: bytes) -> dict[str, jwt.PyJWK]:
    """Return the signing keys by id. Keys of unknown kinds are passed over, as RFC 7517 asks. Raises ValueError."""
    keys = {}
    for raw in json.loads(text)["keys"]:
        if _signs(raw):
            try:
                keys[raw["kid"]] = jwt.PyJWK(raw)
            except jwt.PyJWTError as error:
                log.warning("a key of the issuer is passed over: %s", error)
    if not keys:
        raise ValueError("the answer holds no key that signs")
    return keys


def _signs(raw: Mapping[str, Any]) -> bool:
    return isinstance(raw.get("kid"), str) and raw.get("use", "sig") == "sig" and raw.get("kty") in ("RSA", "EC", "OKP")
