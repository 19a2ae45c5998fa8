"""The life of a turn: a user's message and its answer, from one transaction before the engine is asked to the end.

begin ─► pending ─► streaming (checkpoints) ─► complete
  │         └───────────┴────────────────────► interrupted   (its server is gone, or the answer failed)
  └─► discard: the engine refused, nothing stays
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from tinycluster.engine.errors import RequestError
from tinycluster.serve.storage.records import (
    MAX_MESSAGES,
    UNSET,
    Conversation,
    Finished,
    Head,
    Message,
    NewMessage,
    NewTurn,
    State,
    Turn,
    Unset,
    check_message_id,
    new_conversation_id,
)
from tinycluster.serve.storage.rows import (
    CONVERSATION_COLUMNS,
    DELETE_CONVERSATION,
    DELETE_MESSAGE,
    MESSAGE_COLUMNS,
    conversation_of,
    find_conversation,
    find_message,
    insert_conversation,
    insert_messages,
    lock_conversation,
    message_of,
    move_head,
    new_message,
)
from tinycluster.serve.storage.statement import Statement
from tinycluster.serve.storage.tables import IS_OPEN, conversations, messages

NUM_OF_A_TURN = 2
"""A question and its answer."""
FIRST_ANSWER = Statement(
    select(*MESSAGE_COLUMNS)
    .where(
        messages.c.conversation_id == bindparam("conversation_id"),
        messages.c.parent_id == bindparam("parent_id"),
        messages.c.role == "assistant",
    )
    .order_by(messages.c.number)
    .limit(1)
)
HAS_CHILD = Statement(
    select(messages.c.id)
    .where(messages.c.conversation_id == bindparam("conversation_id"), messages.c.parent_id == bindparam("parent_id"))
    .limit(1)
)
ANY_MESSAGE = Statement(
    select(messages.c.id).where(messages.c.conversation_id == bindparam("conversation_id")).limit(1)
)
# Only ids that the server made are ever in these states, so they need no owner.
OPEN_ANSWER = (messages.c.id == bindparam("answer_id")) & IS_OPEN
CHECKPOINT = Statement(
    update(messages)
    .where(OPEN_ANSWER)
    .values(state="streaming", text=bindparam("text_so_far"), updated_ms=bindparam("now_ms"))
)
END = (
    update(messages)
    .where(OPEN_ANSWER)
    .values(
        state=bindparam("end"),
        finish_reason=bindparam("reason"),
        usage=bindparam("used"),
        updated_ms=bindparam("now_ms"),
    )
    .returning(*MESSAGE_COLUMNS)
)
FINISH_AS_IT_IS, FINISH = Statement(END), Statement(END.values(text=bindparam("whole_text")))
# Whoever writes a conversation and its messages locks the conversation first: PostgreSQL's writers would wait for each
# other in a circle.
TOUCH = Statement(
    update(conversations)
    .where(conversations.c.id == select(messages.c.conversation_id).where(OPEN_ANSWER).scalar_subquery())
    .values(updated_ms=bindparam("now_ms"))
    .returning(*CONVERSATION_COLUMNS)
)


def begin(connection: Connection, owner: str, asked: NewTurn, server_id: str, now_ms: int) -> Turn | None:
    """None where the owner has no such conversation, or that has no such parent."""
    message = asked.message
    if message is not None and message.id is not None:
        check_message_id(message.id)
        if (first := repeated(connection, owner, asked.conversation_id, message.id)) is not None:
            return first
    if asked.conversation_id is None:
        if message is None:
            return None
        return _begin_conversation(connection, owner, asked, message, server_id, now_ms)
    locked = lock_conversation(connection, owner, asked.conversation_id)
    if locked is None:
        return None
    number, conversation = locked
    if number + NUM_OF_A_TURN > MAX_MESSAGES:
        raise RequestError(f"A session takes at most {MAX_MESSAGES} messages", "session_id")
    parent_id = conversation.head_id if isinstance(asked.parent_id, Head) else asked.parent_id
    parent = None if parent_id is None else find_message(connection, owner, parent_id)
    if parent_id is not None and (parent is None or parent.conversation_id != conversation.id):
        return None
    user = parent if message is None else None
    if message is None and (user is None or user.role != "user"):
        raise RequestError("Only a user's message can be answered again", "regenerate")
    return _begin(connection, conversation, parent_id, user, asked, server_id, number, now_ms)


def discard(connection: Connection, turn: Turn, now_ms: int) -> None:
    """Take back what `begin` made, but nothing that somebody has built on since: such an answer is interrupted."""
    if turn.is_repeated:
        return
    owner, conversation_id = turn.conversation.owner, turn.conversation.id
    locked = lock_conversation(connection, owner, conversation_id)
    if locked is None:
        return
    number, conversation = locked
    gone = _without_what_is_below(connection, turn)
    if turn.answer.id not in gone:
        end = {"end": "interrupted", "reason": None, "used": None, "now_ms": now_ms}
        FINISH_AS_IT_IS.run(connection, {"answer_id": turn.answer.id, **end})
    if turn.made_conversation and not ANY_MESSAGE.all(connection, {"conversation_id": conversation_id}):
        DELETE_CONVERSATION.run(connection, {"id": conversation_id, "owner": owner})
    elif conversation.head_id in gone:
        head = _head_without(connection, turn)
        move_head(connection, conversation_id, head, number, now_ms)


def discard_unknown(connection: Connection, owner: str, asked: NewTurn, now_ms: int) -> None:
    """Take back the turn that `begin` made if its commit came through, by the id that was chosen for its answer."""
    assert asked.answer_id is not None
    answer = find_message(connection, owner, asked.answer_id)
    message = None if answer is None or answer.parent_id is None else find_message(connection, owner, answer.parent_id)
    conversation = None if message is None else find_conversation(connection, owner, message.conversation_id)
    if answer is None or message is None or conversation is None:
        return
    is_new, has_message = asked.conversation_id is None, asked.message is not None
    turn = Turn(conversation, message, answer, made_conversation=is_new, made_message=has_message)
    discard(connection, turn, now_ms)


def _without_what_is_below(connection: Connection, turn: Turn) -> list[str]:
    """Delete the answer and then the message of a turn, as far as nothing is below them; the ids of these."""
    gone: list[str] = []
    for message in [turn.answer, turn.message] if turn.made_message else [turn.answer]:
        asked = {"conversation_id": turn.conversation.id, "parent_id": message.id}
        if HAS_CHILD.all(connection, asked):
            break
        DELETE_MESSAGE.run(connection, {"id": message.id, "owner": turn.conversation.owner})
        gone.append(message.id)
    return gone


def _head_without(connection: Connection, turn: Turn) -> str | None:
    """After a turn that was discarded: what is left of it, else the head before it, else what it followed."""
    own, followed = (turn.message.id, turn.message.parent_id) if turn.made_message else (None, turn.message.id)
    for message_id in (own, turn.previous_head_id, followed):
        if message_id is not None and find_message(connection, turn.conversation.owner, message_id) is not None:
            return message_id
    return None


def checkpoint(connection: Connection, answer_id: str, text: str, now_ms: int) -> bool:
    """False where the answer has come to its end already, or is gone."""
    return CHECKPOINT.run(connection, {"answer_id": answer_id, "text_so_far": text, "now_ms": now_ms}) > 0


def finish(
    connection: Connection,
    answer_id: str,
    state: State,
    text: str | Unset,
    finish_reason: str | None,
    usage: Mapping[str, Any] | None,
    now_ms: int,
) -> Finished | None:
    """None where the answer has come to its end already, or is gone."""
    touched = TOUCH.first(connection, {"answer_id": answer_id, "now_ms": now_ms})
    if touched is None:
        return None
    values = {"answer_id": answer_id, "end": state, "reason": finish_reason, "used": usage, "now_ms": now_ms}
    if text is UNSET:
        row = FINISH_AS_IT_IS.first(connection, values)
    else:
        row = FINISH.first(connection, {**values, "whole_text": text})
    return None if row is None else Finished(conversation_of(touched), message_of(row))


def repeated(connection: Connection, owner: str, conversation_id: str | None, message_id: str) -> Turn | None:
    """The turn that a message of this id began, if there is one, in any conversation if none is named."""
    first = find_message(connection, owner, message_id)
    if first is None:
        return None
    if conversation_id not in (None, first.conversation_id):
        raise RequestError("message_id is of a message in another conversation", "message_id")
    conversation = find_conversation(connection, owner, first.conversation_id)
    known = {"conversation_id": first.conversation_id, "parent_id": first.id}
    row = FIRST_ANSWER.first(connection, known)
    if conversation is None or first.role != "user" or row is None:
        raise RequestError("message_id is of a message that began no turn", "message_id")
    return Turn(conversation, first, message_of(row), is_repeated=True)


def _begin_conversation(
    connection: Connection, owner: str, asked: NewTurn, message: NewMessage, server_id: str, now_ms: int
) -> Turn | None:
    if not isinstance(asked.parent_id, Head) and asked.parent_id is not None:
        return None
    settings, metadata = dict(asked.settings), dict(asked.metadata)
    conversation = Conversation(
        new_conversation_id(), owner, asked.title, asked.model, settings, metadata, None, now_ms, now_ms
    )
    user = new_message(message, conversation.id, None, now_ms)
    answer = _new_answer(asked, user, now_ms)
    conversation = replace(conversation, head_id=answer.id)
    insert_conversation(connection, conversation, [user, answer], server_id)
    return Turn(conversation, user, answer, made_conversation=True, made_message=True)


def _begin(
    connection: Connection,
    conversation: Conversation,
    parent_id: str | None,
    user: Message | None,
    asked: NewTurn,
    server_id: str,
    number: int,
    now_ms: int,
) -> Turn:
    made: list[Message] = []
    if user is None:
        assert asked.message is not None
        user = new_message(asked.message, conversation.id, parent_id, now_ms)
        made.append(user)
    answer = _new_answer(asked, user, now_ms)
    made.append(answer)
    insert_messages(connection, conversation.owner, made, number, server_id)
    move_head(connection, conversation.id, answer.id, number + len(made), now_ms)
    return Turn(
        replace(conversation, head_id=answer.id, updated_ms=now_ms),
        user,
        answer,
        made_message=len(made) == NUM_OF_A_TURN,
        previous_head_id=conversation.head_id,
    )


def _new_answer(asked: NewTurn, user: Message, now_ms: int) -> Message:
    new = NewMessage("assistant", "", id=asked.answer_id, model=asked.model, parameters=asked.parameters)
    return new_message(new, user.conversation_id, user.id, now_ms, state="pending")
