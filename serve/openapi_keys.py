"""What /api/me and /api/keys answer with, for /openapi.json."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from tinycluster.serve.storage.keys import Role


class Me(BaseModel):
    auth: Literal["none", "keys"]
    name: str | None
    role: Role


class ShownKey(BaseModel):
    """`hint` is the end of the key; times are Unix seconds."""

    id: str
    name: str
    hint: str
    role: Role
    state: Literal["good", "expired", "revoked"]
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_running: int | None
    weight: float


class KeyList(BaseModel):
    keys: list[ShownKey]


class MadeKey(ShownKey):
    key: str


class DeletedKey(BaseModel):
    id: str
    deleted: bool
