"""Sessions: conversations as their owner lists, opens, renames, copies, takes away and brings back.

Nothing of another client is ever found, and a 404 does not tell whether it is there.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.responses import JSONResponse, Response

from tinycluster.engine.errors import RequestError
from tinycluster.serve.answer_runs import AnswerRuns
from tinycluster.serve.body import PARSE_IN_THREAD_BYTES, read_as
from tinycluster.serve.errors import not_found
from tinycluster.serve.identity import client_of
from tinycluster.serve.json_pieces import json_response
from tinycluster.serve.request_storage import conversations_of, storage_of
from tinycluster.serve.responses_page import limit_of
from tinycluster.serve.sessions_fields import parse_change, parse_fork, parse_import, parse_settings
from tinycluster.serve.sessions_shown import message_shown, session_shown, session_summary, size_of
from tinycluster.serve.storage.records import HEAD, OPEN_STATES, UNSET

T = TypeVar("T")

MAX_LIMIT, DEFAULT_LIMIT = 100, 50
MAX_SEARCH_CHARS = 200


class SessionId(StringConvertor):
    """Part of a path, but not the two words that stand in an id's place."""

    regex = "(?!(?:export|import)(?:/|$))[^/]+"


register_url_convertor("session", SessionId())


class Sessions:
    """The routes' work."""

    def __init__(self, runs: AnswerRuns) -> None:
        self._runs = runs

    async def list(self, request: Request) -> Response:
        query = request.query_params
        search = query.get("search")
        if search is not None and len(search) > MAX_SEARCH_CHARS:
            raise RequestError(f"search must have at most {MAX_SEARCH_CHARS} characters", "search")
        listed = await conversations_of(request).list(
            client_of(request),
            limit=limit_of(query, DEFAULT_LIMIT, MAX_LIMIT),
            before=query.get("before"),
            search=search,
        )
        sessions = [session_summary(session) for session in listed.conversations]
        return JSONResponse({"sessions": sessions, "has_more": listed.has_more, "next": listed.next})

    async def show(self, request: Request, session_id: str) -> Response:
        return await self._shown(request, session_id)

    async def change(self, request: Request, session_id: str) -> Response:
        asked = await read_as(parse_change, request)
        given = {
            "title": UNSET if asked.title is None else asked.title,
            "settings": UNSET if asked.settings is None else asked.settings,
            "model": asked.model if "model" in asked.model_fields_set else UNSET,
            "head_id": UNSET if asked.head_id is None else asked.head_id,
        }
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not UNSET}
        _found(await conversations_of(request).update(client_of(request), session_id, **changes))
        return await self._shown(request, session_id)

    async def delete(self, request: Request, session_id: str) -> Response:
        """Its answers in the making end with it."""
        if not await conversations_of(request).delete(client_of(request), session_id):
            raise not_found("session", "session_id")
        self._runs.interrupt_session(session_id)
        return JSONResponse({"id": session_id, "deleted": True})

    async def fork(self, request: Request, session_id: str) -> Response:
        asked, owner = await read_as(parse_fork, request), client_of(request)
        leaf = HEAD if asked.message_id is None else asked.message_id
        copy = await conversations_of(request).fork(owner, session_id, leaf)
        if copy is None:
            _found(await conversations_of(request).get(owner, session_id))
            raise not_found("message", "message_id")
        return await self._shown(request, copy.id)

    async def export(self, request: Request, session_id: str | None = None) -> Response:
        """One session, or all of them."""
        document = await conversations_of(request).export_document(client_of(request), session_id)
        if document is None:
            raise not_found("session", "session_id")
        # Down to the messages of the sessions. Whoever takes them away can wait for a thread.
        return await json_response(PARSE_IN_THREAD_BYTES, lambda: document, depth=4)

    async def import_all(self, request: Request) -> Response:
        asked = await read_as(parse_import, request)
        try:
            sessions = await conversations_of(request).import_document(client_of(request), asked.document)
        except RequestError as error:
            param = f"document.{error.param}" if error.param else "document"
            raise RequestError(f"document.{error.message}", param) from None
        return JSONResponse({"sessions": [session_summary(session) for session in sessions]})

    async def _shown(self, request: Request, session_id: str) -> Response:
        session, messages = _found(await conversations_of(request).with_messages(client_of(request), session_id))
        growing = {
            message.id: message_shown(message, self._runs.get(message.id))
            for message in messages
            if message.state in OPEN_STATES
        }
        return await json_response(size_of(messages), partial(session_shown, session, messages, growing), depth=2)


def _found(found: T | None) -> T:
    if found is None:
        raise not_found("session", "session_id")
    return found


def add_session_routes(app: FastAPI, runs: AnswerRuns) -> None:
    sessions = Sessions(runs)

    @app.get("/api/sessions")
    async def list_sessions(request: Request) -> Response:
        return await sessions.list(request)

    @app.get("/api/sessions/export")
    async def export_all_sessions(request: Request) -> Response:
        return await sessions.export(request)

    @app.post("/api/sessions/import")
    async def import_sessions(request: Request) -> Response:
        return await sessions.import_all(request)

    @app.get("/api/sessions/{session_id:session}")
    async def show_session(request: Request, session_id: str) -> Response:
        return await sessions.show(request, session_id)

    @app.patch("/api/sessions/{session_id:session}")
    async def change_session(request: Request, session_id: str) -> Response:
        return await sessions.change(request, session_id)

    @app.delete("/api/sessions/{session_id:session}")
    async def delete_session(request: Request, session_id: str) -> Response:
        return await sessions.delete(request, session_id)

    @app.post("/api/sessions/{session_id:session}/fork")
    async def fork_session(request: Request, session_id: str) -> Response:
        return await sessions.fork(request, session_id)

    @app.get("/api/sessions/{session_id:session}/export")
    async def export_session(request: Request, session_id: str) -> Response:
        return await sessions.export(request, session_id)

    @app.get("/api/settings")
    async def show_settings(request: Request) -> Response:
        return JSONResponse(await storage_of(request).settings.get(client_of(request)))

    @app.put("/api/settings")
    async def replace_settings(request: Request) -> Response:
        settings = await read_as(parse_settings, request)
        await storage_of(request).settings.put(client_of(request), settings)
        return JSONResponse(settings)
