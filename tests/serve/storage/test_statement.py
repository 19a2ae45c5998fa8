"""Statements do what SQLAlchemy's own execution of them does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    MetaData,
    Table,
    bindparam,
    delete,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.types import Text

from tinycluster.engine.errors import UnavailableError
from tinycluster.serve.storage.columns import AnyText, Json
from tinycluster.serve.storage.database import Database
from tinycluster.serve.storage.sqlite import SqliteStore
from tinycluster.serve.storage.statement import Statement

table = Table(
    "things",
    MetaData(),
    Column("id", AnyText, primary_key=True),
    Column("kind", Text),
    Column("name", AnyText),
    Column("data", Json),
    Column("number", BigInteger, nullable=False),
    Column("weight", Float),
)
INSERT = Statement(insert(table))
ROWS = [
    {"id": "a", "kind": "x", "name": "A\0b\ud800\ufdd0", "data": {"ä": [1, None]}, "number": 2**62, "weight": 0.1},
    {"id": "b", "kind": "y", "name": "", "data": [], "number": -1, "weight": None},
    {"id": "c", "kind": "y", "name": None, "data": None, "number": 0, "weight": -2.5},
]
IS_KIND = table.c.kind == bindparam("asked_kind")
tree = select(table.c.id, table.c.data, literal(1).label("depth")).where(IS_KIND).cte("tree", recursive=True)
deeper = tree.union_all(select(tree.c.id, tree.c.data, tree.c.depth + 1).where(tree.c.depth < bindparam("max_depth")))
QUESTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "all": (select(table).order_by(table.c.id), {}),
    "some": (select(table.c.data, table.c.name).where(IS_KIND).order_by(table.c.id), {"asked_kind": "y"}),
    "none": (select(table).where(IS_KIND), {"asked_kind": "z"}),
    "by text": (select(table.c.id).where(table.c.name == bindparam("asked")), {"asked": "A\0b\ud800\ufdd0"}),
    "constants": (
        select(table.c.id, table.c.number + 5).where(table.c.kind == "y").order_by(table.c.number).limit(1).offset(1),
        {},
    ),
    "sums": (select(func.count(), func.coalesce(func.max(table.c.weight), 7)).where(IS_KIND), {"asked_kind": "z"}),
    "tree": (
        select(deeper.c.data, deeper.c.depth).order_by(deeper.c.depth, deeper.c.id),
        {"asked_kind": "y", "max_depth": 3},
    ),
    "changed": (
        update(table)
        .where(table.c.id == bindparam("asked"))
        .values(name=bindparam("new_name"), data=bindparam("new_data"), kind="changed")
        .returning(table.c.name, table.c.data, table.c.kind),
        {"asked": "b", "new_name": "\0", "new_data": {"\ud800": 1}},
    ),
    "deleted": (delete(table).where(table.c.number < bindparam("below")).returning(table.c.id), {"below": 0}),
}
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "update": (update(table).where(IS_KIND).values(number=table.c.number + 1), {"asked_kind": "y"}),
    "update of nothing": (update(table).where(IS_KIND).values(number=bindparam("n")), {"asked_kind": "z", "n": 1}),
    "delete": (delete(table).where(IS_KIND), {"asked_kind": "y"}),
    "insert": (insert(table), {**ROWS[0], "id": "d"}),
}


def whole_table(connection: Connection) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in connection.execute(select(table).order_by(table.c.id))]


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with closing(Database(url)) as database:
        database.migrate()
        database.write_now(lambda connection: table.create(connection))
        yield database


def run_twice(database: Database, own: Any, sqlalchemys: Any) -> tuple[Any, Any]:
    """What two works give and leave, each on the same rows."""

    def run(work: Any) -> Any:
        def on_rows(connection: Connection) -> Any:
            connection.execute(delete(table))
            connection.execute(insert(table), ROWS)
            return work(connection), whole_table(connection)

        return database.write_now(on_rows)

    return run(own), run(sqlalchemys)


@pytest.mark.parametrize("name", QUESTIONS)
def test_rows_are_sqlalchemys(database: Database, name: str) -> None:
    asked, values = QUESTIONS[name]
    statement = Statement(asked)
    own, sqlalchemys = run_twice(
        database,
        lambda connection: [tuple(row) for row in statement.all(connection, values)],
        lambda connection: [tuple(row) for row in connection.execute(asked, values)],
    )
    assert own == sqlalchemys
    if name not in ("changed", "deleted"):
        rows = database.read_now(lambda connection: statement.all(connection, values))
        first = database.read_now(lambda connection: statement.first(connection, values))
        assert (None if first is None else list(first)) == (list(rows[0]) if rows else None)


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_sqlalchemys(database: Database, name: str) -> None:
    asked, values = CHANGES[name]
    statement = Statement(asked)
    own, sqlalchemys = run_twice(
        database,
        lambda connection: statement.run(connection, values),
        lambda connection: connection.execute(asked, values).rowcount,
    )
    assert own == sqlalchemys


def test_each_row_is_written_as_sqlalchemy_writes_it(database: Database) -> None:
    def own(connection: Connection) -> None:
        connection.execute(delete(table))
        INSERT.run_each(connection, ROWS)

    written, sqlalchemys = run_twice(database, own, lambda connection: None)
    assert written == sqlalchemys


def test_a_value_that_is_not_given_is_an_error(database: Database) -> None:
    statement = Statement(select(table).where(IS_KIND))
    with pytest.raises((KeyError, UnavailableError)):
        database.read_now(lambda connection: statement.all(connection, {}))


def test_a_list_of_unknown_length_is_refused() -> None:
    statement = Statement(select(table).where(table.c.id.in_(bindparam("ids", expanding=True))))
    with closing(Database()) as database, pytest.raises(AssertionError):
        database.read_now(lambda connection: statement.all(connection, {"ids": ["a"]}))


@pytest.mark.parametrize("is_in_memory", [False, True])
def test_who_breaks_a_rule_takes_no_other_work_of_its_commit_with_it(tmp_path: Path, is_in_memory: bool) -> None:
    rows = [{**ROWS[0], "id": "e"}, {**ROWS[0], "id": "e"}, {**ROWS[1], "number": None}, {**ROWS[1], "id": "f"}]
    may_commit = threading.Event()
    with closing(SqliteStore(None if is_in_memory else tmp_path / "things.db")) as store:
        store.migrate(may_make=True, is_checked=False)
        store.write(lambda connection: table.create(connection)).result()
        store.write(lambda connection: may_commit.wait(60))
        written = [store.write(partial(INSERT.run, values=row)) for row in rows]
        may_commit.set()
        failed = [isinstance(future.exception(), UnavailableError) for future in written]
        assert failed == [False, True, True, False]
        assert [row[0] for row in store.read(whole_table).result()] == ["e", "f"]
