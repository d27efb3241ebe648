"""Idempotency keys: by which a request that comes again is known, and gets the answer that it got first.

It is the same request where it asks for the same in the same words (`asked`), whatever has become since of what it
names: an upload expires before its task ends, a URL answers something else, the hardware is away. Or where what it asks
for is the same (`fingerprint`), however it came. All functions work within a transaction of the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, insert, select

from tasks.schema import idempotency_keys


class KeyReused(Exception):
    """An idempotency key came again with another request."""


class AlreadyAccepted(Exception):
    """An idempotency key came again with the same request; `answer` is what the first call was answered."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self.answer = answer


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A key with two sha256 in hex: of the validated request and its media, and of its words."""

    key: str
    fingerprint: str
    asked: str = ""


def check(db: Connection, tenant: str, key: IdempotencyKey) -> None:
    """Raise AlreadyAccepted or KeyReused where the key was seen."""
    seen = find(db, tenant, key.key)
    if seen is None:
        return
    if seen.fingerprint == key.fingerprint or _is_asked_again(seen, key.asked):
        raise AlreadyAccepted(seen.answer)
    raise KeyReused


def check_asked(db: Connection, tenant: str, key: str, asked: str) -> None:
    """Raise AlreadyAccepted where the key was seen with a request of the same words."""
    seen = find(db, tenant, key)
    if seen is not None and _is_asked_again(seen, asked):
        raise AlreadyAccepted(seen.answer)


def find(db: Connection, tenant: str, key: str) -> Row[Any] | None:
    """Return the row of a key, None where no request with it was accepted."""
    same = and_(idempotency_keys.c.tenant == tenant, idempotency_keys.c.key == key)
    return db.execute(select(idempotency_keys).where(same)).first()


def keep(db: Connection, tenant: str, key: IdempotencyKey, task_id: str, answer: str) -> None:
    """Remember a key with what its request was answered."""
    row = {"tenant": tenant, "key": key.key, "fingerprint": key.fingerprint, "asked": key.asked or None}
    db.execute(insert(idempotency_keys).values(**row, task_id=task_id, answer=answer, expires_at=None))


def _is_asked_again(seen: Row[Any], asked: str) -> bool:
    return bool(asked) and seen.asked == asked  # an older release kept no words
