"""The repository of API keys: of each its hash, never the key itself."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

from sqlalchemy import Connection, bindparam, func, insert, select, text, update

from tinycluster.engine.errors import RequestError
from tinycluster.serve.storage.database import Database
from tinycluster.serve.storage.tables import api_keys, key_changes

Role = Literal["user", "admin"]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """`hash` and `hint` are what key_form.py makes of the key; None is no limit, no expiry, not revoked.

    Times are milliseconds since 1970.
    """

    id: str
    name: str
    hash: str
    hint: str
    role: Role
    created_ms: int
    expires_ms: int | None
    revoked_ms: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_running: int | None
    weight: float

    def is_good(self, now_ms: float) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_ms is None and (self.expires_ms is None or now_ms < self.expires_ms)


COLUMNS = [api_keys.c[field.name] for field in fields(ApiKey)]
ALL = select(*COLUMNS).order_by(api_keys.c.created_ms, api_keys.c.id)
BY_HASH = select(*COLUMNS).where(api_keys.c.hash == bindparam("hash"))
BY_ID = select(*COLUMNS).where(api_keys.c.id == bindparam("id"))
INSERT = insert(api_keys)
REVOKE = (
    update(api_keys)
    .where(api_keys.c.id == bindparam("key_id"), api_keys.c.revoked_ms.is_(None))
    .values(revoked_ms=bindparam("now_ms"))
)
VERSION = select(key_changes.c.version).where(key_changes.c.id == 1)
NEXT_VERSION = text(
    "INSERT INTO key_changes (id, version) VALUES (1, 1) "
    "ON CONFLICT (id) DO UPDATE SET version = key_changes.version + 1"
)
SAME_NAME = select(api_keys.c.id).where(api_keys.c.name == bindparam("name"), api_keys.c.revoked_ms.is_(None))


class Keys:
    """`clock` gives Unix seconds. StorageError (503) where the database fails."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock

    async def create(
        self,
        *,
        name: str,
        hash: str,
        hint: str,
        role: Role = "user",
        expires_ms: int | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_running: int | None = None,
        weight: float = 1.0,
    ) -> ApiKey:
        """A new key, with an id of its own: key_… RequestError where there is one of this hash already, or one of this
        name that is not revoked."""
        key = ApiKey(
            id=f"key_{uuid.uuid4().hex}",
            name=name,
            hash=hash,
            hint=hint,
            role=role,
            created_ms=self._now_ms(),
            expires_ms=expires_ms,
            revoked_ms=None,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            max_running=max_running,
            weight=weight,
        )
        await self._database.write(lambda connection: _create(connection, key))
        return key

    async def list(self) -> Sequence[ApiKey]:
        """All of them, revoked ones too, the oldest first."""
        return await self._database.read(lambda connection: [ApiKey(*row) for row in connection.execute(ALL)])

    async def revoke(self, key_id: str) -> ApiKey | None:
        """The key, revoked from its first revocation on; None where there is none."""
        now_ms = self._now_ms()

        def revoke(connection: Connection) -> ApiKey | None:
            if connection.execute(REVOKE, {"key_id": key_id, "now_ms": now_ms}).rowcount:
                connection.execute(NEXT_VERSION)
            return _get(connection, key_id)

        return await self._database.write(revoke)

    async def count(self) -> int:
        """Of all keys, revoked ones too."""
        number = select(func.count()).select_from(api_keys)
        return await self._database.read(lambda connection: connection.execute(number).scalar_one())

    async def version(self) -> int:
        """Grows with every change of any key, by any server: 0 before the first."""
        return await self._database.read(lambda connection: connection.execute(VERSION).scalar() or 0)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _create(connection: Connection, key: ApiKey) -> None:
    # First: whoever else makes a key then waits, so that what is read here still holds at the commit.
    connection.execute(NEXT_VERSION)
    if connection.execute(BY_HASH, {"hash": key.hash}).first() is not None:
        raise RequestError("There is such a key already", "hash")
    if connection.execute(SAME_NAME, {"name": key.name}).first() is not None:
        raise RequestError(f"There is a key with the name {key.name!r} already", "name", "name_taken")
    connection.execute(INSERT, asdict(key))


def _get(connection: Connection, key_id: str) -> ApiKey | None:
    row = connection.execute(BY_ID, {"id": key_id}).one_or_none()
    return None if row is None else ApiKey(*row)
