"""OpenAI's Responses API: POST /v1/responses, and GET, cancel and DELETE of what is stored.

A response is made by the machinery of /v1/chat/completions. To anybody but its owner a response does not exist. It is
stored once, when it ends: before that only those who read its stream know it, and a stream that has ended well is one
that was stored. With `background` the client gets the object at once and asks for it again, wherever it likes, so such
a response is stored when it begins, too; only it can be cancelled, the others end with their connection.

A response may continue another one or a conversation, which gets what was asked and answered when the response is
complete, after whatever was said there meanwhile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tinycluster.engine.errors import RequestError
from tinycluster.serve.body import read_as
from tinycluster.serve.conversation_items import item_of
from tinycluster.serve.disconnect import unless_disconnected
from tinycluster.serve.errors import not_found
from tinycluster.serve.identity import client_of, terms_of
from tinycluster.serve.json_pieces import json_response
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.request_storage import storage_of
from tinycluster.serve.responses_events import new_response
from tinycluster.serve.responses_fields import ResponsesRequest, parse_responses
from tinycluster.serve.responses_page import page_of
from tinycluster.serve.responses_prompt import check_size, submit_response
from tinycluster.serve.responses_run import Run, Runs
from tinycluster.serve.responses_store import Context, context_of, in_thread_if, stored_context, stored_items
from tinycluster.serve.sessions_shown import size_of
from tinycluster.serve.storage.records import OPEN_STATES
from tinycluster.serve.storage.responses import KeptResponse
from tinycluster.serve.stream import EventStream


class Responses:
    """The responses of one server."""

    def __init__(self, registry: ModelRegistry, runs: Runs) -> None:
        self._registry, self._runs = registry, runs

    async def create(self, request: Request) -> Response:
        body, asked, said = await read_as(_read, request)
        owner, storage = client_of(request), storage_of(request)
        engine = self._registry.get(asked.model)
        engine.check_room()
        context = await self._history(request, asked) + said
        submitted = await submit_response(engine, asked, body, context, terms_of(request))
        response = new_response(asked, engine.name, engine.default_sampling, int(time.time()))
        run = Run(storage, owner, response, context, len(said.items), submitted)
        with submitted.choices.aborted_on_error():
            if asked.background:
                await run.begin()
                shown = run.encoded()
                self._runs.begin(run)
                return _json(shown)
            if asked.stream:
                return ResponseStream(self._runs, run)
            # Nobody learns the id of one that fails.
            await unless_disconnected(request.receive, run.generate())
            submitted.choices.abort()
            return _json(run.encoded())

    async def show(self, request: Request, response_id: str) -> str:
        run = self._runs.get(client_of(request), response_id)
        return (await _kept(request, response_id)).object if run is None else run.encoded()

    async def input_items(self, request: Request, response_id: str) -> Response:
        run = self._runs.get(client_of(request), response_id)
        if run is not None:
            items, num_bytes = run.context
        else:
            kept = await _kept(request, response_id)
            items, num_bytes = await stored_items(kept), kept.num_bytes
        page = partial(page_of, [item["id"] for item in items], items.__getitem__, request.query_params)
        return await json_response(num_bytes, page, depth=2)

    async def cancel(self, request: Request, response_id: str) -> str:
        run = self._runs.get(client_of(request), response_id)
        if run is None:
            return await _cancel_elsewhere(request, response_id)
        _check_background(run.response)
        run.stop()
        await run.is_settled.wait()
        return run.encoded()

    async def delete(self, request: Request, response_id: str) -> None:
        owner = client_of(request)
        run = self._runs.get(owner, response_id)
        if run is not None:
            run.is_unwanted = True
            run.stop()
            if run.events.is_ending:
                await run.is_settled.wait()
        was_stored = await storage_of(request).responses.delete(owner, response_id)
        if run is None and not was_stored:
            raise not_found("response", "response_id")
        self._runs.forget(owner, response_id)

    async def _history(self, request: Request, asked: ResponsesRequest) -> Context:
        """The conversation that `asked` continues."""
        if asked.conversation is not None:
            return await _conversation(request, asked.conversation)
        if asked.previous_response_id is None:
            return context_of([])
        owner, response_id, param = client_of(request), asked.previous_response_id, "previous_response_id"
        run = self._runs.get(owner, response_id)
        kept = await storage_of(request).responses.get(owner, response_id) if run is None else None
        if run is None and kept is None:
            message = f"There is no response with the id {response_id[:64]!r} to continue"
            raise RequestError(message, param, "previous_response_not_found")
        if (run is not None and not run.events.is_over) or (kept is not None and kept.status == "in_progress"):
            raise RequestError("previous_response_id is of a response that is still in progress", param)
        if run is not None:
            return run.context + context_of(run.response["output"])
        assert kept is not None
        return await stored_context(kept)


class ResponseStream(EventStream):
    """A client that goes away leaves a cancelled response behind."""

    def __init__(self, runs: Runs, run: Run) -> None:
        super().__init__(run.choices, run.events, run.events.commit)
        self._runs, self._run = runs, run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._runs.add(self._run)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._runs.leave(self._run)


def _read(body: dict[str, Any]) -> tuple[dict[str, Any], ResponsesRequest, Context]:
    """The body, what it asks for, and its items as they are listed."""
    asked = parse_responses(body)
    return body, asked, context_of([item.as_listed() for item in asked.input])


async def _kept(request: Request, response_id: str) -> KeptResponse:
    """HttpError 404 where this client has no such response."""
    kept = await storage_of(request).responses.get(client_of(request), response_id)
    if kept is None:
        raise not_found("response", "response_id")
    return kept


async def _cancel_elsewhere(request: Request, response_id: str) -> str:
    """Of a response that is over, or that another server generates, which will see it."""
    kept = await _kept(request, response_id)
    response = json.loads(kept.object)
    _check_background(response)
    cancelled = replace(kept, status="cancelled", object=json.dumps({**response, "status": "cancelled"}))
    if await storage_of(request).responses.end(client_of(request), cancelled):
        return cancelled.object
    return (await _kept(request, response_id)).object


def _check_background(response: Mapping[str, Any]) -> None:
    if not response["background"]:
        raise RequestError("Only a response with background: true can be cancelled", "response_id")


async def _conversation(request: Request, conversation_id: str) -> Context:
    path = await storage_of(request).conversations.path(client_of(request), conversation_id)
    if path is None:
        raise not_found("conversation", "conversation")
    if any(message.state in OPEN_STATES for message in path):
        message = "The conversation is still being answered; try again when that answer is complete"
        raise RequestError(message, "conversation", "conversation_locked")
    # What would be refused as a context is not made one.
    check_size(sum(len(message.text) for message in path), len(path))
    return await in_thread_if(size_of(path), lambda: context_of(list(map(item_of, path))))


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")


def add_responses_routes(app: FastAPI, registry: ModelRegistry, runs: Runs) -> None:
    responses = Responses(registry, runs)

    @app.post("/v1/responses")
    async def create_response(request: Request) -> Response:
        return await responses.create(request)

    @app.get("/v1/responses/{response_id}")
    async def show_response(request: Request, response_id: str) -> Response:
        _refuse_stream(request.query_params)
        return _json(await responses.show(request, response_id))

    @app.get("/v1/responses/{response_id}/input_items")
    async def list_input_items(request: Request, response_id: str) -> Response:
        return await responses.input_items(request, response_id)

    @app.post("/v1/responses/{response_id}/cancel")
    async def cancel_response(request: Request, response_id: str) -> Response:
        return _json(await responses.cancel(request, response_id))

    @app.delete("/v1/responses/{response_id}")
    async def delete_response(request: Request, response_id: str) -> Response:
        await responses.delete(request, response_id)
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})


def _refuse_stream(query: Mapping[str, str]) -> None:
    if query.get("stream", "false") != "false":
        raise RequestError("stream is not supported for a stored response", "stream")
