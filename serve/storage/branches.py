"""Works on whole conversations: what Conversations does in one transaction each, turns and lists apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, bindparam, update

from tinycluster.engine.errors import RequestError
from tinycluster.serve.storage.records import (
    OPEN_STATES,
    Conversation,
    Head,
    Message,
    NewMessage,
    check_message_id,
    new_conversation_id,
    new_message_id,
)
from tinycluster.serve.storage.rows import (
    DELETE_CONVERSATION,
    DELETE_MESSAGE,
    find_conversation,
    find_message,
    insert_conversation,
    insert_messages,
    lock_conversation,
    move_head,
    new_message,
    path_to,
)
from tinycluster.serve.storage.statement import Statement
from tinycluster.serve.storage.tables import conversations, messages

NAME = Statement(
    update(conversations)
    .where(conversations.c.id == bindparam("conversation"))
    .values(title=bindparam("new_title"), model=bindparam("new_model"))
)
HANG_BELOW = Statement(
    update(messages)
    .where(messages.c.conversation_id == bindparam("conversation"), messages.c.parent_id == bindparam("old_parent"))
    .values(parent_id=bindparam("new_parent"))
)


def create(
    connection: Connection,
    owner: str,
    title: str,
    model: str | None,
    settings: dict[str, Any],
    metadata: dict[str, Any],
    items: Sequence[NewMessage],
    now_ms: int,
) -> Conversation:
    conversation = Conversation(new_conversation_id(), owner, title, model, settings, metadata, None, now_ms, now_ms)
    made = _chain(connection, owner, conversation.id, None, items, now_ms)
    if made:
        conversation = replace(conversation, head_id=made[-1].id)
    insert_conversation(connection, conversation, made)
    return conversation


def update_fields(
    connection: Connection, owner: str, conversation_id: str, changes: Mapping[str, Any], now_ms: int
) -> Conversation | None:
    locked = lock_conversation(connection, owner, conversation_id)
    if locked is None:
        return None
    head_id = changes.get("head_id")
    if head_id is not None and not _has_message(connection, owner, conversation_id, head_id):
        raise RequestError("head_id is not the id of a message of this session", "head_id")
    changed = {**changes, "updated_ms": now_ms}
    connection.execute(update(conversations).where(conversations.c.id == conversation_id).values(changed))
    return replace(locked[1], **changed)


def remove(connection: Connection, owner: str, conversation_id: str) -> bool:
    return DELETE_CONVERSATION.run(connection, {"id": conversation_id, "owner": owner}) > 0


def with_path(
    connection: Connection, owner: str, conversation_id: str, leaf: str | Head | None
) -> tuple[Conversation, list[Message] | None] | None:
    conversation = find_conversation(connection, owner, conversation_id)
    if conversation is None:
        return None
    leaf_id = conversation.head_id if isinstance(leaf, Head) else leaf
    if leaf_id is None:
        return conversation, []
    return conversation, path_to(connection, owner, conversation_id, leaf_id) or None


def fork(
    connection: Connection, owner: str, conversation_id: str, leaf: str | Head, now_ms: int
) -> Conversation | None:
    original, branch = with_path(connection, owner, conversation_id, leaf) or (None, None)
    if original is None or branch is None:
        return None
    copy = replace(original, id=new_conversation_id(), created_ms=now_ms, updated_ms=now_ms)
    copies: list[Message] = []
    for message in branch:
        parent_id = copies[-1].id if copies else None
        state = "interrupted" if message.state in OPEN_STATES else message.state
        copies.append(replace(message, id=new_message_id(), conversation_id=copy.id, parent_id=parent_id, state=state))
    copy = replace(copy, head_id=copies[-1].id if copies else None)
    insert_conversation(connection, copy, copies)
    return copy


def add_items(
    connection: Connection,
    owner: str,
    conversation_id: str,
    items: Sequence[NewMessage],
    now_ms: int,
    title: str = "",
    max_messages: int | None = None,
) -> list[Message] | None:
    locked = lock_conversation(connection, owner, conversation_id)
    if locked is None:
        return None
    number, conversation = locked
    if max_messages is not None and number + len(items) > max_messages:
        raise RequestError(f"A conversation takes at most {max_messages} messages", "items")
    made = _chain(connection, owner, conversation_id, conversation.head_id, items, now_ms)
    if made:
        insert_messages(connection, owner, made, number)
        move_head(connection, conversation_id, made[-1].id, number + len(made), now_ms)
    model = conversation.model or next((item.model for item in items if item.model is not None), None)
    if (conversation.title or title, model) != (conversation.title, conversation.model):
        named = {"conversation": conversation_id, "new_title": conversation.title or title, "new_model": model}
        NAME.run(connection, named)
    return made


def remove_message(
    connection: Connection, owner: str, conversation_id: str, message_id: str, now_ms: int
) -> Conversation | None:
    locked = lock_conversation(connection, owner, conversation_id)
    message = find_message(connection, owner, message_id)
    if locked is None or message is None or message.conversation_id != conversation_id:
        return None
    number, conversation = locked
    below = {"conversation": conversation_id, "old_parent": message_id, "new_parent": message.parent_id}
    HANG_BELOW.run(connection, below)
    DELETE_MESSAGE.run(connection, {"id": message_id, "owner": owner})
    head_id = message.parent_id if conversation.head_id == message_id else conversation.head_id
    move_head(connection, conversation_id, head_id, number, now_ms)
    return replace(conversation, head_id=head_id, updated_ms=now_ms)


def _chain(
    connection: Connection,
    owner: str,
    conversation_id: str,
    parent_id: str | None,
    items: Sequence[NewMessage],
    now_ms: int,
) -> list[Message]:
    """One below the other. RequestError where an id is unfit or taken."""
    made: list[Message] = []
    for item in items:
        if item.id is not None:
            check_message_id(item.id, "id")
            is_taken = any(message.id == item.id for message in made)
            if is_taken or find_message(connection, owner, item.id) is not None:
                raise RequestError(f"There is a message with the id {item.id!r} already", "id")
        made.append(new_message(item, conversation_id, made[-1].id if made else parent_id, now_ms))
    return made


def _has_message(connection: Connection, owner: str, conversation_id: str, message_id: str) -> bool:
    message = find_message(connection, owner, message_id)
    return message is not None and message.conversation_id == conversation_id
