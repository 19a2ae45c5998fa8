"""Statements about conversations and messages that several works need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, func, insert, literal, select, update

from tinycluster.serve.storage.records import Conversation, Message, NewMessage, State, new_message_id
from tinycluster.serve.storage.statement import Statement
from tinycluster.serve.storage.tables import conversations, messages

CONVERSATION_COLUMNS = [conversations.c[field.name] for field in fields(Conversation)]
MESSAGE_COLUMNS = [messages.c[field.name] for field in fields(Message)]

IS_CONVERSATION = (conversations.c.id == bindparam("id")) & (conversations.c.owner == bindparam("owner"))
IS_MESSAGE = (messages.c.id == bindparam("id")) & (messages.c.owner == bindparam("owner"))

CONVERSATION = Statement(select(*CONVERSATION_COLUMNS).where(IS_CONVERSATION))
# The numbers of new messages come from the conversation: PostgreSQL lets nobody else read them meanwhile.
LOCKED_CONVERSATION = Statement(
    select(conversations.c.next_number, *CONVERSATION_COLUMNS).where(IS_CONVERSATION).with_for_update()
)
MESSAGE = Statement(select(*MESSAGE_COLUMNS).where(IS_MESSAGE))
DELETE_CONVERSATION = Statement(delete(conversations).where(IS_CONVERSATION))
DELETE_MESSAGE = Statement(delete(messages).where(IS_MESSAGE))
MESSAGES = Statement(
    select(*MESSAGE_COLUMNS)
    .where(messages.c.conversation_id == bindparam("conversation_id"))
    .order_by(messages.c.number, messages.c.id)
)
NUM_CHARS = Statement(
    select(func.coalesce(func.sum(func.length(messages.c.text)), 0)).where(
        messages.c.conversation_id == bindparam("conversation_id"), messages.c.owner == bindparam("owner")
    )
)
INSERT_CONVERSATION, INSERT_MESSAGE = Statement(insert(conversations)), Statement(insert(messages))
MOVE_HEAD = Statement(
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


PATH = Statement(_path())


def conversation_of(row: Sequence[Any]) -> Conversation:
    return Conversation(*row)


def message_of(row: Sequence[Any]) -> Message:
    return Message(*row)


def find_conversation(connection: Connection, owner: str, conversation_id: str) -> Conversation | None:
    row = CONVERSATION.first(connection, {"id": conversation_id, "owner": owner})
    return None if row is None else conversation_of(row)


def lock_conversation(connection: Connection, owner: str, conversation_id: str) -> tuple[int, Conversation] | None:
    """The conversation, and the number that its next message gets; nobody else changes it in this transaction."""
    row = LOCKED_CONVERSATION.first(connection, {"id": conversation_id, "owner": owner})
    return None if row is None else (row[0], Conversation(*row[1:]))


def find_message(connection: Connection, owner: str, message_id: str) -> Message | None:
    row = MESSAGE.first(connection, {"id": message_id, "owner": owner})
    return None if row is None else message_of(row)


def all_messages(connection: Connection, conversation_id: str) -> list[Message]:
    """The whole tree, every message after its parent."""
    return [message_of(row) for row in MESSAGES.all(connection, {"conversation_id": conversation_id})]


def num_chars(connection: Connection, owner: str, conversation_id: str) -> int:
    asked = {"conversation_id": conversation_id, "owner": owner}
    return int(NUM_CHARS.all(connection, asked)[0][0])


def path_to(connection: Connection, owner: str, conversation_id: str, leaf_id: str) -> list[Message]:
    """From the root to the leaf; empty where the conversation has no such leaf."""
    asked = {"owner": owner, "conversation_id": conversation_id, "leaf_id": leaf_id}
    return [message_of(row) for row in PATH.all(connection, asked)]


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


def insert_conversation(
    connection: Connection, conversation: Conversation, new: Sequence[Message], server_id: str | None = None
) -> None:
    """A conversation of which nothing is stored yet, with all of its messages."""
    INSERT_CONVERSATION.run(connection, {**values_of(conversation), "next_number": len(new)})
    if new:
        insert_messages(connection, conversation.owner, new, 0, server_id)


def insert_messages(
    connection: Connection, owner: str, new: Sequence[Message], number: int, server_id: str | None = None
) -> None:
    """With numbers from `number` on."""
    rows = [
        {**values_of(message), "owner": owner, "number": number + index, "server_id": server_id}
        for index, message in enumerate(new)
    ]
    INSERT_MESSAGE.run_each(connection, rows)


def move_head(connection: Connection, conversation_id: str, head_id: str | None, number: int, now_ms: int) -> None:
    """`number` is that of the next message."""
    moved = {"conversation": conversation_id, "head": head_id, "number": number, "now_ms": now_ms}
    MOVE_HEAD.run(connection, moved)
