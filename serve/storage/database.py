"""One database, whichever it is: works are functions of an SQLAlchemy connection, in SQL that both understand."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import unquote

from sqlalchemy import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError

from tinycluster.cluster.config import SQLITE, sqlite_url
from tinycluster.engine.errors import ConfigError
from tinycluster.serve.storage.sqlite import SqliteStore

T = TypeVar("T")

IN_MEMORY = "memory"


class Store(Protocol):
    """What SqliteStore and PostgresqlStore do. The futures fail with StorageError, or with what the work raised."""

    def migrate(self, *, may_make: bool, is_checked: bool) -> None: ...

    def read(self, work: Callable[[Connection], T]) -> Future[T]: ...

    def write(self, work: Callable[[Connection], T]) -> Future[T]: ...

    def close(self) -> None: ...


class Database:
    """`url` is sqlite:///FILE, postgresql://USER:PASSWORD@HOST/NAME or "memory", with %XX for characters that mean
    something in it. Opens nothing before its first use.

    Any thread and any event loop may use it. A work must not keep the connection, and may run again if another
    transaction was quicker. Whoever is cancelled while waiting does not know whether the work was done.
    """

    def __init__(self, url: str = IN_MEMORY) -> None:
        self._store = _store_of(url)

    def migrate(self, *, may_make: bool = True, is_checked: bool = True) -> None:
        """Before the first use, from a thread that may wait. ConfigError where the database cannot be used, or there is
        no file and none may be made. `is_checked`: a file is read from beginning to end for damage."""
        self._store.migrate(may_make=may_make, is_checked=is_checked)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """The work's result; all of its questions see the same state. StorageError (503) if there is none."""
        return await asyncio.wrap_future(self._store.read(work))

    async def write(self, work: Callable[[Connection], T]) -> T:
        """The work's result, after the commit; whatever it raises is raised and nothing of it stays."""
        return await asyncio.wrap_future(self._store.write(work))

    def read_now(self, work: Callable[[Connection], T]) -> T:
        """`read` for threads without an event loop."""
        return self._store.read(work).result()

    def write_now(self, work: Callable[[Connection], T]) -> T:
        """`write` for threads without an event loop."""
        return self._store.write(work).result()

    def close(self) -> None:
        """After the last use, from any thread; what has begun is finished first."""
        self._store.close()


def default_url() -> str:
    """SQLite in the user's data folder, which is made for the user alone."""
    given = os.environ.get("XDG_DATA_HOME", "")
    folder = Path(given) if Path(given).is_absolute() else Path.home() / ".local" / "share"
    place = folder / "tinycluster"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"storage.url: {place} cannot be made: {error.strerror}") from None
    return sqlite_url(place / "tinycluster.db")


def _store_of(url: str) -> Store:
    if url == IN_MEMORY:
        return SqliteStore(None)
    parsed = _parsed(url)
    if parsed.drivername == "postgresql":
        try:
            from tinycluster.serve.storage.postgresql import PostgresqlStore
        except ImportError:
            raise ConfigError(
                "storage.url: PostgreSQL needs the extra: pip install 'tinycluster[postgresql]'"
            ) from None
        return PostgresqlStore(parsed)
    return SqliteStore(_file_of(url))


def _file_of(url: str) -> Path:
    """SQLAlchemy's releases disagree about what is quoted in it."""
    name, has_options, _ = url.removeprefix(SQLITE).partition("?")
    if has_options:
        raise ConfigError("storage.url: sqlite:///FILE takes no options; a ? in a file's name is written %3F")
    file = unquote(name, errors="surrogateescape")
    if not url.startswith(SQLITE) or file in ("", ":memory:"):
        raise ConfigError("storage.url: sqlite:///FILE needs a file; what is not to be kept is called memory")
    if "\0" in file:
        raise ConfigError("storage.url: a file's name has no %00")
    return Path(file).expanduser()


def _parsed(url: str) -> URL:
    rule = "storage.url must be sqlite:///FILE, postgresql://USER:PASSWORD@HOST/NAME or memory"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigError(rule) from None
    if parsed.drivername not in ("sqlite", "postgresql") or (parsed.drivername == "sqlite" and parsed.host):
        raise ConfigError(f"{rule}, not {parsed.drivername}://{parsed.host or ''}…")
    return parsed
