"""Links to result files that carry their own permission, for a while: a `<video>` tag can send no header."""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import time
from dataclasses import dataclass

_STEP_SECONDS = 300
"""Expiry times are rounded up to this, so that a client that polls sees one link and not a new one each time."""


@dataclass(frozen=True, slots=True)
class Links:
    """Makes and checks links. Without a key they are plain, because everyone may read."""

    key: bytes | None
    seconds: float

    def link(self, task_id: str, name: str) -> str:
        """Return the path and query under which the file can be fetched."""
        path = f"/results/{task_id}/{name}"
        if self.key is None:
            return path
        expires = math.ceil((time.time() + self.seconds) / _STEP_SECONDS) * _STEP_SECONDS
        return f"{path}?expires={expires}&signature={self._sign(path, expires)}"

    def allows(self, task_id: str, name: str, expires: int, signature: str) -> bool:
        """Say whether the signature is this service's, for this file, and has not expired."""
        if self.key is None or expires <= time.time():
            return False
        expected = self._sign(f"/results/{task_id}/{name}", expires)
        return hmac.compare_digest(expected.encode(), signature.encode())

    def _sign(self, path: str, expires: int) -> str:
        if self.key is None:
            raise ValueError("without a key nothing is signed")
        mac = hmac.digest(self.key, f"{path}\n{expires}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(mac).decode().rstrip("=")
