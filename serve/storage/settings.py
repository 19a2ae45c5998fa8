"""The repository of what each user has set on the web page: one JSON object each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from tinycluster.serve.storage.database import Database
from tinycluster.serve.storage.tables import user_settings

GET = select(user_settings.c.value).where(user_settings.c.owner == bindparam("owner"))
INSERT = insert(user_settings)
REPLACE = (
    update(user_settings).where(user_settings.c.owner == bindparam("whose")).values(value=bindparam("whole_value"))
)


class UserSettings:
    """StorageError (503) where the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, owner: str) -> dict[str, Any]:
        """Empty before the first put."""
        return await self._database.read(
            lambda connection: connection.execute(GET, {"owner": owner}).scalar_one_or_none() or {}
        )

    async def put(self, owner: str, value: Mapping[str, Any]) -> None:
        """Instead of all that was there."""

        def put(connection: Connection) -> None:
            if connection.execute(REPLACE, {"whose": owner, "whole_value": dict(value)}).rowcount == 0:
                connection.execute(INSERT, {"owner": owner, "value": dict(value)})

        await self._database.write(put)
