"""Lists in pages, searches, and what questions cost: each finds its rows by an index."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Delete, Engine, Select, Update, event

from tests.serve.storage.postgresql import PostgresqlServer
from tinycluster.engine.errors import RequestError
from tinycluster.serve.storage import documents, keys, responses, rows, servers, turns
from tinycluster.serve.storage.database import Database
from tinycluster.serve.storage.records import NewMessage, NewTurn
from tinycluster.serve.storage.storage import Storage, open_storage


@pytest.fixture(scope="module")
def storage_of_locale_c(postgresql: PostgresqlServer) -> Iterator[Storage]:
    with closing(open_storage(postgresql.new_database("TEMPLATE template0 LOCALE 'C' ENCODING 'UTF8'"))) as storage:

        async def fill() -> None:
            await storage.conversations.create("ann", title="one", items=[NewMessage("user", "Äpfel im Wald")])
            await storage.conversations.create("ann", title="two", items=[NewMessage("user", "großer ÄRGER")])
            await storage.conversations.create("ann", title="three", items=[NewMessage("user", "äpfel 100%_ß")])

        asyncio.run(fill())
        yield storage


async def titles(storage: Storage, **asked: Any) -> list[str]:
    listed = await storage.conversations.list("ann", **{"limit": 100, **asked})
    return [conversation.title for conversation in listed.conversations]


def test_pages_follow_each_other_without_gap_or_repetition(url: str) -> None:
    async def turn_pages() -> None:
        # Several have the same time, and the clock goes back once.
        times = iter([3, 1, 2, 2, 2, 2, 5, 5, 4])
        with closing(open_storage(url, lambda: next(times, 9))) as storage:
            for number in range(9):
                await storage.conversations.create("ann", title=str(number))
            await storage.conversations.create("bob", title="other")
            seen: list[tuple[int, str]] = []
            before: str | None = None
            while True:
                listed = await storage.conversations.list("ann", limit=2, before=before)
                seen += [(found.updated_ms, found.title) for found in listed.conversations]
                if not listed.has_more:
                    break
                before = listed.conversations[-1].id
            assert [time_ms for time_ms, _ in seen] == [5000, 5000, 4000, 3000, 2000, 2000, 2000, 2000, 1000]
            assert sorted(title for _, title in seen) == list("012345678")

    asyncio.run(turn_pages())


@pytest.mark.parametrize("change", ["rename", "delete"])
def test_a_page_goes_on_where_the_last_one_ended_whatever_becomes_of_its_end(storage: Storage, change: str) -> None:
    async def turn_page() -> None:
        made = [await storage.conversations.create("ann", title=str(number)) for number in range(6)]
        order = sorted(made, key=lambda conversation: (conversation.updated_ms, conversation.id), reverse=True)
        first = await storage.conversations.list("ann", limit=3)
        assert list(first.conversations) == order[:3]
        if change == "rename":
            await storage.conversations.update("ann", order[2].id, title="renamed")
        else:
            await storage.conversations.delete("ann", order[2].id)
        second = await storage.conversations.list("ann", limit=3, before=first.next)
        assert list(second.conversations) == order[3:]
        assert second.next is None
        for before in ("9" * 18 + ".x", "-1.x", f"{order[0].updated_ms}.\0"):
            assert len((await storage.conversations.list("ann", limit=9, before=before)).conversations) in (0, 5, 6)

    asyncio.run(turn_page())


def test_a_page_after_somebody_elses_conversation_is_refused(storage: Storage) -> None:
    async def ask() -> None:
        other = await storage.conversations.create("bob")
        for before in (other.id, "conv_none", "\0", "", "1.", ".x", "9" * 19 + ".x", "١.x"):
            with pytest.raises(RequestError) as refused:
                await titles(storage, before=before)
            assert refused.value.param == "before"

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("apfel", ["Ein Apfelbaum"]),
        ("ÄPFEL", ["äpfel"]),
        ("äPF", ["äpfel"]),
        ("100%", ["100% sure"]),
        ("%", ["100% sure"]),
        ("_", ["snake_case"]),
        ("\\", ["back\\slash"]),
        ("deep", ["in a message"]),
        ("DEEP WITHIN", ["in a message"]),
        ("a\0b", ["nul"]),
        ("\0", ["nul"]),
        ("nothing like it", []),
        ("secret", []),
        ("x' OR '1'='1", []),
        ("", ["100% sure", "Ein Apfelbaum", "back\\slash", "in a message", "nul", "snake_case", "äpfel"]),
    ],
)
def test_a_search_finds_parts_of_titles_and_texts_of_the_owners_own(
    storage: Storage, search: str, found: list[str]
) -> None:
    async def look() -> None:
        conversations = storage.conversations
        for title in ("Ein Apfelbaum", "äpfel", "100% sure", "snake_case", "back\\slash"):
            await conversations.create("ann", title=title)
        turn = await conversations.begin_turn("ann", NewTurn(None, NewMessage("user", "x"), title="in a message"))
        assert turn is not None
        await conversations.finish(turn.answer.id, text="It lies Deep within the answer")
        await conversations.create("ann", title="nul", items=[NewMessage("user", "a\0b")])
        await conversations.create("bob", title="secret", items=[NewMessage("user", "secret Apfel")])
        assert sorted(await titles(storage, search=search)) == sorted(found)

    asyncio.run(look())


@pytest.mark.parametrize("search", ["Äpfel", "äpfel", "ÄRGER", "ärger", "wald", "Wald", "100%_ß", "nothing Ä"])
def test_a_database_that_knows_the_case_of_ascii_only_finds_words_as_they_are_written(
    search: str, storage_of_locale_c: Storage
) -> None:
    async def look() -> None:
        found = await titles(storage_of_locale_c, search=search)
        texts = {"one": "Äpfel im Wald", "two": "großer ÄRGER", "three": "äpfel 100%_ß"}
        written = {title for title, text in texts.items() if search in text}
        in_any_case = {title for title, text in texts.items() if search.lower() in text.lower()}
        assert written <= set(found) <= in_any_case
        if search.isascii():
            assert set(found) == in_any_case

    asyncio.run(look())


def test_ids_that_no_database_could_hold_are_of_nobody(storage: Storage) -> None:
    async def look() -> None:
        conversations = storage.conversations
        for strange in ("\0", "\ud800", "\ufdd0", "x" * 100_000, "' OR 1=1 --"):
            assert await conversations.get("ann", strange) is None
            assert await conversations.path("ann", strange) is None
            assert not await conversations.delete("ann", strange)
            assert not await conversations.checkpoint(strange, "x")
            assert await storage.responses.get("ann", strange) is None
            assert await storage.keys.revoke(strange) is None
        for unfit in ("", "\0", "a/b", "..", ".a", "x" * 65, "é", "a b"):
            with pytest.raises(RequestError) as refused:
                await conversations.begin_turn("ann", NewTurn(None, NewMessage("user", "x", id=unfit)))
            assert refused.value.param == "message_id"

    asyncio.run(look())


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    file: Path = tmp_path_factory.mktemp("plans") / "x.db"
    with closing(open_storage(f"sqlite:///{file}")) as storage:
        yield storage.database


WHOLE_TABLES = {"keys.ALL", "keys.SAME_NAME", "servers.ALL"}
"""Few rows, all of them wanted."""
SMALL_SCAN = re.compile(r"COVERING INDEX|USING INDEX ix_\w+_open|path|CONSTANT")
"""Of an index that has what is wanted and little else."""
QUESTIONS = [
    (f"{module.__name__.split('.')[-1]}.{name}", statement)
    for module in (documents, keys, responses, rows, servers, turns)
    for name, statement in vars(module).items()
    if isinstance(statement, Select | Update | Delete)
]


@pytest.mark.parametrize(("name", "statement"), QUESTIONS, ids=[name for name, _ in QUESTIONS])
def test_every_question_finds_its_rows_by_an_index(database: Database, name: str, statement: Any) -> None:
    def plan(connection: Connection) -> list[str]:
        # Lists of values get their places only when the values are there.
        compiled = re.sub(r"\(__\[POSTCOMPILE_\w+\]\)", "(?)", str(statement.compile(connection.engine)))
        explained = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", (None,) * compiled.count("?"))
        return [row[3] for row in explained]

    steps = database.read_now(plan)
    scans = [step for step in steps if step.startswith("SCAN") and not SMALL_SCAN.search(step)]
    assert (scans == []) == (name not in WHOLE_TABLES), steps


def test_questions_do_not_multiply_with_the_rows(storage: Storage) -> None:
    """As many statements for thirty conversations of many messages as for one."""

    async def measure() -> list[int]:
        counts = []
        for _ in range(2):
            last = await storage.conversations.create("ann", items=[NewMessage("user", "x")] * 3)
            count = 0

            def counted(*_: Any) -> None:
                nonlocal count
                count += 1

            event.listen(Engine, "before_cursor_execute", counted)
            try:
                conversations = storage.conversations
                await conversations.list("ann", limit=100, search="x")
                await conversations.with_messages("ann", last.id)
                await conversations.path("ann", last.id)
                await conversations.export_document("ann")
                await conversations.fork("ann", last.id)
            finally:
                event.remove(Engine, "before_cursor_execute", counted)
            counts.append(count)
            for _ in range(29):
                await conversations.create("ann", items=[NewMessage("user", "x")] * 20)
        return counts

    first, second = asyncio.run(measure())
    assert first == second
