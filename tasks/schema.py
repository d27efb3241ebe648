"""The tables, and how a database is opened.

SQLite runs in WAL with synchronous=FULL: a 201 that was answered survives a power cut. Writers begin IMMEDIATE, so a
transaction that read a row and then writes it cannot lose the lock in between. All times are integers, microseconds
since the epoch: they sort and compare the same in every database.
"""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    text,
)  # fmt: skip
from sqlalchemy.engine import URL, make_url
from sqlalchemy.types import TypeDecorator

HEAD = "0010"
"""The newest migration; a test holds it against the migrations folder. Later ones sort after earlier ones."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime, stored as integer microseconds since the epoch."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> int | None:
        if value is None:
            return None
        since = value - _EPOCH
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds

    def process_result_value(self, value: int | None, dialect: Any) -> datetime | None:
        return (
            None
            if value is None
            else datetime.fromtimestamp(value // 1_000_000, UTC).replace(microsecond=value % 1_000_000)
        )


metadata = MetaData()

_Sequence = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows only in a column typed INTEGER

_WITH_WEBHOOK = text("webhook_url IS NOT NULL")

tasks = Table(
    "tasks",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("tenant", String(128), nullable=False),
    Column("status", String(16), nullable=False),
    Column("version", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("engine", String(64), nullable=False),
    Column("profile", String(64), nullable=False),
    Column("params", JSON, nullable=False),
    Column("plan", JSON, nullable=False),
    Column("adjustments", JSON, nullable=False),
    Column("notes", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("submit_time", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("start_time", Instant),
    Column("finish_time", Instant),
    Column("work_seconds", Float, nullable=False),
    Column("estimated_seconds", Float, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("progress", Float, nullable=False),
    Column("eta_seconds", Float),
    Column("slot", String(64)),
    Column("gpus", JSON),
    Column("runner", JSON),
    Column("heartbeat_at", Instant),
    Column("failure", JSON),
    Column("result", JSON),
    Column("stored_bytes", BigInteger),
    Column("webhook_url", Text),
    Index("tasks_by_turn", "status", "priority", "seq"),
    Index("tasks_of_tenant", "tenant", "seq"),
    Index("tasks_of_tenant_by_status", "tenant", "status", "seq"),
    Index("tasks_by_end", "finish_time"),
    Index("tasks_to_tell", "finish_time", sqlite_where=_WITH_WEBHOOK, postgresql_where=_WITH_WEBHOOK),
    sqlite_autoincrement=True,
)

tombstones = Table(
    "tombstones",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("deleted_at", Instant, nullable=False),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant", String(128), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("task_id", String(64), nullable=False, index=True),
    Column("answer", Text, nullable=False),
    Column("expires_at", Instant),
    Column("asked", String(64)),
)

uploads = Table(
    "uploads",
    metadata,
    Column("path", String(128), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("media", JSON, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("used_at", Instant),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("last_used_at", Instant),
    Column("revoked_at", Instant),
)

video_days = Table(
    "video_days",
    metadata,
    Column("tenant", String(128), primary_key=True),
    Column("day", String(10), nullable=False),
    Column("seconds", Float, nullable=False),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("task_id", String(64), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("url", Text, nullable=False),
    Column("host", String(255), nullable=False),
    Column("status", String(16), nullable=False),
    Column("version", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("next_attempt_at", Instant),
    Column("deliveries", JSON, nullable=False),
    Index("webhooks_by_turn", "status", "next_attempt_at"),
    Index("webhooks_by_age", "status", "created_at"),
    Index("webhooks_by_receiver", "status", "tenant", "host", "next_attempt_at"),
)

webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("tenant", String(128), nullable=False, index=True),
    Column("secret", String(64), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
)

service_state = Table(
    "service_state",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", JSON, nullable=False),
    Column("updated_at", Instant, nullable=False),
)

estimates = Table(
    "estimates",
    metadata,
    Column("profile", String(128), primary_key=True),
    Column("samples", Integer, nullable=False),
    Column("load_seconds", Float, nullable=False),
    Column("rate_factor", Float, nullable=False),
)

totals = Table(
    "totals",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("engine", String(64), primary_key=True),
    Column("profile", String(64), primary_key=True),
    Column("label", String(32), primary_key=True),
    Column("value", Float, nullable=False),
)


def sqlite_file(url: str | URL) -> Path | None:
    """Return the file of an SQLite URL; None for another kind of database, or one in memory."""
    made = make_url(url)
    name = made.database or ""
    return Path(name) if made.get_backend_name() == "sqlite" and name not in ("", ":memory:") else None


def open_database(url: str, busy_seconds: float = 30.0) -> Engine:
    """Return an engine for `url`; SQLite connections get the pragmas above, and `write=True` begins IMMEDIATE.

    An SQLite file must exist. `busy_seconds` is how long a writer waits for another one before it fails. No error tells
    the values of a statement: they are prompts, addresses with tokens in them and secrets, and errors are logged.
    """
    options: dict[str, Any] = {"pool_pre_ping": True, "hide_parameters": True}
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, **options)
    # One connection a thread at most; a burst of web threads must not fail for want of a connection.
    path = sqlite_file(url)
    if path is not None:
        options["creator"] = partial(_connect_sqlite, path.absolute(), busy_seconds)
    engine = create_engine(url, **options, pool_size=8, max_overflow=-1)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _connect_sqlite(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """Open a file that is there: one that vanished under a running service must not come back empty."""
    uri = f"{path.as_uri()}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=busy_seconds, check_same_thread=False)


def _prepare_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin by itself: _begin_sqlite does
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
