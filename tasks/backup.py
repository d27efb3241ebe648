"""Copies of the database: taken while the service writes, looked through, and put back.

SQLite's own backup reads one state of the database in one read transaction, WAL and all, and holds up no writer. A copy
of the file alone, made by `cp`, has neither property. A copy appears under its name whole and checked, or not at all.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import chain, count
from pathlib import Path

import psutil

from tasks.schema import HEAD, sqlite_file
from tasks.trouble import Trouble, trouble_of
from utils.file_handler import readable_bytes, sync

_MARGIN_BYTES = 16 * 2**20
_WAIT_SECONDS = 30.0
_MAX_FINDINGS = 20
_PARTS = ("", "-wal", "-shm")


class BackupRefused(Exception):
    """The copy was not made, or not put back; nothing was changed. The text says why."""


def file_of(url: str) -> Path:
    """Return the SQLite file of a database URL. Raises BackupRefused for another kind of database."""
    path = sqlite_file(url)
    if path is None:
        raise BackupRefused("these commands are for SQLite; use the tools of your database server (pg_dump)")
    return path


def back_up(source: Path, destination: Path, overwrite: bool = False) -> int:
    """Copy the live database `source` to `destination`, checked and durable; return the copy's bytes.

    Raises BackupRefused.
    """
    destination = destination.absolute()
    # A data folder may be reached by a link, and then has two names.
    if destination.name in {source.name + part for part in _PARTS} and _is_same(destination.parent, source.parent):
        raise BackupRefused("a backup cannot be written over the database itself")
    if destination.exists() and not destination.is_file():
        raise BackupRefused(f"{destination} is no file that a backup could take the place of")
    if destination.exists() and not overwrite:
        raise BackupRefused(f"{destination} exists already; --force writes over it")
    if not source.is_file():
        raise BackupRefused(f"there is no database at {source}")
    with _finished(destination) as temporary:
        copy(source, temporary)
        _refuse_damaged(temporary, "the database is damaged, so no backup was made")
    return destination.stat().st_size


def restore(source: Path, database: Path, overwrite: bool = False) -> Path | None:
    """Put the backup `source` in the place of `database`; return where the old file lies now, if there was one.

    Nothing may have the database open: a process that has would go on writing into the old file. Raises BackupRefused.
    """
    _refuse_other_contents(source)
    if users := users_of(database):
        names = ", ".join(f"{process.pid}" for process in users)
        raise BackupRefused(f"{database} is in use by process {names}: stop the service and its runners first")
    if database.exists() and not overwrite:
        raise BackupRefused(f"{database} exists; --force moves it aside and puts the backup in its place")
    aside = _free_name(database.with_name(f"{database.name}.before-restore-{time.strftime('%Y%m%dT%H%M%S')}"))
    with _finished(database) as temporary:
        copy(source, temporary)
        _refuse_damaged(temporary, "the backup is damaged")
        _give(temporary, like=database if database.exists() else database.parent)
        # The old log must go with the old file: replayed into the restored one it would damage that.
        moved = [_move(Path(f"{database}{part}"), Path(f"{aside}{part}")) for part in _PARTS]
    return aside if moved[0] else None


def findings(database: Path, quick: bool = False, wait_seconds: float = _WAIT_SECONDS) -> list[str]:
    """Return what SQLite finds wrong with a database file; nothing where it is sound.

    Reads all of it: about a second for each 100 MB, a third of that when `quick`, which does not compare the indexes
    with their tables. Raises sqlite3.Error where the file cannot be read for another reason than damage.
    """
    check = "quick_check" if quick else "integrity_check"
    try:
        with closing(_open(database, wait_seconds)) as connection:
            found = [str(row[0]) for row in connection.execute(f"PRAGMA {check}({_MAX_FINDINGS})")]
    except sqlite3.DatabaseError as error:
        if trouble_of(error) is not Trouble.DAMAGED:
            raise
        return [str(error)]
    return [] if found == ["ok"] else found


def copy(source: Path, destination: Path) -> None:
    """Make `destination`, one file without a log beside it, from the state of `source` now. Raises BackupRefused."""
    try:
        needed = sum(Path(f"{source}{part}").stat().st_size for part in _PARTS[:2] if Path(f"{source}{part}").exists())
        free = shutil.disk_usage(destination.parent).free
        if free < needed + _MARGIN_BYTES:
            raise BackupRefused(
                f"a copy needs {readable_bytes(needed + _MARGIN_BYTES)} in {destination.parent}, "
                f"and {readable_bytes(free)} are free"
            )
        destination.touch(0o600, exist_ok=False)  # prompts are private
        with closing(_open(source)) as reading, closing(_open(destination)) as writing:
            reading.backup(writing)
            writing.execute("PRAGMA journal_mode=DELETE")
        sync(destination)
    except (sqlite3.Error, OSError) as error:
        raise BackupRefused(f"{source} cannot be copied to {destination.parent}: {_reason(error)}") from error


def users_of(database: Path) -> list[psutil.Process]:
    """Return the other processes that have the database open, as far as this user may see."""
    if not database.exists():
        return []
    wanted, found = database.resolve(), []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and any(Path(opened.path) == wanted for opened in process.open_files()):
                found.append(process)
    return found


def _open(path: Path, wait_seconds: float = _WAIT_SECONDS) -> sqlite3.Connection:
    """Open an existing file; unlike a plain connect, never make one. A backup may lie where nobody can write."""
    mode = "rw" if os.access(path, os.W_OK) else "ro"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=wait_seconds)
    connection.isolation_level = None
    return connection


@contextmanager
def _finished(destination: Path) -> Iterator[Path]:
    """Yield a name beside `destination`; what lies there takes its place at the end, or is removed on any failure."""
    temporary = destination.with_name(f".{destination.name}.{secrets.token_hex(8)}.part")
    try:
        yield temporary
        temporary.replace(destination)
        sync(destination.parent)
    except OSError as error:
        raise BackupRefused(f"{destination} cannot be written: {_reason(error)}") from error
    finally:
        for part in (*_PARTS, "-journal"):
            Path(f"{temporary}{part}").unlink(missing_ok=True)


def _is_same(folder: Path, other: Path) -> bool:
    return folder.exists() and other.exists() and folder.samefile(other)


def _free_name(path: Path) -> Path:
    """Return the path, or one with a number behind it where there is something already: two restores in one second."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(
        found for found in chain([path], numbered) if not any(Path(f"{found}{part}").exists() for part in _PARTS)
    )


def _move(source: Path, destination: Path) -> bool:
    if not source.exists():
        return False
    source.rename(destination)
    return True


def _give(path: Path, like: Path) -> None:
    """Let the service's user own what root restored."""
    owner = like.stat()
    with suppress(PermissionError):
        os.chown(path, owner.st_uid, owner.st_gid)


def _refuse_damaged(path: Path, sentence: str) -> None:
    if found := findings(path):
        raise BackupRefused(f"{sentence}: {found[0]}")


def _refuse_other_contents(source: Path) -> None:
    """Refuse what is no backup of this service, or one of a newer release."""
    if not source.is_file():
        raise BackupRefused(f"there is no file {source}")
    try:
        with closing(_open(source)) as connection:
            revision = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error as error:
        is_damaged = trouble_of(error) is Trouble.DAMAGED
        told = "is damaged" if is_damaged else "is no backup of this service"
        raise BackupRefused(f"{source} {told}: {error}") from error
    if revision is None or revision[0] > HEAD:
        raise BackupRefused(f"{source} was made by a newer release")


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
