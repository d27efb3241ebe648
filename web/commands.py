"""Operators' commands, run as `flask --app app ...` with the service's settings.

They work on the rows and start nothing, so it does not matter whether the service is up.
"""

from __future__ import annotations

import math
import operator
import time
from dataclasses import dataclass
from functools import partial

import click
from flask import Flask
from flask.cli import with_appcontext

from config_loader import Settings
from task_manager import TaskManager
from tasks import drain
from tasks.model import Status
from tasks.store import utc_now
from tasks.wake import ring
from web import key_commands, webhook_commands
from web.command_app import SETTINGS, Number, TellingGroup, Text, opened_manager
from web.database_commands import database
from web.waiting import Waiting

_TELL_SECONDS = 30.0
"""How often `drain wait` says that it still waits."""

_LOOK_SECONDS = 2.0
"""How often it looks for itself: a runner that dies writes nothing."""


def register(app: Flask, settings: Settings) -> None:
    """Add the commands to those of `app`."""
    app.extensions[SETTINGS] = settings
    for group in (_drain, database):
        app.cli.add_command(group)
    key_commands.register(app)
    webhook_commands.register(app)


@click.group("drain", cls=TellingGroup)
def _drain() -> None:
    """Prepare for a stop: take no new work, start nothing, let what runs come to its end."""


@_drain.command("on")
@click.option("--reason", type=Text(), default="", metavar="TEXT", help="Told by /api/v1/health.")
@with_appcontext
def _on(reason: str) -> None:
    """Refuse new work and start no queued task, also after a restart, until `drain off`."""
    drain.begin(opened_manager().store.state, reason, utc_now())
    _tell_status()


@_drain.command("off")
@with_appcontext
def _off() -> None:
    """Take new work and start what is queued."""
    manager = opened_manager()
    drain.end(manager.store.state)
    ring(manager.folders.wake)
    _tell_status()


@_drain.command("status")
@with_appcontext
def _status() -> None:
    """Say whether the service drains, and what runs and waits."""
    _tell_status()


@_drain.command("wait")
@click.option("--timeout", type=Number(min=0), default=math.inf, metavar="S", help="Seconds; default: none.")
@with_appcontext
def _wait(timeout: float) -> None:
    """Wait until no task runs. Exit 1 when some still do after the timeout.

    A task whose runner is dead does not run: the service, once it is up, ends it or queues it again.
    """
    manager, deadline = opened_manager(), time.monotonic() + timeout
    if drain.current(manager.store.state) is None:
        click.echo("the service does not drain, so tasks may start at any time: see drain on", err=True)
    running = _wait_for_none(manager, deadline)
    if running:
        click.echo(f"{_tasks(running)} still running after {timeout:g} s", err=True)
        raise SystemExit(1)
    lost = manager.store.counts()[Status.PROCESSING]
    if lost:
        click.echo(f"{_tasks(lost)} lost the process that ran it: tried again once the service is up", err=True)
    click.echo("no task is running")


@dataclass(frozen=True, slots=True)
class _Running:
    """How many tasks are being worked on."""

    tasks: int

    @property
    def tag(self) -> str:
        return str(self.tasks)


def _wait_for_none(manager: TaskManager, deadline: float) -> int:
    """Return how many tasks run when none does or the deadline has come; say now and then how many still do."""
    waiting = Waiting(
        manager.store.changes, lambda keys: dict.fromkeys(keys, _look(manager).tag), lambda _: _look(manager), 1
    )
    running, tell_at = _look(manager), 0.0
    try:
        while running.tasks and (left := deadline - (now := time.monotonic())) > 0:
            if now >= tell_at:
                click.echo(f"{_tasks(running.tasks)} still running")
                tell_at = now + _TELL_SECONDS
            before, seconds = running, min(left, _LOOK_SECONDS)
            running, _ = waiting.until("", partial(operator.ne, before), seconds)
            tell_at = tell_at if running == before else 0.0
    finally:
        waiting.stop()
    return running.tasks


def _look(manager: TaskManager) -> _Running:
    """Count them; nobody may be there to notice that a runner has died."""
    held = manager.folders.is_held
    return _Running(sum(held(task.id, task.attempt) for task in manager.store.processing()))


def _tell_status() -> None:
    manager = opened_manager()
    counts, on = manager.store.counts(), drain.current(manager.store.state)
    click.echo(f"{on or 'not draining'}; {_tasks(counts[Status.PROCESSING])} running, {counts[Status.QUEUED]} queued")


def _tasks(number: int) -> str:
    return f"{number} task{'' if number == 1 else 's'}"
