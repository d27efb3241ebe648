"""The secrets that sign webhooks, as Standard Webhooks has them: made, rotated, and used.

Each tenant has one, made when it is first needed. It is kept as it is, for a signature cannot be made with a hash; who
can read the database can sign. After a rotation the one before signs too, for a while, so that a receiver changes over
without losing a message.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine, delete, insert, select, update

from tasks.keys import is_tenant
from tasks.schema import webhook_secrets

_PREFIX = "whsec_"
_BYTES = 32


@dataclass(frozen=True, slots=True)
class WebhookSecret:
    """One secret; `expires_at` only of one that was replaced."""

    text: str = field(repr=False)
    created_at: datetime
    expires_at: datetime | None


class WebhookSecrets:
    """The secrets of one database."""

    def __init__(self, engine: Engine, now: Callable[[], datetime]) -> None:
        self._engine, self._now = engine, now
        self._writing = engine.execution_options(write=True)

    def of(self, tenant: str) -> list[WebhookSecret]:
        """Return the tenant's secrets that sign now, the newest first; one is made where there is none.

        Raises ValueError for a name that no tenant can have.
        """
        with self._engine.begin() as db:
            found = self._good(db, tenant)
        return found or self._change(tenant, None)

    def rotate(self, tenant: str, overlap: timedelta) -> list[WebhookSecret]:
        """Make a new secret, beside which the present one signs for `overlap` more; earlier ones end at once.

        Returns those that sign now, the newest first. Raises ValueError like `of`.
        """
        return self._change(tenant, overlap)

    def _change(self, tenant: str, overlap: timedelta | None) -> list[WebhookSecret]:
        if not is_tenant(tenant):
            raise ValueError("a tenant's name is up to 128 letters, digits and ._@:-")
        mine = webhook_secrets.c.tenant == tenant
        with self._writing.begin() as db:
            if overlap is None and (found := self._good(db, tenant)):
                return found  # another process was first
            if overlap is not None:
                db.execute(delete(webhook_secrets).where(mine, webhook_secrets.c.expires_at.is_not(None)))
                db.execute(update(webhook_secrets).where(mine).values(expires_at=self._now() + overlap))
            made = _PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()
            row = {"id": secrets.token_hex(6), "tenant": tenant, "secret": made, "created_at": self._now()}
            db.execute(insert(webhook_secrets).values(**row, expires_at=None))
            return self._good(db, tenant)

    def _good(self, db: Connection, tenant: str) -> list[WebhookSecret]:
        now, table = self._now(), webhook_secrets.c
        rows = db.execute(select(table.secret, table.created_at, table.expires_at).where(table.tenant == tenant))
        found = [WebhookSecret(*row) for row in rows if row.expires_at is None or row.expires_at > now]
        return sorted(found, key=lambda one: one.expires_at is not None)


def signature(good: list[WebhookSecret], message_id: str, timestamp: int, body: bytes) -> str:
    """Return the header `webhook-signature` of a message: one signature for each secret, separated by spaces."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    keys = (base64.b64decode(one.text.removeprefix(_PREFIX)) for one in good)
    macs = (hmac.digest(key, signed, hashlib.sha256) for key in keys)
    return " ".join(f"v1,{base64.b64encode(mac).decode()}" for mac in macs)
