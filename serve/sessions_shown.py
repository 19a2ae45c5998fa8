"""Sessions and their messages as the session API shows them. Times are Unix seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tinycluster.serve.answer_run import AnswerRun
from tinycluster.serve.storage.records import OPEN_STATES, Conversation, Message

MAX_TITLE_CHARS = 60
MAX_LINE_CHARS = 1024
"""Looked at for a title, which is made on the event loop."""
MESSAGE_BYTES = 512
"""Of all that is not its text."""
UNTITLED = "New conversation"


def title_of(text: str) -> str:
    """The first line of a message, cut at a word: what a session is called until somebody renames it."""
    lines = text.lstrip()[:MAX_LINE_CHARS].splitlines()
    line = lines[0] if lines else ""
    # Joiners hold emoji together; the other invisible characters are there to deceive.
    visible = "".join(char for char in line if char.isprintable() or char in "\t\u200d")
    words = " ".join(visible.split())
    if len(words) <= MAX_TITLE_CHARS:
        return words or UNTITLED
    cut = words[:MAX_TITLE_CHARS].rsplit(" ", 1)[0] if " " in words[:MAX_TITLE_CHARS] else words[: MAX_TITLE_CHARS - 1]
    return f"{cut.rstrip(' ,;:.')}…"


def session_summary(session: Conversation) -> dict[str, Any]:
    return {
        "id": session.id,
        "title": session.title or UNTITLED,
        "model": session.model,
        "updated_at": session.updated_ms / 1000,
    }


def session_shown(
    session: Conversation, messages: Sequence[Message], growing: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """With the whole tree of messages, which may take a while. `growing` are those that are being generated."""
    return {
        **session_summary(session),
        "settings": session.settings,
        "created_at": session.created_ms / 1000,
        "head_id": session.head_id,
        "messages": [growing.get(message.id) or message_shown(message) for message in messages],
    }


def size_of(messages: Sequence[Message]) -> int:
    """About how many bytes of JSON they are."""
    return sum(len(message.text) + MESSAGE_BYTES for message in messages)


def message_shown(message: Message, run: AnswerRun | None = None) -> dict[str, Any]:
    shown = {
        "id": message.id,
        "parent_id": message.parent_id,
        "role": message.role,
        "content": message.text,
        "state": message.state,
        "model": message.model,
        "created_at": message.created_ms / 1000,
        "finish_reason": message.finish_reason,
        "parameters": message.parameters or {},
        "usage": message.usage,
    }
    if run is not None and message.state in OPEN_STATES:
        shown |= {"content": str(run.text), "usage": run.usage()}
        if run.failure is not None:
            shown["state"] = "interrupted"
        elif run.text.num_chars:
            shown["state"] = "streaming"
    return shown


def done_data(session: Conversation, answer: Message) -> str:
    """The data of the event `done`."""
    return json.dumps({"message": message_shown(answer), "session": session_summary(session)})
