"""PostgreSQL through asyncpg: a pool of connections in an event loop of its own.

Requests come from the HTTP server's loop, migrations before there is one, and the end after it: a pool belongs to one
loop, so it has a thread that lives from the first use to close().
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from tinycluster.engine.errors import ConfigError, UnavailableError
from tinycluster.serve.storage.errors import CommitUnknownError, storage_error
from tinycluster.serve.storage.migrate import migrate

T = TypeVar("T")

POOL_SIZE = 10
CONNECT_TIMEOUT_S = 10
COMMAND_TIMEOUT_S = 30
POOL_TIMEOUT_S = 10
NUM_ATTEMPTS = 4
"""Of a write that another one was quicker than."""
SERIALIZATION_FAILURE, DEADLOCK = "40001", "40P01"
MIGRATION_LOCK = 7_463_254_887
FAILURES = (SQLAlchemyError, OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)


class PostgresqlStore:
    def __init__(self, url: URL) -> None:
        self._url = url
        self._engine = create_async_engine(
            _with_driver(url),
            pool_size=POOL_SIZE,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_S,
            pool_pre_ping=True,
            connect_args={"timeout": CONNECT_TIMEOUT_S, "command_timeout": COMMAND_TIMEOUT_S},
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    def migrate(self, **_: bool) -> None:
        """ConfigError, without the password, where the server cannot be reached or does not take us."""
        try:
            self._submit(self._migrate()).result()
        except (*FAILURES, TypeError, ValueError) as error:
            raise ConfigError(f"storage.url: {self._place()} cannot be used: {self._words(error)}") from None

    def read(self, work: Callable[[Connection], T]) -> Future[T]:
        return self._submit(self._read(work))

    def write(self, work: Callable[[Connection], T]) -> Future[T]:
        """Its result comes after the commit. The work may run several times; only one run stays. CommitUnknownError
        where the connection breaks after the last statement."""
        return self._submit(self._write(work))

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            loop, thread = self._loop, self._thread
        if loop is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(self._engine.dispose(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _migrate(self) -> None:
        async with self._engine.begin() as connection:
            # Replicas that start together wait for the first.
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
            await connection.run_sync(migrate)

    async def _read(self, work: Callable[[Connection], T]) -> T:
        try:
            async with self._engine.connect() as connection:
                await connection.execution_options(isolation_level="REPEATABLE READ")
                return await connection.run_sync(work)
        except FAILURES as error:
            raise storage_error(error) from None

    async def _write(self, work: Callable[[Connection], T]) -> T:
        for attempt in range(1, NUM_ATTEMPTS + 1):
            is_done = False
            try:
                async with self._engine.begin() as connection:
                    result = await connection.run_sync(work)
                    is_done = True
                return result
            except FAILURES as error:
                if attempt == NUM_ATTEMPTS or not _was_overtaken(error):
                    failure = storage_error(error)
                    raise (CommitUnknownError(str(failure)) if is_done else failure) from None
        raise AssertionError

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if self._is_closed:
                coroutine.close()
                raise UnavailableError("the server is stopping")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="storage", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _place(self) -> str:
        return f"the PostgreSQL database {self._url.database!r} at {self._url.host or 'its socket'}"

    def _words(self, error: BaseException) -> str:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        words = " ".join(str(cause).split()) or type(cause).__name__
        password = self._url.password
        return words.replace(str(password), "***") if password else words


def _was_overtaken(error: BaseException) -> bool:
    """Whether another transaction did something meanwhile that this one will find when it runs again."""
    if isinstance(error, IntegrityError):
        return True
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in (SERIALIZATION_FAILURE, DEADLOCK)


def _with_driver(url: URL) -> URL:
    """libpq's `sslmode` is asyncpg's `ssl`."""
    query = {("ssl" if name == "sslmode" else name): value for name, value in url.query.items()}
    return url.set(drivername="postgresql+asyncpg", query=query)
