"""Connections to one SQLite file, or to a database in memory, that notice when the file is no longer there."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, NullPool, StaticPool, create_engine, event

from tinycluster.serve.storage.errors import storage_moved

FileId = tuple[int, int]
"""Device and inode; (0, 0) for memory."""

BUSY_TIMEOUT_S = 5.0
"""So long a transaction waits for another process's."""
PRAGMAS = ("foreign_keys = ON", "synchronous = FULL", "journal_size_limit = 67108864")


class SqliteFile:
    """`begin` is the statement that begins its transactions. `path` None is memory, in a single connection."""

    def __init__(self, path: Path | None, begin: str) -> None:
        self._path = path
        self._opened: FileId | None = None
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        pool = StaticPool if path is None else NullPool
        # Without a reset: what comes back has no transaction.
        self.engine = create_engine(
            "sqlite://", creator=partial(_connect, path), poolclass=pool, pool_reset_on_return=None
        )
        event.listen(self.engine, "begin", lambda connection: driver_of(connection).execute(begin))

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Committed at the end. Connections are kept here: SQLAlchemy's pool hands out new objects around them each
        time, which takes longer than the transaction. After a failure this one is not used again."""
        with self._lock:
            idle = self._idle
            connection = idle.pop() if idle else None
        connection = connection or self.engine.connect()
        try:
            with connection.begin():
                yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if is_current := idle is self._idle:
                idle.append(connection)
        if not is_current:
            connection.close()

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
            self.close()

    def close(self) -> None:
        """What is in memory is lost. A transaction that is at work closes its own connection at its end."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
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
