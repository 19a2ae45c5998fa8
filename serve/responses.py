"""OpenAI's Responses API: POST /v1/responses, and GET, cancel and DELETE of what it has stored in this process.

A response is made by the machinery of /v1/chat/completions. A client is its bearer token: to anybody else a response
does not exist. With `background` the client gets the object at once and asks for it again; only such a response can be
cancelled, the others end with their connection. Of several replicas only the one that made a response knows it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tinycluster.engine.errors import RequestError, TinyclusterError
from tinycluster.serve.body import read_as
from tinycluster.serve.choices import Choices
from tinycluster.serve.disconnect import unless_disconnected
from tinycluster.serve.errors import ErrorReply, HttpError, reply_for
from tinycluster.serve.identity import client_of
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.responses_events import ResponseEvents, new_response
from tinycluster.serve.responses_fields import ResponsesRequest, parse_responses
from tinycluster.serve.responses_page import page_of
from tinycluster.serve.responses_prompt import Submitted, submit_response
from tinycluster.serve.responses_store import Context, ResponseStore, StoredResponse, context_of
from tinycluster.serve.stream import EventStream

log = logging.getLogger(__name__)


class Responses:
    """The responses of one server."""

    def __init__(self, registry: ModelRegistry, store: ResponseStore) -> None:
        self._registry, self._store = registry, store
        self._background: set[asyncio.Task[None]] = set()

    async def create(self, request: Request) -> Response:
        body, asked, said = await read_as(_read, request)
        client = client_of(request)
        engine = self._registry.get(asked.model)
        engine.check_room()
        context = self._history(client, asked) + said
        submitted = await submit_response(engine, asked, body, context, client)
        choices, events = submitted.choices, self._begin(client, asked, engine.name, context, submitted)
        if asked.stream:
            return ResponseStream(choices, events)
        if asked.background:
            task = asyncio.create_task(_generate(choices, events))
            self._background.add(task)
            task.add_done_callback(self._background.discard)
            return _json(events.encoded())
        try:
            await unless_disconnected(request.receive, _drain(choices, events))
        except BaseException:
            # Nobody has learned its id.
            self._store.remove(client, events.response["id"])
            raise
        finally:
            choices.abort()
        return _json(events.encoded())

    def find(self, request: Request, response_id: str) -> StoredResponse:
        """HttpError 404 where this client has no such response."""
        stored = self._store.get(client_of(request), response_id)
        if stored is None:
            raise _not_found(response_id)
        return stored

    def cancel(self, request: Request, response_id: str) -> StoredResponse:
        stored = self.find(request, response_id)
        if not stored.response["background"]:
            raise RequestError("Only a response with background: true can be cancelled", "response_id")
        if stored.stop is not None:
            stored.stop()
        return stored

    def delete(self, request: Request, response_id: str) -> dict[str, Any]:
        stored = self._store.remove(client_of(request), response_id)
        if stored is None:
            raise _not_found(response_id)
        if stored.stop is not None:
            stored.stop()
        return {"id": response_id, "object": "response", "deleted": True}

    def _history(self, client: str, asked: ResponsesRequest) -> Context:
        """The conversation that `asked` continues."""
        if asked.previous_response_id is None:
            return context_of([])
        param = "previous_response_id"
        previous = self._store.get(client, asked.previous_response_id)
        if previous is None:
            message = f"There is no response with the id {asked.previous_response_id[:64]!r} to continue"
            raise RequestError(message, param, "previous_response_not_found")
        if previous.stop is not None:
            raise RequestError("previous_response_id is of a response that is still in progress", param)
        return previous.context + context_of(previous.response["output"])

    def _begin(
        self, client: str, asked: ResponsesRequest, model: str, context: Context, submitted: Submitted
    ) -> ResponseEvents:
        """The response in progress, stored if it may be."""
        response = new_response(asked, model, int(time.time()))

        def stop() -> None:
            events.cancel()
            submitted.choices.abort()

        def on_end() -> None:
            stored.stop = None
            if self._store.get(client, stored.response_id) is stored:
                self._store.put(client, stored)

        events = ResponseEvents(response, time.time, on_end, submitted.parser, submitted.logprobs)
        stored = StoredResponse(response, context, events.written)
        if asked.is_stored:
            stored.stop = stop
            self._store.put(client, stored)
        return events


class ResponseStream(EventStream):
    """A client that goes away leaves a cancelled response behind."""

    def __init__(self, choices: Choices, response_events: ResponseEvents) -> None:
        super().__init__(choices, response_events)
        self._response_events = response_events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._response_events.cancel()


def _read(body: dict[str, Any]) -> tuple[dict[str, Any], ResponsesRequest, Context]:
    """The body, what it asks for, and its items as they are listed."""
    asked = parse_responses(body)
    return body, asked, context_of([item.as_listed() for item in asked.input])


async def _drain(choices: Choices, events: ResponseEvents) -> None:
    async for step in choices.steps():
        for choice, delta in step:
            events.delta(choice, delta)
    events.usage(choices.usage())


async def _generate(choices: Choices, events: ResponseEvents) -> None:
    """In the background: what goes wrong is in the response."""
    try:
        await _drain(choices, events)
    except Exception as error:
        if not isinstance(error, TinyclusterError):
            log.exception("a background response failed")
        events.failed(reply_for(error))
    finally:
        choices.abort()


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")


def _not_found(response_id: str) -> HttpError:
    message = f"There is no response with the id {response_id[:64]!r}"
    return HttpError(ErrorReply(404, message, param="response_id", code="not_found"))


def add_responses_routes(app: FastAPI, registry: ModelRegistry) -> None:
    responses = Responses(registry, ResponseStore())

    @app.post("/v1/responses")
    async def create_response(request: Request) -> Response:
        return await responses.create(request)

    @app.get("/v1/responses/{response_id}")
    async def show_response(request: Request, response_id: str) -> Response:
        _refuse_stream(request.query_params)
        return _json(responses.find(request, response_id).encoded())

    @app.get("/v1/responses/{response_id}/input_items")
    async def list_input_items(request: Request, response_id: str) -> Response:
        return JSONResponse(page_of(responses.find(request, response_id).context.items, request.query_params))

    @app.post("/v1/responses/{response_id}/cancel")
    async def cancel_response(request: Request, response_id: str) -> Response:
        return _json(responses.cancel(request, response_id).encoded())

    @app.delete("/v1/responses/{response_id}")
    async def delete_response(request: Request, response_id: str) -> Response:
        return JSONResponse(responses.delete(request, response_id))


def _refuse_stream(query: Mapping[str, str]) -> None:
    if query.get("stream", "false") != "false":
        raise RequestError("stream is not supported for a stored response", "stream")
