"""The words of a request beside its contents: what it names may be gone when it comes again with its key."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("idempotency_keys", sa.Column("asked", sa.String(64)))
