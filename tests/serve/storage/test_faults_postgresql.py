"""Several servers on one PostgreSQL, one that is stopped meanwhile, and ones that cannot be used."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any, NoReturn

import pytest
from asyncpg.exceptions import ConnectionDoesNotExistError
from asyncpg.transaction import Transaction
from sqlalchemy import Connection, select, text

from tests.serve.storage.postgresql import PASSWORD, PostgresqlServer
from tinycluster.engine.errors import ConfigError, UnavailableError
from tinycluster.serve.errors import reply_for
from tinycluster.serve.storage import branches, turns
from tinycluster.serve.storage.errors import CommitUnknownError, StorageError
from tinycluster.serve.storage.records import Finished, NewMessage, NewTurn, Turn
from tinycluster.serve.storage.rows import lock_conversation
from tinycluster.serve.storage.storage import Storage, open_storage
from tinycluster.serve.storage.tables import messages

WAITS = text("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")


@pytest.fixture
def replicas(postgresql: PostgresqlServer) -> Iterator[list[Storage]]:
    url = postgresql.new_database()
    with ExitStack() as opened:
        yield [opened.enter_context(closing(open_storage(url))) for _ in range(2)]


async def began(storage: Storage, asked: NewTurn) -> Turn:
    turn = await storage.conversations.begin_turn("ann", asked)
    assert turn is not None
    return turn


def test_what_one_replica_stores_the_other_has(replicas: list[Storage]) -> None:
    async def share() -> None:
        one, other = replicas
        turn = await began(one, NewTurn(None, NewMessage("user", "hello", id="mine")))
        assert await other.conversations.path("ann", turn.conversation.id) == [turn.message, turn.answer]
        assert (await began(other, NewTurn(None, NewMessage("user", "hello", id="mine")))).is_repeated
        assert await other.conversations.finish(turn.answer.id, text="Good") is not None
        assert not await one.conversations.checkpoint(turn.answer.id, "Go")

    asyncio.run(share())


def test_one_message_that_comes_to_both_replicas_at_once_is_stored_once(replicas: list[Storage]) -> None:
    async def ask_both() -> None:
        for number in range(10):
            asked = NewTurn(None, NewMessage("user", "hello", id=f"m{number}"))
            turns = await asyncio.gather(*(began(storage, asked) for storage in replicas * 4))
            assert len({turn.answer.id for turn in turns}) == 1
            assert sum(not turn.is_repeated for turn in turns) == 1
        assert len((await replicas[0].conversations.list("ann", limit=99)).conversations) == 10

    asyncio.run(ask_both())


def test_turns_that_both_replicas_add_to_one_conversation_have_different_numbers(replicas: list[Storage]) -> None:
    async def add() -> None:
        first = await began(replicas[0], NewTurn(None, NewMessage("user", "hello")))
        again = NewTurn(first.conversation.id, NewMessage("user", "more"))
        await asyncio.gather(*(began(storage, again) for storage in replicas * 20))
        numbers = await replicas[0].database.read(
            lambda connection: list(connection.execute(select(messages.c.number)).scalars())
        )
        assert sorted(numbers) == list(range(82))
        path = await replicas[1].conversations.path("ann", first.conversation.id)
        assert path is not None
        assert len(path) == 82, "each turn follows the one before it"

    asyncio.run(add())


def test_a_turn_in_a_conversation_that_is_deleted_meanwhile_is_stored_or_refused(replicas: list[Storage]) -> None:
    async def race() -> None:
        one, other = replicas
        for _ in range(10):
            first = await began(one, NewTurn(None, NewMessage("user", "hello")))
            more = NewTurn(first.conversation.id, NewMessage("user", "more"))
            _, deleted = await asyncio.gather(
                one.conversations.begin_turn("ann", more),
                other.conversations.delete("ann", first.conversation.id),
            )
            assert deleted
            assert await one.conversations.with_messages("ann", first.conversation.id) is None

    asyncio.run(race())


def test_an_end_and_a_deletion_of_one_conversation_do_not_wait_for_each_other(
    replicas: list[Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = replicas
    num_runs = {"finish": 0, "delete": 0}
    is_locked, is_awaited = threading.Event(), threading.Event()
    finish = turns.finish

    def counted_finish(*arguments: Any) -> Finished | None:
        num_runs["finish"] += 1
        return finish(*arguments)

    async def race() -> None:
        turn = await began(one, NewTurn(None, NewMessage("user", "hello")))

        def delete(connection: Connection) -> bool:
            num_runs["delete"] += 1
            lock_conversation(connection, "ann", turn.conversation.id)
            is_locked.set()
            while not connection.execute(WAITS).scalar_one():
                pass
            is_awaited.set()
            return branches.remove(connection, "ann", turn.conversation.id)

        deleting = asyncio.create_task(one.database.write(delete))
        await asyncio.to_thread(is_locked.wait)
        finished = await other.conversations.finish(turn.answer.id, text="Good")
        assert finished is None
        assert await deleting
        assert is_awaited.is_set()

    monkeypatch.setattr(turns, "finish", counted_finish)
    asyncio.run(asyncio.wait_for(race(), 60))
    assert num_runs == {"finish": 1, "delete": 1}, "PostgreSQL ends a circle of waiting by undoing one of them"


def test_a_commit_whose_answer_is_lost_may_be_stored_and_can_be_taken_back(
    replicas: list[Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = replicas[0]
    commit = Transaction.commit
    asked = NewTurn(None, NewMessage("user", "hello"), answer_id="chosen")

    async def lose(transaction: Transaction) -> NoReturn:
        await commit(transaction)
        raise ConnectionDoesNotExistError("connection was closed in the middle of operation")

    async def begin() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Transaction, "commit", lose)
            with pytest.raises(CommitUnknownError) as refused:
                await began(storage, asked)
        assert reply_for(refused.value).status == 503
        assert len((await storage.conversations.list("ann", limit=9)).conversations) == 1
        await storage.conversations.discard_unknown("ann", asked)
        assert len((await storage.conversations.list("ann", limit=9)).conversations) == 0

    asyncio.run(begin())


def test_a_server_that_stops_is_a_503_and_works_again_after_its_start(
    replicas: list[Storage], postgresql: PostgresqlServer
) -> None:
    storage = replicas[0]

    async def stop_and_start() -> None:
        turn = await began(storage, NewTurn(None, NewMessage("user", "hello", id="mine")))
        running = asyncio.gather(
            *(began(storage, NewTurn(None, NewMessage("user", "x", id=f"m{number}"))) for number in range(100)),
            return_exceptions=True,
        )
        await asyncio.to_thread(postgresql.stop)
        try:
            outcomes = await running
            assert all(isinstance(outcome, Turn | StorageError) for outcome in outcomes), outcomes
            with pytest.raises(StorageError) as refused:
                await storage.conversations.checkpoint(turn.answer.id, "lost")
            assert reply_for(refused.value).status == 503
            with pytest.raises(StorageError):
                await storage.conversations.get("ann", turn.conversation.id)
        finally:
            await asyncio.to_thread(postgresql.start)
        assert await storage.conversations.path("ann", turn.conversation.id) == [turn.message, turn.answer]
        for number, outcome in enumerate(outcomes):
            again = await began(storage, NewTurn(None, NewMessage("user", "x", id=f"m{number}")))
            if isinstance(outcome, Turn):
                assert again.is_repeated, "it was acknowledged"
        assert len((await storage.conversations.list("ann", limit=999)).conversations) == 101

    asyncio.run(stop_and_start())


def test_a_storage_that_was_closed_says_so(postgresql: PostgresqlServer) -> None:
    storage = open_storage(postgresql.new_database())
    storage.close()
    with pytest.raises(UnavailableError, match="stopping"):
        asyncio.run(storage.keys.version())


def refusal(url: str) -> str:
    with pytest.raises(ConfigError) as refused:
        open_storage(url)
    words = str(refused.value)
    assert words.startswith("storage.url: the PostgreSQL database ")
    assert "\n" not in words
    return words


def test_a_server_that_cannot_be_used_is_refused_in_one_sentence_without_the_password(
    postgresql: PostgresqlServer,
) -> None:
    assert "password authentication failed" in refusal(postgresql.url(password="wr0ng"))
    assert "wr0ng" not in refusal(postgresql.url(password="wr0ng"))
    assert 'database "nowhere" does not exist' in refusal(postgresql.url("nowhere"))
    refusal(f"postgresql://tester:{PASSWORD}@/x?host={postgresql.folder}/nowhere")
    closed_port = refusal(f"postgresql://tester:{PASSWORD}@127.0.0.1:9/x")
    assert "127.0.0.1" in closed_port
    assert PASSWORD not in closed_port
    refusal(f"postgresql://tester:{PASSWORD}@127.0.0.1:9/x?sslmode=nonsense")
    refusal(f"postgresql://tester:{PASSWORD}@127.0.0.1:9/x?no_such_option=1")
