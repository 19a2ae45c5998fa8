"""Statements about conversations and messages that several works need, built once: SQLAlchemy compiles each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, func, insert, literal, select, update

from tinycluster.serve.storage.records import Conversation, Message, NewMessage, State, new_message_id
from tinycluster.serve.storage.tables import conversations, messages

CONVERSATION_COLUMNS = [conversations.c[field.name] for field in fields(Conversation)]
MESSAGE_COLUMNS = [messages.c[field.name] for field in fields(Message)]

CONVERSATION = select(*CONVERSATION_COLUMNS).where(
    conversations.c.id == bindparam("id"), conversations.c.owner == bindparam("owner")
)
# The numbers of new messages come from the conversation: PostgreSQL lets nobody else read them meanwhile.
LOCKED_CONVERSATION = (
    select(conversations.c.next_number, *CONVERSATION_COLUMNS)
    .where(conversations.c.id == bindparam("id"), conversations.c.owner == bindparam("owner"))
    .with_for_update()
)
MESSAGE = select(*MESSAGE_COLUMNS).where(messages.c.id == bindparam("id"), messages.c.owner == bindparam("owner"))
DELETE_MESSAGE = delete(messages).where(messages.c.id == bindparam("id"), messages.c.owner == bindparam("owner"))
MESSAGES = (
    select(*MESSAGE_COLUMNS)
    .where(messages.c.conversation_id == bindparam("conversation_id"))
    .order_by(messages.c.number, messages.c.id)
)
NUM_CHARS = select(func.coalesce(func.sum(func.length(messages.c.text)), 0)).where(
    messages.c.conversation_id == bindparam("conversation_id"), messages.c.owner == bindparam("owner")
)
INSERT_CONVERSATION, INSERT_MESSAGES = insert(conversations), insert(messages)
MOVE_HEAD = (
    update(conversations)
    .where(conversations.c.id == bindparam("conversation"))
    .values(head_id=bindparam("head"), next_number=bindparam("number"), updated_ms=bindparam("now_ms"))
)


def _path() -> Select[Any]:
    """One question for all ancestors of a message, the oldest first."""
    is_leaf = (
        messages.c.id == bindparam("leaf_id"),
        messages.c.owner == bindparam("owner"),
        messages.c.conversation_id == bindparam("conversation_id"),
    )
    path = select(*MESSAGE_COLUMNS, literal(0).label("distance")).where(*is_leaf).cte("path", recursive=True)
    parents = select(*MESSAGE_COLUMNS, path.c.distance + 1).join(
        path, (messages.c.id == path.c.parent_id) & (messages.c.owner == bindparam("owner"))
    )
    whole = path.union_all(parents)
    columns = [whole.c[column.name] for column in MESSAGE_COLUMNS]
    return select(*columns).order_by(whole.c.distance.desc())


PATH = _path()


def conversation_of(row: Sequence[Any]) -> Conversation:
    return Conversation(*row)


def message_of(row: Sequence[Any]) -> Message:
    return Message(*row)


def find_conversation(connection: Connection, owner: str, conversation_id: str) -> Conversation | None:
    row = connection.execute(CONVERSATION, {"id": conversation_id, "owner": owner}).one_or_none()
    return None if row is None else conversation_of(row)


def lock_conversation(connection: Connection, owner: str, conversation_id: str) -> tuple[int, Conversation] | None:
    """The conversation, and the number that its next message gets; nobody else changes it in this transaction."""
    row = connection.execute(LOCKED_CONVERSATION, {"id": conversation_id, "owner": owner}).one_or_none()
    return None if row is None else (row[0], Conversation(*row[1:]))


def find_message(connection: Connection, owner: str, message_id: str) -> Message | None:
    row = connection.execute(MESSAGE, {"id": message_id, "owner": owner}).one_or_none()
    return None if row is None else message_of(row)


def all_messages(connection: Connection, conversation_id: str) -> list[Message]:
    """The whole tree, every message after its parent."""
    return [message_of(row) for row in connection.execute(MESSAGES, {"conversation_id": conversation_id})]


def num_chars(connection: Connection, owner: str, conversation_id: str) -> int:
    asked = {"conversation_id": conversation_id, "owner": owner}
    return int(connection.execute(NUM_CHARS, asked).scalar_one())


def path_to(connection: Connection, owner: str, conversation_id: str, leaf_id: str) -> list[Message]:
    """From the root to the leaf; empty where the conversation has no such leaf."""
    asked = {"owner": owner, "conversation_id": conversation_id, "leaf_id": leaf_id}
    return [message_of(row) for row in connection.execute(PATH, asked)]


def new_message(
    new: NewMessage, conversation_id: str, parent_id: str | None, now_ms: int, state: State = "complete"
) -> Message:
    item = None if new.item is None else dict(new.item)
    parameters = None if new.parameters is None else dict(new.parameters)
    return Message(
        id=new.id or new_message_id(),
        conversation_id=conversation_id,
        parent_id=parent_id,
        role=new.role,
        state=state,
        text=new.text,
        item=item,
        model=new.model,
        parameters=parameters,
        usage=None,
        finish_reason=None,
        created_ms=now_ms,
        updated_ms=now_ms,
    )


def values_of(record: Conversation | Message) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def insert_messages(
    connection: Connection, owner: str, new: Sequence[Message], number: int, server_id: str | None = None
) -> None:
    """With numbers from `number` on, in one statement."""
    rows = [
        {**values_of(message), "owner": owner, "number": number + index, "server_id": server_id}
        for index, message in enumerate(new)
    ]
    connection.execute(INSERT_MESSAGES, rows)
