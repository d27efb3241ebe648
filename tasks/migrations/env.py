"""Alembic's entry: runs the migrations on the connection, and in the transaction, that tasks.schema hands over."""

from alembic import context

from tasks.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
context.run_migrations()
