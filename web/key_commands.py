"""`flask --app app keys ...`: making, listing and ending API keys."""

from __future__ import annotations

from datetime import datetime

import click
from flask import Flask
from flask.cli import with_appcontext

from tasks.keys import SCOPES, ApiKeys, NoSuchKey
from web.command_app import Number, TellingGroup, Text, opened_manager

_MOST_DAYS = 36_500
"""A hundred years; what is meant to be for ever is said by leaving it out."""


def register(app: Flask) -> None:
    """Add the commands to those of `app`."""
    app.cli.add_command(_keys)


def _known() -> ApiKeys:
    return opened_manager().store.keys


@click.group("keys", cls=TellingGroup)
def _keys() -> None:
    """API keys of tenants."""


@_keys.command("create")
@click.option("--tenant", required=True, metavar="NAME", help="To whom everything belongs that the key makes.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="Default: generate and read.")
@click.option(
    "--days", type=Number(min=0, min_open=True, max=_MOST_DAYS), help="How long it is good; default: for ever."
)  # fmt: skip
@with_appcontext
def _create(tenant: str, scopes: tuple[str, ...], days: float | None) -> None:
    """Make a key and print it, once: only a hash of it is kept."""
    try:
        key, text = _known().create(tenant, frozenset(scopes or ("generate", "read")), days)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    click.echo(f"key {key.id} of {key.tenant}, {_words(key.scopes)}; it is not shown again:", err=True)
    click.echo(text)


@_keys.command("list")
@with_appcontext
def _list() -> None:
    """Print all keys, without their secrets."""
    click.echo(f"{'id':12}  {'tenant':20}  {'scopes':20}  {'created':10}  {'expires':10}  {'last used':10}  state")
    for key in _known().all():
        days = "  ".join(_day(moment) for moment in (key.created_at, key.expires_at, key.last_used_at))
        state = f"revoked {_day(key.revoked_at)}" if key.revoked_at else "good" if key.usable(_now()) else "expired"
        click.echo(f"{key.id}  {key.tenant:20}  {_words(key.scopes):20}  {days}  {state}")


@_keys.command("revoke")
@click.argument("key_id", type=Text(), metavar="ID")
@with_appcontext
def _revoke(key_id: str) -> None:
    """End a key at once. ID is its second part, as `list` shows it."""
    try:
        _known().revoke(key_id)
    except NoSuchKey:
        raise click.ClickException(f"there is no key {key_id} that could be revoked") from None
    click.echo(f"key {key_id} opens nothing any more")


def _words(scopes: frozenset[str]) -> str:
    return ",".join(scope for scope in SCOPES if scope in scopes)


def _day(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d}" if moment else f"{'-':10}"


def _now() -> datetime:
    return datetime.now().astimezone()
