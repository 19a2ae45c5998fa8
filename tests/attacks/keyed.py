"""A victim with keys, which are made in its database before it starts, so that no argument of it is one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.attacks.contract import Victim, victim
from tinycluster.serve.fields import validated
from tinycluster.serve.new_key import NewKey, create_key, revoke_key
from tinycluster.serve.storage.keys import Keys
from tinycluster.serve.storage.storage import open_storage

ROLES = {"admin": "admin", "alice": "user", "bob": "user"}


@contextmanager
def keys_of(url: str) -> Iterator[Keys]:
    with closing(open_storage(url)) as storage:
        yield storage.keys


def make(url: str, name: str, **wanted: Any) -> str:
    with keys_of(url) as keys:
        return asyncio.run(create_key(keys, validated(NewKey, {"name": name, **wanted})))[1]


def revoke(url: str, name: str) -> None:
    with keys_of(url) as keys:
        asyncio.run(revoke_key(keys, name))


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'keys.db'}"


@contextmanager
def keyed_victim(
    folder: Path, options: Mapping[str, Any], who: str = "alice"
) -> Iterator[tuple[Victim, dict[str, str]]]:
    """The server, whose own good requests use the key of `who`, and the keys by name."""
    url = url_of(folder)
    keys = {name: make(url, name, role=role) for name, role in ROLES.items()}
    with victim({**options, "storage_url": url}, key=keys[who]) as server:
        yield server, keys
