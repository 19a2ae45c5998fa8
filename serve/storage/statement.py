"""Statements that SQLAlchemy compiles once and SQLite's driver runs.

SQLAlchemy's own way to a database costs several times what SQLite takes for a row, and a turn has a handful of them.
A server of PostgreSQL is far enough away that it goes unnoticed there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, Delete, Insert, Select, Update
from sqlalchemy.dialects.sqlite import pysqlite
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from tinycluster.serve.storage.sqlite_file import driver_of

Values = Mapping[str, Any]
Row = Sequence[Any]
Converter = Callable[[Any], Any]

DIALECT = pysqlite.dialect()


class Statement:
    """`statement` has one value for each of its parameters: no list whose length is known only when it runs.

    Each method runs it. What the database or its driver raises is SQLAlchemy's DBAPIError or sqlite3's Error.
    """

    def __init__(self, statement: Select[Any] | Insert | Update | Delete) -> None:
        self._statement = statement

    def all(self, connection: Connection, values: Values) -> Sequence[Row]:
        """The rows that it finds or returns."""
        if _is_sqlite(connection):
            return self._for_sqlite.rows(driver_of(connection), values)
        return connection.execute(self._statement, values).all()

    def first(self, connection: Connection, values: Values) -> Row | None:
        found = self.all(connection, values)
        return found[0] if found else None

    def run(self, connection: Connection, values: Values) -> int:
        """The number of rows that it changed."""
        if _is_sqlite(connection):
            return self._for_sqlite.run(driver_of(connection), values).rowcount
        return connection.execute(self._statement, values).rowcount

    def run_each(self, connection: Connection, rows: Sequence[Values]) -> None:
        if _is_sqlite(connection):
            self._for_sqlite.run_each(driver_of(connection), rows)
        else:
            connection.execute(self._statement, rows)

    @cached_property
    def _for_sqlite(self) -> _ForSqlite:
        return _ForSqlite(self._statement)


class _ForSqlite:
    """A statement's text, and what its types do to values on their way in and out."""

    def __init__(self, statement: Select[Any] | Insert | Update | Delete) -> None:
        compiled = statement.compile(dialect=DIALECT)
        assert isinstance(compiled, SQLCompiler)
        self._text = str(compiled)
        binds = [(name, compiled.binds[name]) for name in compiled.positiontup or ()]
        assert not any(bind.expanding for _, bind in binds), self._text
        self._constants = {name: bind.effective_value for name, bind in binds if not bind.required}
        self._parameters = [(name, _to_sqlite(bind.type)) for name, bind in binds]
        self._columns = [_from_sqlite(column.type) for column in statement.exported_columns]

    def run(self, driver: sqlite3.Connection, values: Values) -> sqlite3.Cursor:
        return driver.execute(self._text, self._converted(values))

    def run_each(self, driver: sqlite3.Connection, rows: Sequence[Values]) -> None:
        driver.executemany(self._text, [self._converted(row) for row in rows])

    def rows(self, driver: sqlite3.Connection, values: Values) -> list[Row]:
        return [
            [value if convert is None else convert(value) for value, convert in zip(row, self._columns, strict=True)]
            for row in self.run(driver, values).fetchall()
        ]

    def _converted(self, values: Values) -> list[Any]:
        values = {**self._constants, **values}
        return [values[name] if convert is None else convert(values[name]) for name, convert in self._parameters]


def _is_sqlite(connection: Connection) -> bool:
    return connection.dialect.name == DIALECT.name


def _to_sqlite(kind: TypeEngine[Any]) -> Converter | None:
    return kind.dialect_impl(DIALECT).bind_processor(DIALECT)


def _from_sqlite(kind: TypeEngine[Any]) -> Converter | None:
    return kind.dialect_impl(DIALECT).result_processor(DIALECT, None)
