"""Connections to one SQLite file, or to a database in memory, that notice when the file is no longer there."""

from __future__ import annotations

import os
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, QueuePool, StaticPool, create_engine, event

from tinycluster.serve.storage.errors import storage_moved

FileId = tuple[int, int]
"""Device and inode; (0, 0) for memory."""

BUSY_TIMEOUT_S = 5.0
"""So long a transaction waits for another process's."""
PRAGMAS = ("foreign_keys = ON", "synchronous = FULL", "journal_size_limit = 67108864")


class SqliteFile:
    """`begin` is the statement that begins its transactions. `path` None is memory, in a single connection."""

    def __init__(self, path: Path | None, begin: str, num_connections: int) -> None:
        self._path = path
        self._opened: FileId | None = None
        connect = partial(_connect, path)
        if path is None:
            self.engine = create_engine("sqlite://", creator=connect, poolclass=StaticPool)
        else:
            # Whoever fails reopens: a connection comes back without a transaction.
            self.engine = create_engine(
                "sqlite://",
                creator=connect,
                poolclass=QueuePool,
                pool_size=num_connections,
                max_overflow=0,
                pool_reset_on_return=None,
            )
        event.listen(self.engine, "begin", lambda connection: driver_of(connection).execute(begin))

    def check(self) -> FileId:
        """The file that a connection leads to. StorageError while there is none; another one in its place is opened."""
        found = self._find()
        if found is None:
            self.reopen()
            raise storage_moved()
        if found != self._opened:
            self.reopen()
            self._opened = found
        return found

    def check_still(self, file_id: FileId) -> None:
        """StorageError where the file has been deleted or replaced since `check`: what went there is not stored."""
        if self._find() != file_id:
            raise storage_moved()

    def reopen(self) -> None:
        """The next transaction gets a new connection. What is in memory would be lost by that."""
        if self._path is not None:
            self.engine.dispose()

    def _find(self) -> FileId | None:
        if self._path is None:
            return 0, 0
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


def driver_of(connection: Connection) -> sqlite3.Connection:
    """Below SQLAlchemy, whose every statement costs as much as ten of these."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def dispose(*engines: Engine) -> None:
    for engine in engines:
        engine.dispose()


def create(path: Path) -> None:
    """An empty file that only its owner may read, unless there is one. OSError."""
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _connect(path: Path | None) -> sqlite3.Connection:
    # mode=rw: a file that was deleted must not come back empty.
    name = ":memory:" if path is None else f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(name, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        # SQLite's own knows ASCII only, and searches shall find Ä by ä.
        connection.create_function("lower", 1, _lower, deterministic=True)
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def _lower(text: Any) -> Any:
    return text.lower() if isinstance(text, str) else text
