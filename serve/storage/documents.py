"""Conversations as a JSON document that another server can take: export and import.

    {"format": "tinycluster.sessions", "version": 1, "sessions": [
        {"title", "model", "settings", "metadata", "created_at", "updated_at", "head_id", "messages": [
            {"id", "parent_id", "role", "content", "state", "model", "parameters", "usage", "finish_reason", "item",
             "created_at", "updated_at"}]}]}

Times are Unix seconds. Ids tie the messages of one session together and are replaced by new ones on import. A message
stands after its parent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from sqlalchemy import Connection, bindparam, select

from tinycluster.engine.errors import RequestError
from tinycluster.serve.fields import Fields, validated
from tinycluster.serve.storage.records import (
    MAX_MESSAGES,
    OPEN_STATES,
    Conversation,
    Message,
    new_conversation_id,
    new_message_id,
)
from tinycluster.serve.storage.rows import (
    CONVERSATION_COLUMNS,
    MESSAGE_COLUMNS,
    all_messages,
    conversation_of,
    find_conversation,
    insert_conversation,
    message_of,
)
from tinycluster.serve.storage.tables import conversations, messages

FORMAT, VERSION = "tinycluster.sessions", 1
MAX_TITLE_CHARS, MAX_ID_CHARS = 1000, 512
LAST_S = 253_402_300_799
"""The end of the year 9999."""

CONVERSATIONS_OF = (
    select(*CONVERSATION_COLUMNS)
    .where(conversations.c.owner == bindparam("owner"))
    .order_by(conversations.c.updated_ms.desc(), conversations.c.id.desc())
)
MESSAGES_OF = (
    select(*MESSAGE_COLUMNS)
    .join(conversations, conversations.c.id == messages.c.conversation_id)
    .where(conversations.c.owner == bindparam("owner"))
    .order_by(messages.c.number, messages.c.id)
)

Time = Annotated[float, Field(ge=0, le=LAST_S)]
Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]


class MessageFields(Fields):
    id: Id
    parent_id: Id | None = None
    role: Literal["user", "assistant", "system", "developer", "tool"]
    content: str
    state: Literal["complete", "pending", "streaming", "interrupted"] = "complete"
    model: str | None = None
    parameters: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    finish_reason: str | None = None
    item: dict[str, Any] | None = None
    created_at: Time | None = None
    updated_at: Time | None = None


class SessionFields(Fields):
    title: Annotated[str, Field(max_length=MAX_TITLE_CHARS)] = ""
    model: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    metadata: dict[str, Any] = Field(default_factory=dict)
    head_id: Id | None = None
    messages: Annotated[list[MessageFields], Field(max_length=MAX_MESSAGES)] = Field(default_factory=list)
    created_at: Time | None = None
    updated_at: Time | None = None


class Document(Fields):
    format: Literal["tinycluster.sessions"]
    version: Literal[1]
    sessions: list[SessionFields]


def export(connection: Connection, owner: str, conversation_id: str | None) -> dict[str, Any] | None:
    """One conversation, or all of the owner's; None where there is no such one."""
    if conversation_id is None:
        found = [conversation_of(row) for row in connection.execute(CONVERSATIONS_OF, {"owner": owner})]
        trees: dict[str, list[Message]] = {conversation.id: [] for conversation in found}
        for row in connection.execute(MESSAGES_OF, {"owner": owner}):
            message = message_of(row)
            trees[message.conversation_id].append(message)
    else:
        conversation = find_conversation(connection, owner, conversation_id)
        if conversation is None:
            return None
        found, trees = [conversation], {conversation_id: all_messages(connection, conversation_id)}
    sessions = [_session(conversation, trees[conversation.id]) for conversation in found]
    return {"format": FORMAT, "version": VERSION, "sessions": sessions}


def parse(document: Mapping[str, Any], owner: str, now_ms: int) -> list[tuple[Conversation, list[Message]]]:
    """What is to be stored. RequestError with the path of the first mistake in `param`; no I/O."""
    sessions = validated(Document, document).sessions
    return [_parsed(session, f"sessions[{index}]", owner, now_ms) for index, session in enumerate(sessions)]


def store(connection: Connection, parsed: Sequence[tuple[Conversation, list[Message]]]) -> list[Conversation]:
    """All of it, or nothing."""
    for conversation, tree in parsed:
        insert_conversation(connection, conversation, tree)
    return [conversation for conversation, _ in parsed]


def _session(conversation: Conversation, tree: Sequence[Message]) -> dict[str, Any]:
    return {
        "title": conversation.title,
        "model": conversation.model,
        "settings": conversation.settings,
        "metadata": conversation.metadata,
        "head_id": conversation.head_id,
        "created_at": conversation.created_ms / 1000,
        "updated_at": conversation.updated_ms / 1000,
        "messages": [_message(message) for message in tree],
    }


def _message(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "parent_id": message.parent_id,
        "role": message.role,
        "content": message.text,
        "state": message.state,
        "model": message.model,
        "parameters": message.parameters,
        "usage": message.usage,
        "finish_reason": message.finish_reason,
        "item": message.item,
        "created_at": message.created_ms / 1000,
        "updated_at": message.updated_ms / 1000,
    }


def _parsed(session: SessionFields, param: str, owner: str, now_ms: int) -> tuple[Conversation, list[Message]]:
    conversation_id, new_ids, tree = new_conversation_id(), dict[str, str](), list[Message]()
    for index, message in enumerate(session.messages):
        place = f"{param}.messages[{index}]"
        if message.id in new_ids:
            raise RequestError(f"{place}.id is the id of another message, too", f"{place}.id")
        if message.parent_id is not None and message.parent_id not in new_ids:
            raise RequestError(f"{place}.parent_id must be the id of a message before it", f"{place}.parent_id")
        new_ids[message.id] = new_message_id()
        parent_id = None if message.parent_id is None else new_ids[message.parent_id]
        tree.append(_parsed_message(message, new_ids[message.id], conversation_id, parent_id, now_ms))
    if session.head_id is not None and session.head_id not in new_ids:
        raise RequestError(f"{param}.head_id must be the id of one of its messages", f"{param}.head_id")
    conversation = Conversation(
        id=conversation_id,
        owner=owner,
        title=session.title,
        model=session.model,
        settings=session.settings,
        metadata=session.metadata,
        head_id=None if session.head_id is None else new_ids[session.head_id],
        created_ms=_ms(session.created_at, now_ms),
        updated_ms=_ms(session.updated_at, now_ms),
    )
    return conversation, tree


def _parsed_message(
    message: MessageFields, message_id: str, conversation_id: str, parent_id: str | None, now_ms: int
) -> Message:
    """Nobody goes on with an answer that was in progress where it was exported."""
    return Message(
        id=message_id,
        conversation_id=conversation_id,
        parent_id=parent_id,
        role=message.role,
        state="interrupted" if message.state in OPEN_STATES else message.state,
        text=message.content,
        item=message.item,
        model=message.model,
        parameters=message.parameters,
        usage=message.usage,
        finish_reason=message.finish_reason,
        created_ms=_ms(message.created_at, now_ms),
        updated_ms=_ms(message.updated_at, now_ms),
    )


def _ms(seconds: float | None, now_ms: int) -> int:
    return now_ms if seconds is None else round(seconds * 1000)
