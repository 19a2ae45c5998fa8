"""How long the keys in memory may differ from those in the storage."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from tinycluster.engine.errors import UnavailableError
from tinycluster.serve import key_form, key_ring
from tinycluster.serve.key_form import hash_of, key_in, new_key
from tinycluster.serve.key_ring import MAX_AGE_S, KeyRing
from tinycluster.serve.storage.keys import ApiKey


@dataclass
class Store:
    """Keys by text; `is_gone` while the database does not answer."""

    keys: dict[str, ApiKey] = field(default_factory=dict)
    number: int = 0
    num_asked: int = 0
    is_gone: bool = False

    def put(self, text: str, **fields: object) -> None:
        key = ApiKey("key_" + text, text, hash_of(text), "hint", "user", 0, None, None, None, None, None, 1.0)
        self.keys[text] = replace(key, **fields)
        self.number += 1

    async def list(self) -> list[ApiKey]:
        return list(self.keys.values())

    async def version(self) -> int:
        self.num_asked += 1
        if self.is_gone:
            raise UnavailableError("the storage does not answer")
        return self.number


class Ring(KeyRing):
    """At a time that the test sets, of keys that the test changes."""

    def __init__(self) -> None:
        self.now_s, self.store, self.weights = 1000.0, Store(), dict[str, float]()
        super().__init__(self.store, self._tell, lambda: self.now_s, lambda: self.now_s)

    def _tell(self, weights: Mapping[str, float]) -> None:
        self.weights = dict(weights)


def test_a_new_key_is_good_at_once() -> None:
    async def scenario() -> None:
        ring = Ring()
        assert await ring.find("a") is None
        ring.now_s += 0.001
        ring.store.put("a")
        assert await ring.find("a") is not None

    asyncio.run(scenario())


def test_wrong_keys_that_come_together_ask_the_storage_together() -> None:
    async def scenario() -> None:
        ring = Ring()
        assert await ring.find("wrong") is None
        ring.now_s += 0.001
        ring.store.num_asked = 0
        assert set(await asyncio.gather(*(ring.find(f"wrong {number}") for number in range(100)))) == {None}
        assert ring.store.num_asked == 1

    asyncio.run(scenario())


def test_a_revoked_key_is_refused_within_a_second() -> None:
    async def scenario() -> None:
        ring = Ring()
        ring.store.put("a")
        assert await ring.find("a") is not None
        ring.store.put("a", revoked_ms=1)
        ring.now_s += MAX_AGE_S
        assert await ring.find("a") is None

    asyncio.run(scenario())


def test_a_new_key_is_known_within_a_second() -> None:
    async def scenario() -> None:
        ring = Ring()
        assert await ring.find("a") is None
        ring.store.put("a", weight=3.0)
        ring.now_s += MAX_AGE_S
        assert await ring.find("a") is not None
        assert ring.weights == {"key_a": 3.0}

    asyncio.run(scenario())


def test_an_expired_key_is_refused_without_asking_the_storage() -> None:
    async def scenario() -> None:
        ring = Ring()
        ring.store.put("a", expires_ms=1000_100)
        assert await ring.find("a") is not None
        ring.now_s += 0.1
        assert await ring.find("a") is None
        assert ring.store.num_asked == 1

    asyncio.run(scenario())


def test_the_storage_is_asked_at_most_twice_a_second_however_many_ask() -> None:
    async def scenario() -> None:
        ring = Ring()
        ring.store.put("a")
        for _ in range(1000):
            assert all(await asyncio.gather(*(ring.find("a") for _ in range(3))))
            ring.now_s += 0.01
        assert ring.store.num_asked <= 20

    asyncio.run(scenario())


def test_while_the_storage_does_not_answer_no_key_is_good() -> None:
    async def scenario() -> None:
        ring = Ring()
        ring.store.put("a")
        assert await ring.find("a") is not None
        ring.store.is_gone = True
        ring.now_s += MAX_AGE_S
        for _ in range(2):
            with pytest.raises(UnavailableError):
                await ring.find("a")
        ring.store.is_gone = False
        assert await ring.find("a") is not None

    asyncio.run(scenario())


def test_a_hash_that_begins_like_a_good_one_is_none() -> None:
    """The comparison looks at all of it."""

    async def scenario() -> None:
        ring = Ring()
        ring.store.put("a")
        assert await ring.find("a") is not None
        ring._by_hash = {hash_of("b"): replace(ring.store.keys["a"], hash=hash_of("b")[:-1] + "x")}
        assert await ring.find("b") is None

    asyncio.run(scenario())


def test_row_5_hashes_are_compared_by_compare_digest() -> None:
    """Row 5 of the attacks, by the code: nothing else compares what a client has sent."""
    assert "hmac.compare_digest(one, other)" in inspect.getsource(key_form.is_same_hash)
    source = inspect.getsource(key_ring)
    assert source.count("is_same_hash(digest") == 1
    assert ".hash ==" not in source


def test_keys_are_256_random_bits_of_one_form() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert {len(key) for key in made} == {3 + 43}
    # The scheme's name is written as one likes (RFC 9110, 11.1).
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert all(key_in([(b"authorization", f"{scheme} {key}".encode())]) == key for key in made)
