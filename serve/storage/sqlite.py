"""SQLite: one thread writes and commits whatever waits together, others read beside it.

A commit waits for the disk. Works that come meanwhile are queued and share the next one, each in a savepoint of its
own, so that one that fails takes nothing with it. SQLite's calls block and a driver for asyncio would change threads
several times for each, so the works run in these threads from beginning to end.
"""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from tinycluster.engine.errors import ConfigError, TinyclusterError, UnavailableError
from tinycluster.serve.storage.errors import storage_error
from tinycluster.serve.storage.migrate import migrate
from tinycluster.serve.storage.sqlite_file import SqliteFile, create, driver_of
from tinycluster.serve.storage.tables import metadata

T = TypeVar("T")
Waiting = tuple[Callable[[Connection], Any], "Future[Any]"]

FAILURES = (DBAPIError, sqlite3.Error)
OWN_FAILURES = (DataError, IntegrityError, sqlite3.DataError, sqlite3.IntegrityError)
"""Of one work and its values."""
NUM_READERS = 2
MAX_TOGETHER = 256
WRITABLE = 1
"""A number in the file's header that only says that it could be written."""


class SqliteStore:
    """`path` None keeps everything in memory."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._has_tables = path is not None
        self._lock = threading.Lock()
        self._waiting: list[Waiting] = []
        self._is_closed = False
        self._written = SqliteFile(path, "BEGIN IMMEDIATE")
        self._write_thread = ThreadPoolExecutor(1, "storage-write")
        if path is None:
            self._read_from, self._read_threads = self._written, self._write_thread
        else:
            self._read_from = SqliteFile(path, "BEGIN")
            self._read_threads = ThreadPoolExecutor(NUM_READERS, "storage-read")
        # Applications of tests are dropped, not closed.
        weakref.finalize(self, _close, self._written, self._read_from)

    def migrate(self, *, may_make: bool, is_checked: bool) -> None:
        """ConfigError that names the file where it is no database of ours or cannot be had."""
        if self._path is None:
            return
        if not may_make and not self._path.exists():
            raise ConfigError(f"storage.url: there is no database {self._path} yet")
        try:
            create(self._path)
            with self._written.engine.connect() as connection:
                # Only outside of transactions, which SQLAlchemy's connection would begin, and kept in the file.
                driver_of(connection).execute("PRAGMA journal_mode = WAL")
                if is_checked:
                    _check_whole(driver_of(connection), self._path)
                with connection.begin():
                    migrate(connection)
                    # A file that may only be read lets transactions begin.
                    connection.exec_driver_sql(f"PRAGMA user_version = {WRITABLE}")
        except (*FAILURES, OSError) as error:
            cause = error.strerror if isinstance(error, OSError) else getattr(error, "orig", error)
            raise ConfigError(f"storage.url: {self._path} cannot be used as the database: {cause}") from None

    def read(self, work: Callable[[Connection], T]) -> Future[T]:
        with self._lock:
            self._check_open()
            return self._read_threads.submit(self._read, work)

    def write(self, work: Callable[[Connection], T]) -> Future[T]:
        """Its result comes after the commit."""
        future: Future[T] = Future()
        with self._lock:
            self._check_open()
            self._waiting.append((work, future))
            if len(self._waiting) == 1:
                self._write_thread.submit(self._commit_waiting)
        return future

    def close(self) -> None:
        """After what waits has been written."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        if not was_closed:
            # The write that is at work may have left some for a second batch.
            self._write_thread.submit(self._commit_rest).result()
            self._write_thread.shutdown()
            self._read_threads.shutdown()
            _close(self._written, self._read_from)

    def _read(self, work: Callable[[Connection], T]) -> T:
        self._prepare()
        self._read_from.check()
        try:
            with self._read_from.transaction() as connection:
                return work(connection)
        except FAILURES as error:
            self._read_from.reopen()
            raise storage_error(error) from None

    def _commit_waiting(self) -> None:
        with self._lock:
            taken, self._waiting = self._waiting[:MAX_TOGETHER], self._waiting[MAX_TOGETHER:]
            if self._waiting and not self._is_closed:
                self._write_thread.submit(self._commit_waiting)
        batch = [(work, future) for work, future in taken if future.set_running_or_notify_cancel()]
        try:
            outcomes = self._commit(batch) if batch else []
        except Exception as error:
            self._fail(batch, error)
            return
        for (_, future), (result, failure) in zip(batch, outcomes, strict=True):
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)

    def _commit_rest(self) -> None:
        while self._waiting:
            self._commit_waiting()

    def _commit(self, batch: list[Waiting]) -> list[tuple[Any, Exception | None]]:
        self._prepare()
        file_id = self._written.check()
        with self._written.transaction() as connection:
            outcomes = [_attempt(work, connection) for work, _ in batch]
        self._written.check_still(file_id)
        return outcomes

    def _fail(self, batch: list[Waiting], error: Exception) -> None:
        # Readers, too: connections of one process share what SQLite knows of the file, such as that it is read-only.
        self._written.reopen()
        self._read_from.reopen()
        failure = error if isinstance(error, TinyclusterError) else storage_error(error)
        for _, future in batch:
            future.set_exception(failure)

    def _prepare(self) -> None:
        if not self._has_tables:
            metadata.create_all(self._written.engine)
            self._has_tables = True

    def _check_open(self) -> None:
        if self._is_closed:
            raise UnavailableError("the server is stopping")


def _attempt(work: Callable[[Connection], Any], connection: Connection) -> tuple[Any, Exception | None]:
    """The work's result or its own failure. One of the database is raised: it is everybody's."""
    driver = driver_of(connection)
    driver.execute("SAVEPOINT work")
    try:
        outcome: tuple[Any, Exception | None] = work(connection), None
    except OWN_FAILURES as error:
        outcome = None, storage_error(error)
    except FAILURES:
        raise
    except Exception as error:
        outcome = _failed(error)
    if outcome[1] is not None:
        driver.execute("ROLLBACK TO work")
    driver.execute("RELEASE work")
    return outcome


def _close(*files: SqliteFile) -> None:
    for file in files:
        file.close()


def _failed(error: Exception) -> tuple[None, Exception]:
    return None, error


def _check_whole(driver: sqlite3.Connection, path: Path) -> None:
    """Takes as long as reading the file: outside of the transaction, for which other servers' writes would wait."""
    (found,) = driver.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise ConfigError(f"storage.url: the database {path} is damaged: {' '.join(str(found).split())}")
