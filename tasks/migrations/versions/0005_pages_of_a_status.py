"""A tenant's tasks of one status in the order of pages: few of many, found without a look at the others."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_index("tasks_of_tenant_by_status", "tasks", ["tenant", "status", "seq"])
