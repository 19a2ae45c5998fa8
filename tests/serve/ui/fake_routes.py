"""The fake backend over HTTP, with the page's own files beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from tests.serve.ui.fake_backend import LOOK_AGAIN_S, FakeBackend, Refusal, event, summary
from tinycluster.serve.ui_routes import add_ui_routes

PAGE = 40
ASK_AGAIN_S = 0.2
NO_KEY = Refusal(401, "this server asks for a key", "invalid_api_key")
NOT_FOUND = Refusal(404, "there is no such session", "not_found")


def fake_app(backend: FakeBackend) -> FastAPI:
    app = FastAPI(openapi_url=None)
    add_ui_routes(app)
    _add_turns(app, backend)
    _add_copies(app, backend)
    _add_sessions(app, backend)
    _add_rest(app, backend)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        is_api = request.url.path.startswith(("/api", "/v1"))
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if is_api and backend.keys and key not in backend.keys:
            return NO_KEY.response()
        return await call_next(request)

    return app


def _stream(content: AsyncIterator[str]) -> Response:
    return StreamingResponse(content, media_type="text/event-stream", headers={"cache-control": "no-cache"})


def _add_turns(app: FastAPI, backend: FakeBackend) -> None:
    @app.post("/api/chat")
    async def chat(request: Request) -> Response:
        body = await request.json()
        while backend.is_slow and not backend.is_away:
            if await request.is_disconnected():
                return Response()
            await asyncio.sleep(LOOK_AGAIN_S)
        backend.asked.append(body)
        if backend.refusals:
            return backend.refusals.pop(0).response()
        session, message, run = backend.begin(body)
        shown = {**run.message, "content": "", "state": "pending", "finish_reason": None, "usage": None}
        start = event("start", {"session": summary(session), "message": message, "answer": shown})
        return _stream(backend.events(run, 0, start))

    @app.get("/api/sessions/{session_id}/messages/{message_id}/events")
    async def resume(session_id: str, message_id: str, request: Request) -> Response:
        last = request.headers.get("last-event-id")
        backend.resumed_from.append(last)
        backend.tell()
        offset = int(last.rpartition("/")[2]) if last else 0
        return _stream(backend.events(backend.running[message_id], offset))

    @app.post("/api/sessions/{session_id}/messages/{message_id}/stop")
    async def stop(session_id: str, message_id: str) -> Response:
        backend.running[message_id].end("cancelled")
        return JSONResponse(backend.running[message_id].message)


def _add_sessions(app: FastAPI, backend: FakeBackend) -> None:
    @app.get("/api/sessions")
    async def list_sessions(request: Request) -> Response:
        search, before = request.query_params.get("search", "").lower(), request.query_params.get("before")
        found = sorted(backend.sessions.values(), key=lambda session: -session["updated_at"])
        found = [
            s
            for s in found
            if search in s["title"].lower()
            or any(search in message["content"].lower() for message in backend.messages[s["id"]])
        ]
        first = next((at + 1 for at, s in enumerate(found) if s["id"] == before), 0)
        page = found[first : first + int(request.query_params.get("limit", PAGE))]
        has_more = first + len(page) < len(found)
        following = page[-1]["id"] if has_more else None
        return JSONResponse({"sessions": [summary(s) for s in page], "has_more": has_more, "next": following})

    @app.get("/api/sessions/{session_id}")
    async def show(session_id: str) -> Response:
        return JSONResponse(backend.shown(session_id)) if session_id in backend.sessions else NOT_FOUND.response()

    @app.patch("/api/sessions/{session_id}")
    async def change(session_id: str, request: Request) -> Response:
        backend.sessions[session_id] |= await request.json()
        backend.tell()
        return JSONResponse(backend.shown(session_id))

    @app.delete("/api/sessions/{session_id}")
    async def delete(session_id: str) -> Response:
        del backend.sessions[session_id]
        return JSONResponse({"id": session_id, "deleted": True})


def _add_copies(app: FastAPI, backend: FakeBackend) -> None:
    @app.get("/api/sessions/export")
    async def export_all() -> Response:
        return JSONResponse({"version": 1, "sessions": [backend.shown(session_id) for session_id in backend.sessions]})

    @app.post("/api/sessions/import")
    async def import_sessions(request: Request) -> Response:
        made = []
        for told in (await request.json())["document"].get("sessions", []):
            session = backend.new_session(told["title"])
            for message in told["messages"]:
                backend.add_message(session, message["role"], message["content"])
            made.append(summary(session))
        return JSONResponse({"sessions": made})

    @app.post("/api/sessions/{session_id}/fork")
    async def fork(session_id: str, request: Request) -> Response:
        leaf = (await request.json())["message_id"]
        by_id = {message["id"]: message for message in backend.messages[session_id]}
        path = []
        while leaf is not None:
            path.append(by_id[leaf])
            leaf = by_id[leaf]["parent_id"]
        made = backend.new_session(backend.sessions[session_id]["title"])
        for message in reversed(path):
            backend.add_message(made, message["role"], message["content"])
        return JSONResponse(backend.shown(made["id"]))

    @app.get("/api/sessions/{session_id}/export")
    async def export(session_id: str) -> Response:
        return JSONResponse({"version": 1, "sessions": [backend.shown(session_id)]})


def _add_rest(app: FastAPI, backend: FakeBackend) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        cards = [{"id": name, "default_sampling": backend.default_sampling.get(name, {})} for name in backend.models]
        return JSONResponse({"object": "list", "data": cards})

    @app.get("/api/me")
    async def me(request: Request) -> Response:
        role = backend.keys.get(request.headers.get("authorization", "").removeprefix("Bearer "))
        return JSONResponse({"auth": "keys" if role else "none", "name": role and "anna", "role": role or "admin"})

    @app.get("/api/settings")
    async def settings() -> Response:
        return JSONResponse(backend.settings)

    @app.put("/api/settings")
    async def put_settings(request: Request) -> Response:
        backend.settings = await request.json()
        backend.tell()
        return JSONResponse(backend.settings)

    @app.get("/api/cluster")
    async def cluster() -> Response:
        return JSONResponse(backend.snapshot)

    @app.get("/api/cluster/events")
    async def cluster_events() -> Response:
        async def snapshots() -> AsyncIterator[str]:
            while not backend.is_away:
                if not backend.is_silent:
                    yield event("snapshot", backend.snapshot)
                await asyncio.sleep(ASK_AGAIN_S)

        return _stream(snapshots())
