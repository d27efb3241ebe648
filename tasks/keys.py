"""API keys: made, looked up, listed and revoked. Only a hash is kept; the key itself is told once.

A key is `la_<id>_<secret>`. The secret is 256 random bits, so a plain SHA-256 of it cannot be searched; neither salt
nor a slow hash is needed.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from math import inf

from sqlalchemy import Engine, RowMapping, insert, select, update
from sqlalchemy.exc import OperationalError

from tasks.schema import api_keys

log = logging.getLogger("keys")

SCOPES = ("generate", "read", "metrics", "admin")

_FORM = re.compile(r"la_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,127}")
_USE_STEP = timedelta(minutes=1)
"""The last use is noted no more often: a read must not cost a write each time."""


class NoSuchKey(Exception):
    """There is no key of this id, or it was revoked already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is known of a key; times are aware UTC datetimes."""

    id: str
    tenant: str
    scopes: frozenset[str]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None

    def usable(self, now: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def is_tenant(name: str) -> bool:
    """Say whether `name` can be a tenant's: up to 128 letters, digits and `._@:-`, the first a letter or digit."""
    return _TENANT.fullmatch(name) is not None


class ApiKeys:
    """The keys of one database."""

    def __init__(self, engine: Engine, now: Callable[[], datetime]) -> None:
        self._engine, self._now = engine, now
        self._writing = engine.execution_options(write=True)
        self._tried: dict[str, float] = {}
        """When the use of a key was last to be noted here, by the monotonic clock."""

    def create(
        self, tenant: str, scopes: frozenset[str] = frozenset({"generate", "read"}), days: float | None = None
    ) -> tuple[ApiKey, str]:
        """Make a key that is good for `days` (None: for ever); return it and its text, which is told only here.

        Raises ValueError for a name that no tenant can have, or a scope that does not exist.
        """
        if not is_tenant(tenant):
            raise ValueError("a tenant's name is up to 128 letters, digits and ._@:-")
        if not scopes or not scopes <= set(SCOPES):
            raise ValueError(f"scopes are {', '.join(SCOPES)}")
        now, secret = self._now(), secrets.token_urlsafe(32)
        key = ApiKey(
            id=secrets.token_hex(6), tenant=tenant, scopes=scopes, created_at=now,
            expires_at=None if days is None else now + timedelta(days=days), last_used_at=None, revoked_at=None,
        )  # fmt: skip
        row = {field.name: getattr(key, field.name) for field in fields(ApiKey)}
        with self._writing.begin() as db:
            db.execute(insert(api_keys).values(**row | {"scopes": sorted(scopes)}, secret_sha256=_hash(secret)))
        return key, f"la_{key.id}_{secret}"

    def find(self, text: str) -> ApiKey | None:
        """Return the usable key of this text, or None; which of the reasons against it holds is nobody's business."""
        form = _FORM.fullmatch(text)
        if form is None:
            return None
        with self._engine.begin() as db:
            row = db.execute(select(api_keys).where(api_keys.c.id == form[1])).first()
        # Compared also where there is no such id, so that the time taken does not tell.
        known = row.secret_sha256 if row is not None else _hash("")
        same = hmac.compare_digest(_hash(form[2]).encode(), known.encode())
        if row is None or not same:
            return None
        key = _key(row._mapping)
        if not key.usable(self._now()):
            return None
        self._note_use(key)
        return key

    def all(self) -> list[ApiKey]:
        """Return all keys, the oldest first."""
        with self._engine.begin() as db:
            return [_key(row._mapping) for row in db.execute(select(api_keys).order_by(api_keys.c.created_at))]

    def revoke(self, key_id: str) -> None:
        """End a key at once. Raises NoSuchKey."""
        mine = update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        with self._writing.begin() as db:
            if db.execute(mine.values(revoked_at=self._now())).rowcount != 1:
                raise NoSuchKey(key_id)

    def _note_use(self, key: ApiKey) -> None:
        now = self._now()
        if key.last_used_at is not None and now - key.last_used_at < _USE_STEP:
            return
        if not self._may_try(key.id):
            return
        try:
            with self._writing.begin() as db:
                db.execute(update(api_keys).where(api_keys.c.id == key.id).values(last_used_at=now))
        except OperationalError as error:  # a busy or full database must not lock out who has a good key
            log.warning("the use of key %s is not noted: %s", key.id, error.orig)

    def _may_try(self, key_id: str) -> bool:
        """Say so once in a while: of the requests that come while the database is locked, one waits for the lock."""
        now = time.monotonic()
        if now - self._tried.get(key_id, -inf) < _USE_STEP.total_seconds():
            return False
        self._tried[key_id] = now
        return True


def _key(row: RowMapping) -> ApiKey:
    values = {field.name: row[field.name] for field in fields(ApiKey)}
    return ApiKey(**values | {"scopes": frozenset(values["scopes"])})


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
