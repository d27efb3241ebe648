"""`flask --app app db ...`: back up, check and restore the database. Nothing else may be open or sound for these."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from flask.cli import AppGroup

from tasks.backup import BackupRefused, back_up, file_of, findings, restore
from utils.file_handler import readable_bytes
from web.command_app import settings

database = AppGroup("db", help="Back up, check and restore the database.", short_help="back up, check, restore")


@contextmanager
def _told() -> Iterator[None]:
    """Say a refusal in one line and end with status 1."""
    try:
        yield
    except (BackupRefused, sqlite3.Error) as error:
        raise click.ClickException(" ".join(str(error).split())) from error


def _database() -> Path:
    return file_of(settings().database_url)


@database.command("backup")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Write over FILE.")
def _backup(file: Path, force: bool) -> None:
    """Copy the database to FILE, checked and whole, while the service runs.

    Results, uploads and logs are files of the data folder: copy those after the database.
    """
    with _told():
        size = back_up(_database(), file, overwrite=force)
    click.echo(f"{file}: {readable_bytes(size)}, checked")


@database.command("check")
def _check() -> None:
    """Read the whole database and say what is wrong with it, while the service runs."""
    with _told():
        path = _database()
        if not path.exists():
            raise click.ClickException(
                f"there is no database at {path}: no service has run with these settings, or it is lost"
            )
        found = findings(path)
    for finding in found:
        click.echo(finding)
    if found:
        raise click.ClickException(
            f"{path} is damaged; a backup takes its place with `flask --app app db restore FILE`"
        )
    click.echo(f"{path}: no fault found")


@database.command("restore")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Move the present database aside.")
def _restore(file: Path, force: bool) -> None:
    """Put the backup FILE in the database's place; stop the service first."""
    with _told():
        path = _database()
        aside = restore(file, path, overwrite=force)
    click.echo(f"{path} is now the backup {file}" + (f"; the file before it is {aside}" if aside else ""))
