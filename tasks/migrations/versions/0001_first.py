"""The first tables."""

import sqlalchemy as sa
from alembic import op

from tasks.schema import Instant

revision = "0001"
down_revision = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "tasks",
        sa.Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("engine", sa.String(64), nullable=False),
        sa.Column("profile", sa.String(64), nullable=False),
        sa.Column("params", sa.JSON, nullable=False),
        sa.Column("plan", sa.JSON, nullable=False),
        sa.Column("adjustments", sa.JSON, nullable=False),
        sa.Column("notes", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("submit_time", Instant, nullable=False),
        sa.Column("updated_at", Instant, nullable=False),
        sa.Column("start_time", Instant),
        sa.Column("finish_time", Instant),
        sa.Column("work_seconds", sa.Float, nullable=False),
        sa.Column("estimated_seconds", sa.Float, nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("progress", sa.Float, nullable=False),
        sa.Column("eta_seconds", sa.Float),
        sa.Column("slot", sa.String(64)),
        sa.Column("runner", sa.JSON),
        sa.Column("heartbeat_at", Instant),
        sa.Column("failure", sa.JSON),
        sa.Column("result", sa.JSON),
        sqlite_autoincrement=True,
    )
    op.create_index("tasks_by_turn", "tasks", ["status", "priority", "seq"])
    op.create_index("tasks_of_tenant", "tasks", ["tenant", "seq"])
    op.create_table(
        "tombstones",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("deleted_at", Instant, nullable=False),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("task_id", sa.String(64), nullable=False, index=True),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("expires_at", Instant),
    )
    op.create_table(
        "uploads",
        sa.Column("path", sa.String(128), primary_key=True),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("media", sa.JSON, nullable=False),
        sa.Column("created_at", Instant, nullable=False),
    )
    op.create_table(
        "estimates",
        sa.Column("profile", sa.String(128), primary_key=True),
        sa.Column("samples", sa.Integer, nullable=False),
        sa.Column("load_seconds", sa.Float, nullable=False),
        sa.Column("rate_factor", sa.Float, nullable=False),
    )
