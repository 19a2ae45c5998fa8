"""The repository of conversations: trees of messages, each seen by its owner only.

Whatever belongs to another owner is not there: None, False or an empty list, as for an id that nobody has. Each method
is one transaction, and what writes returns after the commit. StorageError (503) where the database fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from tinycluster.serve.storage import branches, documents, listing, turns
from tinycluster.serve.storage.database import Database
from tinycluster.serve.storage.records import (
    HEAD,
    UNSET,
    Conversation,
    Finished,
    Head,
    Listed,
    Message,
    NewMessage,
    NewTurn,
    State,
    Turn,
    Unset,
)
from tinycluster.serve.storage.rows import all_messages, find_conversation, find_message, num_chars


class Conversations:
    """`server_id` marks the answers that this process writes; `clock` gives Unix seconds."""

    def __init__(self, database: Database, server_id: str, clock: Callable[[], float] = time.time) -> None:
        self._database, self._server_id, self._clock = database, server_id, clock

    async def create(
        self,
        owner: str,
        *,
        title: str = "",
        model: str | None = None,
        settings: Mapping[str, Any] = {},
        metadata: Mapping[str, Any] = {},
        items: Sequence[NewMessage] = (),
    ) -> Conversation:
        """A conversation with `items` as its only branch."""
        return await self._database.write(
            lambda connection: branches.create(
                connection, owner, title, model, dict(settings), dict(metadata), items, self._now_ms()
            )
        )

    async def list(self, owner: str, *, limit: int, before: str | None = None, search: str | None = None) -> Listed:
        """The last changed first, at most `limit`; `before` is the `next` of the page before, or the id of the last
        one that the caller has seen, as long as that stays as it is.

        `search` is a part of the title or of any message's text, in any case of letters. RequestError (before) where
        the owner has no such conversation.
        """
        return await self._database.read(lambda connection: listing.page(connection, owner, limit, before, search))

    async def get(self, owner: str, conversation_id: str) -> Conversation | None:
        return await self._database.read(lambda connection: find_conversation(connection, owner, conversation_id))

    async def update(
        self,
        owner: str,
        conversation_id: str,
        *,
        title: str | Unset = UNSET,
        settings: Mapping[str, Any] | Unset = UNSET,
        model: str | Unset | None = UNSET,
        metadata: Mapping[str, Any] | Unset = UNSET,
        head_id: str | Unset | None = UNSET,
    ) -> Conversation | None:
        """The conversation with what is given replaced. RequestError (head_id) where it has no such message."""
        given = {"title": title, "settings": settings, "model": model, "metadata": metadata, "head_id": head_id}
        changes = {name: value for name, value in given.items() if value is not UNSET}
        return await self._database.write(
            lambda connection: branches.update_fields(connection, owner, conversation_id, changes, self._now_ms())
        )

    async def delete(self, owner: str, conversation_id: str) -> bool:
        """With all of its messages. False where there is none."""
        return await self._database.write(lambda connection: branches.remove(connection, owner, conversation_id))

    async def with_messages(self, owner: str, conversation_id: str) -> tuple[Conversation, Sequence[Message]] | None:
        """With its whole tree, in the order in which it grew: every message after its parent."""

        def find(connection: Connection) -> tuple[Conversation, Sequence[Message]] | None:
            conversation = find_conversation(connection, owner, conversation_id)
            return None if conversation is None else (conversation, all_messages(connection, conversation_id))

        return await self._database.read(find)

    async def with_message(
        self, owner: str, conversation_id: str, message_id: str
    ) -> tuple[Conversation, Message | None] | None:
        """A conversation and one of its messages, as both are at one time."""

        def find(connection: Connection) -> tuple[Conversation, Message | None] | None:
            conversation = find_conversation(connection, owner, conversation_id)
            message = find_message(connection, owner, message_id)
            is_its_own = message is not None and message.conversation_id == conversation_id
            return None if conversation is None else (conversation, message if is_its_own else None)

        return await self._database.read(find)

    async def message(self, owner: str, conversation_id: str, message_id: str) -> Message | None:
        found = await self._database.read(lambda connection: find_message(connection, owner, message_id))
        return found if found is not None and found.conversation_id == conversation_id else None

    async def num_chars(self, owner: str, conversation_id: str) -> int:
        """Of the texts of all messages; 0 where there is no such conversation."""
        return await self._database.read(lambda connection: num_chars(connection, owner, conversation_id))

    async def path(self, owner: str, conversation_id: str, leaf: str | Head = HEAD) -> Sequence[Message] | None:
        """From the first message to `leaf`, the head if none is named; None where there is no such leaf."""
        found = await self.with_path(owner, conversation_id, leaf)
        return None if found is None else found[1]

    async def with_path(
        self, owner: str, conversation_id: str, leaf: str | Head | None = HEAD
    ) -> tuple[Conversation, Sequence[Message] | None] | None:
        """A conversation and the path to one of its messages, as both are at one time; no leaf is before the first."""
        return await self._database.read(
            lambda connection: branches.with_path(connection, owner, conversation_id, leaf)
        )

    async def turn(self, owner: str, conversation_id: str | None, message_id: str) -> Turn | None:
        """The turn that a user's message began; RequestError as of begin_turn where the id has another use."""
        return await self._database.read(
            lambda connection: turns.repeated(connection, owner, conversation_id, message_id)
        )

    async def begin_turn(self, owner: str, asked: NewTurn) -> Turn | None:
        """Store a user's message and a pending answer, and move the head there, before the engine is asked.

        With the message's `id` chosen by the client, asking again finds the first turn and writes nothing. None where
        the owner has no such conversation or that has no such parent. RequestError (message_id) where the id is unfit
        or has another use, (regenerate) where the parent to answer is no user's message. CommitUnknownError where it
        may be stored all the same: then discard_unknown takes it back.
        """
        return await self._database.write(
            lambda connection: turns.begin(connection, owner, asked, self._server_id, self._now_ms())
        )

    async def discard_turn(self, turn: Turn) -> None:
        """The engine refused: nothing that begin_turn made stays, not even a conversation. What somebody has built on
        stays, and an answer of that kind is interrupted."""
        await self._database.write(lambda connection: turns.discard(connection, turn, self._now_ms()))

    async def discard_unknown(self, owner: str, asked: NewTurn) -> None:
        """As discard_turn, after a begin_turn with CommitUnknownError; `asked.answer_id` tells what it made."""
        await self._database.write(lambda connection: turns.discard_unknown(connection, owner, asked, self._now_ms()))

    async def checkpoint(self, answer_id: str, text: str) -> bool:
        """Keep the whole `text` so far: pending or streaming becomes streaming. False where the answer has ended."""
        return await self._database.write(
            lambda connection: turns.checkpoint(connection, answer_id, text, self._now_ms())
        )

    async def finish(
        self,
        answer_id: str,
        *,
        text: str | Unset = UNSET,
        state: State = "complete",
        finish_reason: str | None = None,
        usage: Mapping[str, Any] | None = None,
    ) -> Finished | None:
        """The end of an answer, complete or interrupted, with the text of its last checkpoint if none is given. None
        where it has ended already, or is gone."""
        return await self._database.write(
            lambda connection: turns.finish(connection, answer_id, state, text, finish_reason, usage, self._now_ms())
        )

    async def fork(self, owner: str, conversation_id: str, leaf: str | Head = HEAD) -> Conversation | None:
        """A new conversation with copies of the messages up to `leaf`; None where there is no such message.

        A copy of an answer in progress is interrupted: nobody goes on with it.
        """
        return await self._database.write(
            lambda connection: branches.fork(connection, owner, conversation_id, leaf, self._now_ms())
        )

    async def add_items(
        self,
        owner: str,
        conversation_id: str,
        items: Sequence[NewMessage],
        *,
        title: str = "",
        max_messages: int | None = None,
    ) -> Sequence[Message] | None:
        """Messages after the head, one below the other, complete; the last is the new head.

        A conversation without a title gets this one, and one without a model that of the first answer. RequestError
        (items) for one that would have taken more than `max_messages` since its beginning.
        """
        return await self._database.write(
            lambda connection: branches.add_items(
                connection, owner, conversation_id, items, self._now_ms(), title, max_messages
            )
        )

    async def delete_message(self, owner: str, conversation_id: str, message_id: str) -> Conversation | None:
        """What was below it hangs below its parent; None where there is no such message."""
        return await self._database.write(
            lambda connection: branches.remove_message(connection, owner, conversation_id, message_id, self._now_ms())
        )

    async def export_document(self, owner: str, conversation_id: str | None = None) -> dict[str, Any] | None:
        """documents.py's document of one conversation, or of all of them; None where there is no such one."""
        return await self._database.read(lambda connection: documents.export(connection, owner, conversation_id))

    async def import_document(self, owner: str, document: Mapping[str, Any]) -> Sequence[Conversation]:
        """Store what export_document gave, with new ids. RequestError with the path of the first mistake."""
        parsed = await asyncio.to_thread(documents.parse, document, owner, self._now_ms())
        return await self._database.write(lambda connection: documents.store(connection, parsed))

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)
