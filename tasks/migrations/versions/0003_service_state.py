"""What the service knows of itself, and what retention needs: bytes kept for a task, an upload's last use."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "service_state",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.JSON, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
    op.add_column("tasks", sa.Column("stored_bytes", sa.BigInteger))
    op.add_column("uploads", sa.Column("used_at", sa.BigInteger))
    op.create_index("tasks_by_end", "tasks", ["finish_time"])
