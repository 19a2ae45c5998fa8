"""Conversations in pages, newest first, and the search in titles and texts."""

from __future__ import annotations

import re

from sqlalchemy import ColumnElement, Connection, and_, func, literal, or_, select, tuple_

from tinycluster.engine.errors import RequestError
from tinycluster.serve.storage.columns import AnyText
from tinycluster.serve.storage.records import Listed
from tinycluster.serve.storage.rows import CONVERSATION_COLUMNS, conversation_of, find_conversation
from tinycluster.serve.storage.tables import conversations, messages

NEXT = re.compile(r"(-?[0-9]{1,18})\.(.{1,80})")


def page(connection: Connection, owner: str, limit: int, before: str | None, search: str | None) -> Listed:
    place = tuple_(conversations.c.updated_ms, conversations.c.id)
    wanted = select(*CONVERSATION_COLUMNS).where(conversations.c.owner == owner)
    if before is not None:
        wanted = wanted.where(place < _place_of(connection, owner, before))
    if search:
        wanted = wanted.where(_holds(search))
    newest = wanted.order_by(conversations.c.updated_ms.desc(), conversations.c.id.desc()).limit(limit + 1)
    found = [conversation_of(row) for row in connection.execute(newest)]
    return Listed(found[:limit], len(found) > limit)


def _place_of(connection: Connection, owner: str, before: str) -> tuple[int, str]:
    """RequestError where `before` is neither the `next` of a page nor the id of one of the owner's conversations."""
    if (match := NEXT.fullmatch(before)) is not None:
        return int(match[1]), match[2]
    last = find_conversation(connection, owner, before)
    if last is None:
        raise RequestError("before is neither the next of a list nor the id of a session", "before")
    return last.updated_ms, last.id


def _holds(search: str) -> ColumnElement[bool]:
    """Whether the title or a message has `search` as a part, in any case of letters that the database knows.

    A PostgreSQL of the locale C knows that of ASCII only; there a part is found as it is written, too.
    """
    is_in_text = and_(messages.c.conversation_id == conversations.c.id, _has_part(messages.c.text, search))
    return or_(_has_part(conversations.c.title, search), select(messages.c.id).where(is_in_text).exists())


def _has_part(column: ColumnElement[str], search: str) -> ColumnElement[bool]:
    in_any_case = func.lower(column).like(_pattern(search.lower()), escape="\\")
    if search == search.lower():
        return in_any_case
    return or_(in_any_case, column.like(_pattern(search), escape="\\"))


def _pattern(part: str) -> ColumnElement[str]:
    """% and _ are letters like others."""
    letters = part.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return literal(f"%{letters}%", AnyText)
