"""How much video each tenant submitted in a day."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "video_days",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
    )
