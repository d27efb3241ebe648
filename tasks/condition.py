"""How the database of a running service is: what health says of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

from sqlalchemy import Engine, ExceptionContext, event
from sqlalchemy.exc import DBAPIError

from tasks.schema import sqlite_file
from tasks.trouble import Trouble, trouble_of

T = TypeVar("T")

LOCKED_SECONDS = 2.0
"""A writer holds the lock for milliseconds, beside a busy disk for a second; who keeps it longer keeps all out."""

REASONS = {
    Trouble.BUSY: "the database is locked by another process: nothing can be written",
    Trouble.FULL: "the disk of the database is full",
    Trouble.DAMAGED: "the database is damaged: stop the service and restore a backup",
    Trouble.AWAY: "the database cannot be reached, read or written",
}


class Condition:
    """Remembers that damage was met, for that does not go away by itself; anything else is looked for anew."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._path, self._damaged = engine, sqlite_file(engine.url), False
        event.listen(engine, "handle_error", self._note)

    def reason(self) -> str | None:
        """Return why the database cannot do its work, or None. Takes `LOCKED_SECONDS` at most, but for a slow disk."""
        found = Trouble.DAMAGED if self._damaged else self._look()
        return None if found is None else REASONS[found]

    def ask(self, question: Callable[[], T]) -> T | None:
        """Return the answer to a question to the database, or None while it cannot answer."""
        try:
            return question()
        except DBAPIError as error:
            if trouble_of(error) is None:
                raise
            return None

    def _note(self, context: ExceptionContext) -> None:
        if trouble_of(context.original_exception) is Trouble.DAMAGED:
            self._damaged = True

    def _look(self) -> Trouble | None:
        try:
            if self._path is None:
                self._engine.connect().close()  # pings the server
            else:
                _take_the_lock(f"{self._path.absolute().as_uri()}?mode=rw")
        except (DBAPIError, sqlite3.Error) as error:
            return trouble_of(error) or Trouble.AWAY
        return None


def _take_the_lock(uri: str) -> None:
    """Begin to write, and leave it at that."""
    with closing(sqlite3.connect(uri, uri=True, timeout=LOCKED_SECONDS, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
