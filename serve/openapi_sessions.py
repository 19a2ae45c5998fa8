"""What the session API answers with, as types for /openapi.json, and its operations' parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, RootModel

from tinycluster.serve.sessions import DEFAULT_LIMIT, MAX_LIMIT, MAX_SEARCH_CHARS


class SessionUsage(BaseModel):
    """`ttft_ms` is from the question to the first token, `tokens_per_s` of the tokens after it."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    ttft_ms: float | None
    tokens_per_s: float | None


class SessionMessage(BaseModel):
    id: str
    parent_id: str | None
    role: str
    content: str
    state: Literal["complete", "pending", "streaming", "interrupted"]
    model: str | None
    created_at: float
    finish_reason: str | None
    parameters: dict[str, Any]
    usage: SessionUsage | dict[str, Any] | None


class SessionSummary(BaseModel):
    id: str
    title: str
    model: str | None
    updated_at: float


class SessionList(BaseModel):
    """The last changed first. `next` is the `before` of what follows."""

    sessions: list[SessionSummary]
    has_more: bool
    next: str | None


class Session(SessionSummary):
    """With all of its branches; `head_id` is the last message of the one that is shown."""

    settings: dict[str, Any]
    created_at: float
    head_id: str | None
    messages: list[SessionMessage]


class DeletedSession(BaseModel):
    id: str
    deleted: Literal[True]


class SessionDocument(BaseModel):
    format: Literal["tinycluster.sessions"]
    version: Literal[1]
    sessions: list[dict[str, Any]]


class ImportedSessions(BaseModel):
    sessions: list[SessionSummary]


class UserSettings(RootModel[dict[str, Any]]):
    """Whatever the page has put there."""


class ChatAnswer(BaseModel):
    session_id: str
    message: SessionMessage


LIST_QUERY: Sequence[Mapping[str, Any]] = (
    {
        "name": "limit",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
    },
    {
        "name": "before",
        "in": "query",
        "schema": {"type": "string"},
        "description": "The list's `next`, or the id of the session before",
    },
    {
        "name": "search",
        "in": "query",
        "schema": {"type": "string", "maxLength": MAX_SEARCH_CHARS},
        "description": "A part of the title or of a message",
    },
)
EVENTS_QUERY: Sequence[Mapping[str, Any]] = (
    {"name": "after", "in": "query", "schema": {"type": "string"}, "description": "The id of the last event"},
    {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}, "description": "The same, comes first"},
)
