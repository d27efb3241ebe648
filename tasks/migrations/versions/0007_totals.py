"""What has happened in all, which outlives the tasks that it happened to."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "totals",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("engine", sa.String(64), primary_key=True),
        sa.Column("profile", sa.String(64), primary_key=True),
        sa.Column("label", sa.String(32), primary_key=True),
        sa.Column("value", sa.Float, nullable=False),
    )
