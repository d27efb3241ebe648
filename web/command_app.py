"""What the commands of `flask --app app` work with.

Flask makes an application only to look for its commands. That one opens nothing, so that `db restore` works where the
service cannot start; each command opens what it needs.
"""

from __future__ import annotations

import math
from typing import Any

import click
from flask import current_app
from flask.cli import FlaskGroup
from sqlalchemy.exc import DBAPIError

from config_loader import ConfigError, Settings, load_engines
from task_manager import TaskManager
from tasks.trouble import DataRefused, Trouble, trouble_of

SETTINGS = "settings"
MANAGER = "task_manager"


class Number(click.FloatRange):
    """A number in a range; what Python takes for one besides, `nan` and `inf`, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number) and not isinstance(value, float):  # a default may be without end
            self.fail(f"{value!r} is not a number of this kind.", param, ctx)
        return number


class Text(click.ParamType[str]):
    """One line of text: bytes that are none, and signs that steer a terminal, get into no row and no answer."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        line = " ".join(str(value).split())
        if not line.isprintable():  # a byte that is no UTF-8 comes as half a surrogate, which is not printable either
            self.fail("holds bytes or signs that are no text.", param, ctx)
        return line


class TellingGroup(click.Group):
    """Commands that say in one line what is wrong with the database, as nothing else can be done about it here."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DBAPIError as error:
            trouble = trouble_of(error)
            if trouble is None:
                raise
            raise click.ClickException(f"the database {_WORDS[trouble]} ({error.orig}); nothing was changed") from None


_WORDS = {
    Trouble.BUSY: "is locked by another program: try again when that has ended",
    Trouble.FULL: "has no room left on its disk",
    Trouble.DAMAGED: "is damaged: see `flask --app app db check`",
    Trouble.AWAY: "cannot be reached, read or written at present",
}


def is_looked_through() -> bool:
    """Tell whether the application is made only to be asked for its commands, not to be served (`flask run`)."""
    context = click.get_current_context(silent=True)
    return context is not None and isinstance(context.command, FlaskGroup)


def settings() -> Settings:
    """Return the settings that a command works under."""
    found: Settings = current_app.extensions[SETTINGS]
    return found


def opened_manager() -> TaskManager:
    """Return the application's manager; where it was made for its commands alone, open one."""
    extensions = current_app.extensions
    if MANAGER not in extensions:
        try:
            extensions[MANAGER] = TaskManager(settings(), load_engines(settings()))
        except (ConfigError, DataRefused) as error:
            raise click.ClickException(str(error)) from error
    found: TaskManager = extensions[MANAGER]
    return found
