"""Webhooks: where a task's end is told, the outbox of what is to be told, and the secrets that sign it."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("tasks", sa.Column("webhook_url", sa.Text))
    told = sa.text("webhook_url IS NOT NULL")
    op.create_index("tasks_to_tell", "tasks", ["finish_time"], sqlite_where=told, postgresql_where=told)
    op.create_table(
        "webhooks",
        sa.Column("task_id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("next_attempt_at", sa.BigInteger),
        sa.Column("deliveries", sa.JSON, nullable=False),
    )
    op.create_index("webhooks_by_turn", "webhooks", ["status", "next_attempt_at"])
    op.create_index("webhooks_by_age", "webhooks", ["status", "created_at"])
    op.create_table(
        "webhook_secrets",
        sa.Column("id", sa.String(12), primary_key=True),
        sa.Column("tenant", sa.String(128), nullable=False, index=True),
        sa.Column("secret", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
    )
