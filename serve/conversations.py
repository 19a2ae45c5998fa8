"""OpenAI's Conversations API. They are those of /api/sessions: the items of one are its branch that is shown.

Where a conversation has other branches, items are added to the end of that one, and deleting an item hangs whatever
came after it below what came before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from starlette.datastructures import QueryParams
from starlette.responses import JSONResponse, Response

from tinycluster.engine.errors import RequestError
from tinycluster.serve.body import read_as
from tinycluster.serve.conversation_fields import CreateConversation, CreateItems, UpdateConversation, check_include
from tinycluster.serve.conversation_items import (
    item_of,
    new_message_of,
    title_of_items,
)
from tinycluster.serve.errors import not_found
from tinycluster.serve.identity import client_of
from tinycluster.serve.json_pieces import json_response
from tinycluster.serve.request_storage import conversations_of
from tinycluster.serve.responses_items import InputItem, validated_items
from tinycluster.serve.responses_page import list_of, page_of
from tinycluster.serve.sessions_shown import size_of
from tinycluster.serve.storage.records import MAX_MESSAGES, OPEN_STATES, Conversation, Message, NewMessage

MAX_ITEMS = MAX_MESSAGES
MAX_CHARS = 2**26
"""Of a conversation that items are added to: all of it is read to show some."""


def add_conversations_routes(app: FastAPI) -> None:
    _add_conversation_routes(app)
    _add_item_routes(app)


def _add_conversation_routes(app: FastAPI) -> None:
    @app.post("/v1/conversations")
    async def create_conversation(request: Request) -> Response:
        asked = await read_as(partial(validated_items, CreateConversation), request)
        items = _new_messages(asked.items or ())
        metadata, title = asked.metadata or {}, title_of_items(items)
        owner = client_of(request)
        return _shown(await conversations_of(request).create(owner, title=title, metadata=metadata, items=items))

    @app.get("/v1/conversations/{conversation_id}")
    async def show_conversation(request: Request, conversation_id: str) -> Response:
        return _shown(await _find(request, conversation_id))

    @app.post("/v1/conversations/{conversation_id}")
    async def update_conversation(request: Request, conversation_id: str) -> Response:
        asked = await read_as(partial(validated_items, UpdateConversation), request)
        metadata = asked.metadata or {}
        updated = await conversations_of(request).update(client_of(request), conversation_id, metadata=metadata)
        if updated is None:
            raise not_found("conversation", "conversation_id")
        return _shown(updated)

    @app.delete("/v1/conversations/{conversation_id}")
    async def delete_conversation(request: Request, conversation_id: str) -> Response:
        if not await conversations_of(request).delete(client_of(request), conversation_id):
            raise not_found("conversation", "conversation_id")
        return JSONResponse({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


def _add_item_routes(app: FastAPI) -> None:
    @app.get("/v1/conversations/{conversation_id}/items")
    async def list_items(request: Request, conversation_id: str) -> Response:
        _check_include(request.query_params)
        path = await _path(request, conversation_id)
        ids = [message.id for message in path]
        page = partial(page_of, ids, lambda index: item_of(path[index]), request.query_params)
        return await json_response(size_of(path), page, depth=2)

    @app.post("/v1/conversations/{conversation_id}/items")
    async def create_items(request: Request, conversation_id: str) -> Response:
        _check_include(request.query_params)
        asked = await read_as(partial(validated_items, CreateItems), request)
        items = _new_messages(asked.items)
        await _check_room(request, conversation_id, sum(len(item.text) for item in items))
        added = await conversations_of(request).add_items(
            client_of(request), conversation_id, items, title=title_of_items(items), max_messages=MAX_ITEMS
        )
        if added is None:
            raise not_found("conversation", "conversation_id")
        return await json_response(size_of(added), lambda: list_of(list(map(item_of, added)), has_more=False), depth=2)

    @app.get("/v1/conversations/{conversation_id}/items/{item_id}")
    async def show_item(request: Request, conversation_id: str, item_id: str) -> Response:
        _check_include(request.query_params)
        return JSONResponse(item_of(await _item(request, conversation_id, item_id)))

    @app.delete("/v1/conversations/{conversation_id}/items/{item_id}")
    async def delete_item(request: Request, conversation_id: str, item_id: str) -> Response:
        if (await _item(request, conversation_id, item_id)).state in OPEN_STATES:
            raise RequestError("An item that is still being generated cannot be deleted", "item_id")
        left = await conversations_of(request).delete_message(client_of(request), conversation_id, item_id)
        if left is None:
            raise not_found("item", "item_id")
        return _shown(left)


async def _check_room(request: Request, conversation_id: str, num_new: int) -> None:
    num_chars = await conversations_of(request).num_chars(client_of(request), conversation_id)
    if num_chars + num_new > MAX_CHARS:
        raise RequestError(f"A conversation takes at most {MAX_CHARS} characters, and has {num_chars}", "items")


def _new_messages(items: Sequence[InputItem]) -> list[NewMessage]:
    return [new_message_of(item.as_listed()) for item in items]


async def _find(request: Request, conversation_id: str) -> Conversation:
    """HttpError 404 where this client has no such conversation."""
    found = await conversations_of(request).get(client_of(request), conversation_id)
    if found is None:
        raise not_found("conversation", "conversation_id")
    return found


async def _path(request: Request, conversation_id: str) -> Sequence[Message]:
    path = await conversations_of(request).path(client_of(request), conversation_id)
    if path is None:
        raise not_found("conversation", "conversation_id")
    return path


async def _item(request: Request, conversation_id: str, item_id: str) -> Message:
    """On whichever branch; the conversation is missed first."""
    found = await conversations_of(request).message(client_of(request), conversation_id, item_id)
    if found is None:
        await _find(request, conversation_id)
        raise not_found("item", "item_id")
    return found


def _shown(conversation: Conversation) -> Response:
    shown: Mapping[str, Any] = {
        "id": conversation.id,
        "object": "conversation",
        "created_at": conversation.created_ms // 1000,
        "metadata": conversation.metadata,
    }
    return JSONResponse(shown)


def _check_include(query: QueryParams) -> None:
    """OpenAI's clients write a list as include[]."""
    check_include([*query.getlist("include"), *query.getlist("include[]")])
