"""Keys and users' settings, over every database."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tinycluster.engine.errors import RequestError
from tinycluster.serve.storage.storage import Storage, open_storage


def test_a_key_is_kept_as_it_was_made_until_and_after_it_is_revoked(storage: Storage) -> None:
    async def live() -> None:
        keys = storage.keys
        made = await keys.create(
            name="Ann's \0 laptop", hash="abc", hint="xyz", role="admin", max_running=3, weight=0.5
        )
        other = await keys.create(name="Bob", hash="abd", hint="yz")
        by_id = sorted([made, other], key=lambda key: key.id)
        assert sorted(await keys.list(), key=lambda key: key.id) == by_id
        assert (other.role, other.weight, other.expires_ms, other.max_running) == ("user", 1.0, None, None)
        revoked = await keys.revoke(made.id)
        assert revoked is not None
        assert revoked.revoked_ms is not None
        assert revoked == replace(made, revoked_ms=revoked.revoked_ms)
        assert await keys.revoke(made.id) == revoked
        assert await keys.revoke("key_nobody") is None
        assert sorted(key.id for key in await keys.list()) == sorted([made.id, other.id])
        assert await keys.count() == 2

    asyncio.run(live())


def test_the_version_of_the_keys_changes_with_every_change_and_only_then(storage: Storage) -> None:
    async def versions() -> None:
        keys = storage.keys
        seen = [await keys.version()]
        made = await keys.create(name="a", hash="a", hint="a")
        seen.append(await keys.version())
        with pytest.raises(RequestError, match="such a key already"):
            await keys.create(name="b", hash="a", hint="a")
        assert await keys.version() == seen[-1]
        await keys.revoke(made.id)
        seen.append(await keys.version())
        await keys.revoke(made.id)
        assert await keys.version() == seen[-1]
        assert len(set(seen)) == 3

    asyncio.run(versions())


def test_a_name_is_free_again_once_its_key_is_revoked(storage: Storage) -> None:
    async def live() -> None:
        keys = storage.keys
        first = await keys.create(name="zoe", hash="a", hint="a")
        with pytest.raises(RequestError, match="'zoe' already"):
            await keys.create(name="zoe", hash="b", hint="b")
        await keys.revoke(first.id)
        await keys.create(name="zoe", hash="b", hint="b")

    asyncio.run(live())


def test_of_many_who_take_a_name_at_once_one_gets_it(tmp_path: Path) -> None:
    """Each over a connection of its own, as different processes are."""
    url = f"sqlite:///{tmp_path / 'keys.db'}"

    async def take(storage: Storage, number: int) -> bool:
        try:
            await storage.keys.create(name="admin", hash=f"hash {number}", hint="h")
        except RequestError:
            return False
        return True

    async def race(first: Storage, second: Storage) -> list[bool]:
        return await asyncio.gather(*(take((first, second)[number % 2], number) for number in range(50)))

    with closing(open_storage(url)) as first, closing(open_storage(url)) as second:
        assert asyncio.run(race(first, second)).count(True) == 1
        assert asyncio.run(first.keys.count()) == 1


def test_settings_are_each_users_own_and_replaced_as_a_whole(storage: Storage) -> None:
    async def put_and_get() -> None:
        settings = storage.settings
        assert await settings.get("ann") == {}
        await settings.put("ann", {"theme": "dark", "text": "a\0\ud800"})
        await settings.put("bob", {"theme": "light"})
        assert await settings.get("ann") == {"theme": "dark", "text": "a\0\ud800"}
        await settings.put("ann", {"size": 2})
        assert (await settings.get("ann"), await settings.get("bob")) == ({"size": 2}, {"theme": "light"})

    asyncio.run(put_and_get())
