"""Before the service works on a database: whether it can be used, and bringing it to this release.

Migrations only add, so that a runner or a web process of the release before goes on working on the same file. They
are tried on a copy first. What fails there leaves the original as it was; what succeeds there is applied in place, all
of it in one transaction: the file is never exchanged, for live runners hold it open.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine, inspect, select, text
from sqlalchemy.exc import DBAPIError

from tasks.backup import BackupRefused, copy, findings
from tasks.folders import Folders
from tasks.schema import HEAD, open_database, sqlite_file
from tasks.trouble import DataRefused, Trouble, trouble_of
from utils.setting_types import sqlite_url

CHECKED_BYTES = 64 * 2**20
"""Up to this size a database is read whole before each start: a quarter of a second. SQLite itself notices a larger one
that was cut short; for the rest of it there is `flask --app app db check`."""

WAIT_SECONDS = 5.0
"""How long another process may keep even readers out before a start is refused."""

MIGRATIONS = Path(__file__).parent / "migrations"
_NO_DATABASE = "file is not a database"
"""How SQLite says that."""


def make_ready(
    engine: Engine,
    data: Path,
    migrations: Path = MIGRATIONS,
    head: str = HEAD,
    lend: Callable[[Callable[[], None]], None] = lambda work: work(),
) -> None:
    """Bring the database to `head`; several processes that start at once do it one after the other.

    `lend` does work a second time where the disk was full. Raises DataRefused for a database that this release must not
    or cannot work on.
    """
    path = sqlite_file(engine.url)
    try:
        lend(lambda: _make_ready(engine, path, data, migrations, head))
    except (DBAPIError, sqlite3.Error) as error:
        raise DataRefused(_sentence(error, path)) from error


def _make_ready(engine: Engine, path: Path | None, data: Path, migrations: Path, head: str) -> None:
    if path is not None:
        _refuse_unusable_file(path)
        path.touch(0o640)
    if _revision(engine, head) != head:
        _upgrade_alone(engine, path, data, migrations, head)


# --- what cannot be used ----------------------------------------------------------------------------------------------


def _refuse_unusable_file(path: Path) -> None:
    """Raise DataRefused for a file that is no sound SQLite database, or cannot be read and written."""
    folder = path.parent
    if not folder.is_dir():
        raise DataRefused(f"the database's folder {folder} does not exist: make it, or set AVATAR_DATABASE_URL")
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise DataRefused(f"the database's folder {folder} cannot be written by user {os.geteuid()}: {_OWN}")
    if not path.exists():
        return
    if not path.is_file():
        raise DataRefused(f"the database {path} is not a file: move it away, or set AVATAR_DATABASE_URL")
    if not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
        raise DataRefused(f"the database {path} cannot be read and written by user {os.geteuid()}: {_OWN}")
    _refuse_damaged_file(path)


_OWN = "give it to that user, or mount it for writing"


def _refuse_damaged_file(path: Path) -> None:
    """Ask SQLite, and nobody else: the file must not be opened past it, not even to be read.

    Whoever closes a file gives up all locks that his process has on it (POSIX has it so), and with them SQLite's. The
    next process that leaves then takes itself for the last one, and removes the log into which this one still writes.
    """
    if 0 < path.stat().st_size <= CHECKED_BYTES:
        found = findings(path, quick=True, wait_seconds=WAIT_SECONDS)
        if found:
            raise DataRefused(_damaged(path, found[0]))


def _sentence(error: DBAPIError | sqlite3.Error, path: Path | None) -> str:
    why = error.orig if isinstance(error, DBAPIError) else error
    if path is None:
        return f"the database server cannot be used: {' '.join(str(why).split())}"
    match trouble_of(error):
        case Trouble.DAMAGED:
            return _damaged(path, str(why))
        case Trouble.BUSY:
            return f"the database {path} is locked by another process: end that, then start again"
        case Trouble.FULL:
            return f"no disk is left for the database {path}: make room, then start again"
    return f"the database {path} cannot be used: {why}"


def _name(engine: Engine) -> str:
    return str(sqlite_file(engine.url) or engine.url.render_as_string())


def _damaged(path: Path, finding: str) -> str:
    if finding == _NO_DATABASE:
        return f"{path} is not an SQLite database: {_how_to_restore(path)}"
    return f"the database {path} is damaged ({' '.join(finding.split())}): {_how_to_restore(path)}"


def _how_to_restore(path: Path) -> str:
    return f"put a backup in its place with `flask --app app db restore FILE --force`, which keeps {path.name} aside"


# --- migrations -------------------------------------------------------------------------------------------------------


def _revision(engine: Engine, head: str) -> str | None:
    """Return the newest migration that was applied, None where the database is empty.

    Raises DataRefused for a database of a newer release or of another program.
    """
    tables = set(inspect(engine).get_table_names())
    if "alembic_version" not in tables:
        if tables:
            raise DataRefused(
                f"the database {_name(engine)} holds the tables of another program: "
                "set AVATAR_DATABASE_URL to one of its own"
            )
        return None
    with engine.connect() as connection:
        found = connection.execute(select(text("version_num")).select_from(text("alembic_version"))).scalar()
    if found is not None and found > head:
        raise DataRefused(
            f"the database {_name(engine)} was made by a newer release (it is at {found}, this release "
            f"knows {head}): start that release, or restore a backup from before it"
        )
    return found


def _upgrade_alone(engine: Engine, path: Path | None, data: Path, migrations: Path, head: str) -> None:
    data.mkdir(parents=True, exist_ok=True)
    with (data / "migrate.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = _revision(engine, head)
        if found is None:
            _refuse_lost_tasks(engine, data)
            _upgrade(engine, migrations, head)
        elif found != head:
            if path is not None:
                _try_on_copy(path, data, migrations, head)
            _upgrade(engine, migrations, head)


def _refuse_lost_tasks(engine: Engine, data: Path) -> None:
    """Raise DataRefused where tasks have files but no rows: with a new database the files would soon be swept."""
    folders = Folders(data)
    for folder in (folders.results, folders.tasks):
        if folder.is_dir() and any(folder.iterdir()):
            raise DataRefused(
                f"the database {_name(engine)} is missing or empty, though {folder} holds the files of tasks: restore "
                "a backup with `flask --app app db restore FILE --force`, or move that folder away to begin anew"
            )


def _try_on_copy(path: Path, data: Path, migrations: Path, head: str) -> None:
    """Raise DataRefused where the migrations do not work on a copy; the original is only read."""
    scratch = Folders(data).scratch  # swept by the service, should the machine go down in between
    scratch.mkdir(exist_ok=True)
    trial = scratch / f"migration-{secrets.token_hex(8)}.db"
    try:
        copy(path, trial)
        engine = open_database(sqlite_url(trial))
        try:
            _upgrade(engine, migrations, head)
        finally:
            engine.dispose()
        if found := findings(trial, quick=True):
            raise DataRefused(f"{_tried(path)} damaged it: {found[0]}")
    except BackupRefused as error:
        raise DataRefused(f"the database {path} was not changed: {error}; make room, then start again") from error
    except Exception as error:
        if isinstance(error, DataRefused):
            raise
        # A migration is code: whatever it raised, the sentence must say that nothing was lost.
        raise DataRefused(f"{_tried(path)} failed: {' '.join(str(error).split())[:300]}") from error
    finally:
        for part in ("", "-wal", "-shm", "-journal"):
            Path(f"{trial}{part}").unlink(missing_ok=True)


def _tried(path: Path) -> str:
    return (
        f"the database {path} was not changed, and the release before goes on working with it: "
        "bringing a copy of it to this release"
    )


def _upgrade(engine: Engine, migrations: Path, head: str) -> None:
    # Alembic takes a fifth of a second to import, which a start on a current database need not pay.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    with engine.execution_options(write=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, head)
