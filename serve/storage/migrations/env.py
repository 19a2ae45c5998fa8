"""What Alembic runs for every migration: on the connection and in the transaction of migrate.py, never by itself."""

from __future__ import annotations

from alembic import context

from tinycluster.serve.storage.tables import metadata

# All steps of a migration, or none: both databases can take a CREATE TABLE back.
context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
context.run_migrations()
