"""The rows of uploaded media: who sent what, and when it was last used.

An upload expires some time after its last use. Using one and letting it expire are both writes of its row, so that of
the two at once one wins: who has used an upload finds its file for some minutes at least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, delete, func, insert, select, update

from tasks.policy import Quotas
from tasks.quotas import check_bytes, decoded_bytes
from tasks.schema import uploads

USE_GRAIN = timedelta(minutes=5)
"""A use within this time of the last one that was written is not written; expiry waits as much longer."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A medium that was uploaded and found good. `path` is what clients pass on, `media` its facts."""

    path: str
    tenant: str
    kind: str
    sha256: str
    size_bytes: int
    media: dict[str, Any]
    created_at: datetime


_COLUMNS = [uploads.c[field.name] for field in fields(Upload)]
_LAST_USE = func.coalesce(uploads.c.used_at, uploads.c.created_at)


class Uploads:
    """The uploads of one database. `now` gives the time that is noted."""

    def __init__(self, engine: Engine, now: Callable[[], datetime], quotas: Quotas) -> None:
        self._engine, self._now, self._quotas = engine, now, quotas
        self._writing = engine.execution_options(write=True)

    def add(self, upload: Upload) -> None:
        """Insert an upload. Raises QuotaExceeded."""
        with self._writing.begin() as db:
            check_bytes(db, self._quotas, upload.tenant, max(upload.size_bytes, decoded_bytes(upload.media)))
            db.execute(insert(uploads).values(asdict(upload)))

    def get(self, path: str, tenant: str) -> Upload | None:
        """Return an upload without using it."""
        with self._engine.begin() as db:
            row = db.execute(select(*_COLUMNS).where(uploads.c.path == path, uploads.c.tenant == tenant)).first()
            return None if row is None else Upload(**row._mapping)

    def use(self, path: str, tenant: str) -> Upload | None:
        """Return an upload and note that it was used now; None where there is none (any more)."""
        mine = (uploads.c.path == path, uploads.c.tenant == tenant)
        with self._engine.begin() as db:
            row = db.execute(select(*_COLUMNS, _LAST_USE.label("last_use")).where(*mine)).first()
        if row is None:
            return None
        now = self._now()
        if abs(now - row.last_use) > USE_GRAIN:
            with self._writing.begin() as db:
                if db.execute(update(uploads).where(*mine).values(used_at=now)).rowcount != 1:
                    return None
        return Upload(**{field.name: getattr(row, field.name) for field in fields(Upload)})

    def expire(self, before: datetime, limit: int) -> list[str]:
        """Remove the rows of up to `limit` uploads not used since `before`; return their paths."""
        old = select(uploads.c.path).where(before - USE_GRAIN > _LAST_USE).limit(limit)
        with self._writing.begin() as db:
            return list(db.execute(delete(uploads).where(uploads.c.path.in_(old)).returning(uploads.c.path)).scalars())

    def known(self, paths: Sequence[str]) -> set[str]:
        """Return those of `paths` that have a row."""
        with self._engine.begin() as db:
            return set(db.execute(select(uploads.c.path).where(uploads.c.path.in_(paths))).scalars())
