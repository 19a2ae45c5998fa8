"""The keys of the storage, in memory, so that a request need not ask for its key.

Nothing that is said of a key is older than MAX_AGE_S: a key that was revoked by any process is refused within that
time. While the storage does not answer, no key is good. What a key has running when it is revoked or expires is ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tinycluster.engine.errors import TinyclusterError
from tinycluster.serve.errors import ErrorReply, HttpError
from tinycluster.serve.key_form import hash_of, is_same_hash
from tinycluster.serve.key_limits import Account, Limits
from tinycluster.serve.storage.keys import ApiKey

log = logging.getLogger(__name__)

MAX_AGE_S = 1.0
CHECK_S = 0.5
"""What is older is asked again, beside the request that finds it so."""
NO_HASH = "0" * 64


class KeyStore(Protocol):
    """serve/storage/keys.py's Keys."""

    async def list(self) -> Sequence[ApiKey]: ...

    async def version(self) -> int: ...


class KeyRing:
    """Used on one event loop. `told` gets the weight of every key's id, again and again.

    `clock` gives seconds that never go back, `now` Unix seconds.
    """

    def __init__(
        self,
        store: KeyStore,
        told: Callable[[Mapping[str, float]], None],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._told, self._clock, self._now = store, told, clock, now
        self._version: int | None = None
        self._by_hash: dict[str, ApiKey] = {}
        self._accounts: dict[str, Account] = {}
        self._weights: Mapping[str, float] = {}
        self._checked_s = float("-inf")
        self._checking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def find(self, key: str) -> ApiKey | None:
        """The good key of this text. StorageError where the storage does not say which are."""
        asked_s = self._clock()
        age_s = asked_s - self._checked_s
        if age_s >= CHECK_S:
            checking = self._check_soon()
            if age_s >= MAX_AGE_S:
                # A client that leaves must not end what the others wait for.
                await asyncio.shield(checking)
        digest = hash_of(key)
        while digest not in self._by_hash and self._checked_s < asked_s:
            # It may be newer than what was read.
            await asyncio.shield(self._check_soon())
        found = self._by_hash.get(digest)
        is_same = is_same_hash(digest, NO_HASH if found is None else found.hash)
        return found if found is not None and is_same and found.is_good(self._now() * 1000) else None

    def account(self, key: ApiKey) -> Account:
        """Of a key that was found."""
        return self._accounts[key.id]

    def _start_watching(self) -> None:
        if self._watching is None or self._watching.done():
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    def _check_soon(self) -> asyncio.Task[None]:
        if self._checking is None or self._checking.done():
            self._checking = asyncio.get_running_loop().create_task(self._check())
            self._checking.add_done_callback(_note)
        return self._checking

    async def _check(self) -> None:
        asked_s = self._clock()
        version = await self._store.version()
        if version != self._version:
            # Asked for after the version: what changes in between is found by the next check.
            self._take(await self._store.list())
            self._version = version
        self._told(self._weights)
        self._checked_s = asked_s

    def _take(self, keys: Sequence[ApiKey]) -> None:
        self._by_hash = {key.hash: key for key in keys}
        self._weights = {key.id: key.weight for key in keys}
        for key in keys:
            limits = Limits(key.requests_per_minute, key.tokens_per_minute, key.max_running)
            self._accounts.setdefault(key.id, Account(limits, self._clock, self._start_watching))

    async def _watch(self) -> None:
        """While anything runs: a stream asks for nothing that would make its key be looked at."""
        while True:
            await asyncio.sleep(CHECK_S)
            # What begins after this line finds the task done, or in its next sleep.
            if all(account.is_idle for account in self._accounts.values()):
                return
            await asyncio.wait([self._check_soon()])
            now_ms = self._now() * 1000
            for key in self._by_hash.values():
                if not key.is_good(now_ms):
                    self._accounts[key.id].refuse_running(invalid_key())


def _note(checking: asyncio.Task[None]) -> None:
    error = None if checking.cancelled() else checking.exception()
    if error is not None and not isinstance(error, TinyclusterError):
        log.error("the keys could not be read", exc_info=error)


def invalid_key() -> HttpError:
    message = "The API key is not one of this server's, or it was revoked or has expired"
    return HttpError(
        ErrorReply(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"}),
    )
