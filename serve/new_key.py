"""The making of a key: by the command line, and by an admin over HTTP."""

from __future__ import annotations

import time
from typing import Any

from pydantic import Field, field_validator

from tinycluster.engine.errors import RequestError
from tinycluster.serve.fields import Fields
from tinycluster.serve.key_form import hash_of, hint_of, new_key
from tinycluster.serve.storage.keys import ApiKey, Keys, Role

MAX_SECONDS = 100 * 366 * 24 * 3600.0
MAX_COUNT = 2**53


class NewKey(Fields):
    """What a key is to be. Without a limit there is none; without `expires_in` it is good until it is revoked."""

    name: str = Field(min_length=1, max_length=64)
    role: Role = "user"
    expires_in: float | None = Field(default=None, gt=0, le=MAX_SECONDS)
    """Seconds."""
    requests_per_minute: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    max_running: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    weight: float = Field(default=1.0, gt=0, le=1e6)
    """Its part of the model while there is not enough for all: 2 gets twice of what 1 gets."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        # It stands in logs and on terminals.
        if not value.isprintable() or value != value.strip() or value.startswith("key_"):
            raise ValueError("must be printable, without spaces around it, and not begin with key_")
        return value


async def create_key(keys: Keys, wanted: NewKey) -> tuple[ApiKey, str]:
    """What is kept of a new key, and the key itself, which nobody can find out again. RequestError (name) where the
    name is taken."""
    text = new_key()
    expires_ms = None if wanted.expires_in is None else int((time.time() + wanted.expires_in) * 1000)
    kept = await keys.create(
        name=wanted.name,
        hash=hash_of(text),
        hint=hint_of(text),
        role=wanted.role,
        expires_ms=expires_ms,
        requests_per_minute=wanted.requests_per_minute,
        tokens_per_minute=wanted.tokens_per_minute,
        max_running=wanted.max_running,
        weight=wanted.weight,
    )
    return kept, text


async def revoke_key(keys: Keys, name_or_id: str) -> ApiKey:
    """The key of this id, or the one of this name that is not revoked. RequestError where there is none."""
    meant = [
        key for key in await keys.list() if key.id == name_or_id or (key.name == name_or_id and not key.revoked_ms)
    ]
    revoked = await keys.revoke(meant[0].id) if meant else None
    if revoked is None:
        raise RequestError(f"There is no key with the name or id {name_or_id[:64]!r}", "name")
    return revoked


def shown(key: ApiKey, now_ms: float) -> dict[str, Any]:
    """A key as admins see it. Times are Unix seconds."""
    state = "revoked" if key.revoked_ms is not None else "good" if key.is_good(now_ms) else "expired"
    return {
        "id": key.id,
        "name": key.name,
        "hint": key.hint,
        "role": key.role,
        "state": state,
        "created_at": key.created_ms // 1000,
        "expires_at": None if key.expires_ms is None else key.expires_ms // 1000,
        "revoked_at": None if key.revoked_ms is None else key.revoked_ms // 1000,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "max_running": key.max_running,
        "weight": key.weight,
    }
