"""An index that leads to the next messages of each tenant to each host, past the thousands that a dead one has due."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_index("webhooks_by_receiver", "webhooks", ["status", "tenant", "host", "next_attempt_at"])
