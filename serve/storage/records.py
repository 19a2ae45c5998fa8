"""What the repository of conversations takes and gives. Times are milliseconds since 1970."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from tinycluster.engine.errors import RequestError

State = Literal["complete", "pending", "streaming", "interrupted"]
"""Of a message: an answer is pending until its first checkpoint, then streaming."""
OPEN_STATES = ("pending", "streaming")
"""Of an answer that is not at its end."""

MAX_MESSAGES = 2**14
"""Of a conversation since its beginning: it is shown as a whole, and read to add to its end."""
MESSAGE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}")
"""Clients take the parts . and .. out of a path before they send it, so no id is only dots."""


class Unset(Enum):
    """A field that an update leaves as it is, where None is a value."""

    UNSET = "unset"


class Head(Enum):
    """The message that the conversation shows last, whichever that is."""

    HEAD = "head"


UNSET, HEAD = Unset.UNSET, Head.HEAD


@dataclass(frozen=True, slots=True)
class Conversation:
    """`head_id` is the leaf of the branch that is shown: of a tree that has one."""

    id: str
    owner: str
    title: str
    model: str | None
    settings: dict[str, Any]
    metadata: dict[str, Any]
    head_id: str | None
    created_ms: int
    updated_ms: int


@dataclass(frozen=True, slots=True)
class Message:
    """`item` is an item of OpenAI's that is more than role and text; `usage` and `parameters` are an answer's."""

    id: str
    conversation_id: str
    parent_id: str | None
    role: str
    state: State
    text: str
    item: dict[str, Any] | None
    model: str | None
    parameters: dict[str, Any] | None
    usage: dict[str, Any] | None
    finish_reason: str | None
    created_ms: int
    updated_ms: int


@dataclass(frozen=True, slots=True)
class NewMessage:
    """`id` None takes a new one. A client's own must be fit for a path of a URL: see check_message_id."""

    role: str
    text: str
    id: str | None = None
    item: Mapping[str, Any] | None = None
    model: str | None = None
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class NewTurn:
    """What begin_turn stores.

    `conversation_id` None begins a conversation with `title`, `settings` and `metadata`, which count only then.
    `message` None is a new answer to `parent_id`. `parent_id` None is a new first message. Who must find the answer
    even where the database does not say what became of it chooses `answer_id`, which nobody may have used before.
    """

    conversation_id: str | None
    message: NewMessage | None
    parent_id: str | Head | None = HEAD
    answer_id: str | None = None
    model: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """A user's message, which a new answer to an old one does not have anew, and its answer.

    `is_repeated`: both were there before and nothing was written; `answer` is then as it stands in storage.
    """

    conversation: Conversation
    message: Message
    answer: Message
    is_repeated: bool = False
    made_conversation: bool = False
    made_message: bool = False
    previous_head_id: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """An answer at its end, and its conversation."""

    conversation: Conversation
    answer: Message


@dataclass(frozen=True, slots=True)
class Listed:
    """Part of a list, newest first."""

    conversations: Sequence[Conversation]
    has_more: bool

    @property
    def next(self) -> str | None:
        """`before` of what follows, if anything does: a place in time, whatever becomes of the last of these."""
        last = self.conversations[-1] if self.has_more else None
        return None if last is None else f"{last.updated_ms}.{last.id}"


def new_conversation_id() -> str:
    return f"conv_{uuid.uuid4().hex}"


def new_message_id() -> str:
    return f"msg_{uuid.uuid4().hex}"


def check_message_id(message_id: str, param: str = "message_id") -> None:
    if MESSAGE_ID.fullmatch(message_id) is None:
        rule = "must be 1 to 64 letters, digits and _ . : -, the first none of . : -"
        raise RequestError(f"{param} {rule}, got {message_id[:80]!r}", param)
