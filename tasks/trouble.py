"""What is wrong with a database that does not do its work, told apart for those who must answer for it."""

from __future__ import annotations

import sqlite3
from enum import Enum

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError


class Trouble(Enum):
    BUSY = "busy"  # somebody else writes for longer than we wait
    FULL = "full"  # no disk left
    DAMAGED = "damaged"  # the file is no longer what SQLite wrote
    AWAY = "away"  # it cannot be reached, read or written at present


class DataRefused(Exception):
    """The service must not start on this data folder or database. The text says in one sentence why and what to do."""


_SHM_FULL = sqlite3.SQLITE_IOERR_SHMSIZE  # the index of the write-ahead log cannot grow: SQLite calls that an I/O error
_KINDS = {
    sqlite3.SQLITE_BUSY: Trouble.BUSY, sqlite3.SQLITE_LOCKED: Trouble.BUSY, sqlite3.SQLITE_PROTOCOL: Trouble.BUSY,
    sqlite3.SQLITE_FULL: Trouble.FULL,
    sqlite3.SQLITE_CORRUPT: Trouble.DAMAGED, sqlite3.SQLITE_NOTADB: Trouble.DAMAGED,
    sqlite3.SQLITE_IOERR: Trouble.AWAY, sqlite3.SQLITE_CANTOPEN: Trouble.AWAY, sqlite3.SQLITE_READONLY: Trouble.AWAY,
    sqlite3.SQLITE_PERM: Trouble.AWAY, sqlite3.SQLITE_NOMEM: Trouble.AWAY,
}  # fmt: skip


def trouble_of(error: BaseException) -> Trouble | None:
    """Return what is wrong with the database, or None where the statement was at fault: a bug."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        return Trouble.FULL if code == _SHM_FULL else _KINDS.get(code & 0xFF)
    # A server's driver: whatever is not the statement's fault is the connection's.
    return Trouble.AWAY if isinstance(error, (OperationalError, InterfaceError)) else None
