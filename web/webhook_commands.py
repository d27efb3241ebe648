"""`flask --app app webhooks ...`: the secrets that sign, what became of messages, and telling one anew."""

from __future__ import annotations

from datetime import datetime, timedelta

import click
from flask import Flask
from flask.cli import with_appcontext

from tasks.outbox import Delivery, Message, NoMessage
from web.command_app import Number, TellingGroup, Text, opened_manager

_MOST_HOURS = 8760.0
"""How long two secrets may sign: a year."""

_MOST_LISTED = 100_000


def register(app: Flask) -> None:
    """Add the commands to those of `app`."""
    app.cli.add_command(_webhooks)


@click.group("webhooks", cls=TellingGroup)
def _webhooks() -> None:
    """What is told of the ends of tasks."""


@_webhooks.command("secret")
@click.option(
    "--tenant", type=Text(), default="default", metavar="NAME", help="Without authentication all is of `default`."
)  # fmt: skip
@click.option("--rotate", is_flag=True, help="Make a new one; the present one signs beside it for a while.")
@click.option(
    "--overlap", type=Number(min=0, max=_MOST_HOURS), default=24.0, show_default=True, metavar="HOURS",
    help="How long, with --rotate; 0: not at all.",
)  # fmt: skip
@with_appcontext
def _secret(tenant: str, rotate: bool, overlap: float) -> None:
    """Print the secret by which a tenant's receiver knows that a message is from here; the first time, make it.

    All that sign are printed, a line each, the newest first.
    """
    secrets = opened_manager().store.webhook_secrets
    try:
        good = secrets.rotate(tenant, timedelta(hours=overlap)) if rotate else secrets.of(tenant)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    for one in good:
        until = f"until {_moment(one.expires_at)}" if one.expires_at else "from now on" if rotate else "at present"
        click.echo(f"signs the webhooks of {tenant} {until}:", err=True)
        click.echo(one.text)


@_webhooks.command("list")
@click.option("--task", "task_id", type=Text(), metavar="ID", help="The message of one task, with its attempts.")
@click.option("--failed", is_flag=True, help="Only what was given up.")
@click.option(
    "--limit", type=click.IntRange(min=1, max=_MOST_LISTED), default=50, show_default=True, help="The newest so many."
)  # fmt: skip
@with_appcontext
def _list(task_id: str | None, failed: bool, limit: int) -> None:
    """Print what there was and is to be told. Of addresses only the host: the rest may be a secret."""
    outbox = opened_manager().store.outbox
    if task_id is None:
        found = outbox.newest(limit, [Delivery.FAILED] if failed else [])
    elif not (found := list(outbox.of([task_id]).values())):
        raise click.ClickException(f"there is no message of a task {task_id}")
    click.echo(f"{'task':29}  {'tenant':20}  {'status':9}  {'tries':5}  {'next':19}  {'last':12}  host")
    for one in found:
        click.echo(_line(one))
    for tried in found[0].deliveries if task_id else ():
        click.echo(f"  {_moment(tried.at)}  {tried.ms:6} ms  {tried.status_code or tried.error}")


@_webhooks.command("redeliver")
@click.argument("task_id", type=Text(), metavar="TASK_ID")
@with_appcontext
def _redeliver(task_id: str) -> None:
    """Tell of a task's end anew, whatever became of it before, under the same webhook-id."""
    try:
        message = opened_manager().store.outbox.redeliver(task_id)
    except NoMessage as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{message.id} is sent to {message.host} as soon as the service runs")


def _line(one: Message) -> str:
    last = one.deliveries[-1] if one.deliveries else None
    outcome = "-" if last is None else str(last.status_code or "no answer")
    turn = _moment(one.next_attempt_at) if one.next_attempt_at else "-"
    return f"{one.task_id:29}  {one.tenant:20}  {one.status:9}  {one.attempts:5}  {turn:19}  {outcome:12}  {one.host}"


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"
