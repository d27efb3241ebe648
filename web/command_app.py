"""What the commands of `flask --app app` work with.

Flask makes an application only to look for its commands. That one opens nothing, so that `db restore` works where the
service cannot start; each command opens what it needs.
"""

from __future__ import annotations

import click
from flask import current_app
from flask.cli import FlaskGroup

from config_loader import ConfigError, Settings, load_engines
from task_manager import TaskManager
from tasks.trouble import DataRefused

SETTINGS = "settings"
MANAGER = "task_manager"


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
