"""Turns from their beginning to their end, over every database."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tinycluster.engine.errors import RequestError
from tinycluster.serve.storage.records import Message, NewMessage, NewTurn, Turn
from tinycluster.serve.storage.storage import Storage

HELLO = NewTurn(None, NewMessage("user", "hello", id="mine"), title="Greetings", model="m", parameters={"top_k": 3})


async def began(storage: Storage, asked: NewTurn, owner: str = "ann") -> Turn:
    turn = await storage.conversations.begin_turn(owner, asked)
    assert turn is not None
    return turn


async def branch(storage: Storage, conversation_id: str) -> list[Message]:
    path = await storage.conversations.path("ann", conversation_id)
    assert path is not None
    return list(path)


async def tree(storage: Storage, conversation_id: str) -> list[Message]:
    found = await storage.conversations.with_messages("ann", conversation_id)
    assert found is not None
    return list(found[1])


def test_a_turn_is_stored_before_its_answer_and_ends_with_it(storage: Storage) -> None:
    async def turn_ends() -> None:
        turn = await began(storage, HELLO)
        assert await branch(storage, turn.conversation.id) == [turn.message, turn.answer]
        assert (turn.message.id, turn.message.state, turn.answer.state) == ("mine", "complete", "pending")
        assert (turn.answer.model, turn.answer.parameters) == ("m", {"top_k": 3})
        assert await storage.conversations.checkpoint(turn.answer.id, "Go")
        assert [message.state for message in await branch(storage, turn.conversation.id)] == ["complete", "streaming"]
        usage = {"prompt_tokens": 4}
        finished = await storage.conversations.finish(turn.answer.id, text="Good", finish_reason="stop", usage=usage)
        assert finished is not None
        assert (finished.answer.text, finished.answer.state) == ("Good", "complete")
        assert (finished.answer.finish_reason, finished.answer.usage) == ("stop", usage)
        assert await branch(storage, turn.conversation.id) == [turn.message, finished.answer]

    asyncio.run(turn_ends())


def test_what_has_ended_is_not_written_again(storage: Storage) -> None:
    async def write_after_end() -> None:
        turn = await began(storage, HELLO)
        assert await storage.conversations.finish(turn.answer.id, text="Good", state="interrupted") is not None
        assert await storage.conversations.finish(turn.answer.id, text="other") is None
        assert not await storage.conversations.checkpoint(turn.answer.id, "other")
        assert [message.text for message in await branch(storage, turn.conversation.id)] == ["hello", "Good"]

    asyncio.run(write_after_end())


def test_a_message_asked_again_finds_the_first_turn_and_writes_nothing(storage: Storage) -> None:
    async def ask_again() -> None:
        first = await began(storage, HELLO)
        await storage.conversations.finish(first.answer.id, text="Good")
        again = await began(storage, replace(HELLO, model="other"))
        assert again.is_repeated
        assert (again.conversation.id, again.message) == (first.conversation.id, first.message)
        assert (again.answer.id, again.answer.text) == (first.answer.id, "Good")
        assert len(await branch(storage, first.conversation.id)) == 2
        assert len((await storage.conversations.list("ann", limit=9)).conversations) == 1
        of_another = await began(storage, HELLO, owner="bob")
        assert not of_another.is_repeated

    asyncio.run(ask_again())


def test_many_who_ask_with_one_id_at_once_begin_one_turn(storage: Storage) -> None:
    async def ask_at_once() -> None:
        turns = await asyncio.gather(*(began(storage, HELLO) for _ in range(20)))
        assert len({turn.answer.id for turn in turns}) == 1
        assert sum(not turn.is_repeated for turn in turns) == 1

    asyncio.run(ask_at_once())


@pytest.mark.parametrize("is_first", [True, False])
def test_of_a_discarded_turn_nothing_stays(storage: Storage, is_first: bool) -> None:
    async def discard() -> None:
        before = (
            None if is_first else (await began(storage, replace(HELLO, message=NewMessage("user", "a")))).conversation
        )
        turn = await began(storage, replace(HELLO, conversation_id=None if before is None else before.id))
        await storage.conversations.discard_turn(turn)
        after = await storage.conversations.get("ann", turn.conversation.id)
        if before is None:
            assert after is None
        else:
            assert after is not None
            assert after.head_id == before.head_id
            assert len(await branch(storage, before.id)) == 2
        assert not (await began(storage, HELLO)).is_repeated

    asyncio.run(discard())


@pytest.mark.parametrize("is_first", [True, False])
def test_a_discarded_turn_that_somebody_has_built_on_stays_and_its_answer_is_interrupted(
    storage: Storage, is_first: bool
) -> None:
    async def discard() -> None:
        before = None if is_first else (await began(storage, NewTurn(None, NewMessage("user", "a")))).conversation.id
        turn = await began(storage, replace(HELLO, conversation_id=before))
        added = await storage.conversations.add_items("ann", turn.conversation.id, [NewMessage("user", "note")])
        assert added is not None
        await storage.conversations.discard_turn(turn)
        path = await branch(storage, turn.conversation.id)
        assert [(message.text, message.state) for message in path[-3:]] == [
            ("hello", "complete"),
            ("", "interrupted"),
            ("note", "complete"),
        ]
        assert not await storage.conversations.checkpoint(turn.answer.id, "Go")

    asyncio.run(discard())


@pytest.mark.parametrize("kind", ["first", "later", "again"])
@pytest.mark.parametrize("is_stored", [True, False])
def test_a_turn_is_discarded_by_the_answers_id_whether_or_not_it_was_stored(
    storage: Storage, kind: str, is_stored: bool
) -> None:
    async def discard() -> None:
        before = await began(storage, replace(HELLO, message=NewMessage("user", "a")))
        asked = replace(HELLO, conversation_id=None if kind == "first" else before.conversation.id, answer_id="chosen")
        if kind == "again":
            asked = replace(asked, message=None, parent_id=before.message.id)
        if is_stored:
            assert (await began(storage, asked)).answer.id == "chosen"
        await storage.conversations.discard_unknown("bob", asked)
        listed = await storage.conversations.list("ann", limit=9)
        assert len(listed.conversations) == 1 + (is_stored and kind == "first")
        for _ in range(2):
            await storage.conversations.discard_unknown("ann", asked)
            listed = await storage.conversations.list("ann", limit=9)
            assert [found.id for found in listed.conversations] == [before.conversation.id]
            assert await tree(storage, before.conversation.id) == [before.message, before.answer]
            head = (await branch(storage, before.conversation.id))[-1]
            assert head in ((before.message,) if kind == "again" and is_stored else (before.answer,))

    asyncio.run(discard())


def test_an_end_without_a_text_leaves_that_of_the_last_checkpoint(storage: Storage) -> None:
    async def end() -> None:
        turn = await began(storage, HELLO)
        await storage.conversations.checkpoint(turn.answer.id, "so far")
        finished = await storage.conversations.finish(turn.answer.id, finish_reason="cancelled")
        assert finished is not None
        assert (finished.answer.text, finished.answer.state) == ("so far", "complete")
        assert await branch(storage, turn.conversation.id) == [turn.message, finished.answer]
        assert await storage.conversations.get("ann", turn.conversation.id) == finished.conversation

    asyncio.run(end())


def test_an_edit_and_a_new_answer_are_branches(storage: Storage) -> None:
    async def grow() -> None:
        first = await began(storage, HELLO)
        conversation_id = first.conversation.id
        edited = NewTurn(conversation_id, NewMessage("user", "hi"), parent_id=None)
        second = await began(storage, edited)
        third = await began(storage, NewTurn(conversation_id, None, parent_id=first.message.id))
        assert await branch(storage, conversation_id) == [first.message, third.answer]
        assert await tree(storage, conversation_id) == [
            first.message,
            first.answer,
            second.message,
            second.answer,
            third.answer,
        ]
        with pytest.raises(RequestError, match="Only a user's message"):
            await began(storage, NewTurn(conversation_id, None, parent_id=first.answer.id))

    asyncio.run(grow())
