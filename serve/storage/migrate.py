"""The database's tables, brought to this release by Alembic."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection

from tinycluster.engine.errors import ConfigError

SCRIPTS = Path(__file__).parent / "migrations"


def migrate(connection: Connection) -> None:
    """In the connection's transaction, which the caller commits: killed before that, nothing has changed.

    ConfigError where a newer release has been there before.
    """
    # Alembic takes a third of a second to import, which only servers need.
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    try:
        if current == scripts.get_current_head():
            return
        if current is not None:
            scripts.get_revision(current)
    except CommandError:
        raise ConfigError(
            f"storage.url: the database is of a newer release of tinycluster (revision {current})"
        ) from None
    command.upgrade(config, "head")
