"""GET /openapi.json: every route with its request, its answer and the errors that it may give."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

import tinycluster
from tinycluster.serve import openapi_answers as answers
from tinycluster.serve.access import level_of
from tinycluster.serve.conversation_fields import INCLUDABLE, CreateConversation, CreateItems, UpdateConversation
from tinycluster.serve.new_key import NewKey
from tinycluster.serve.openapi_cluster import ClusterSnapshot
from tinycluster.serve.openapi_keys import DeletedKey, KeyList, MadeKey, Me
from tinycluster.serve.openapi_sessions import (
    EVENTS_QUERY,
    LIST_QUERY,
    ChatAnswer,
    DeletedSession,
    ImportedSessions,
    Session,
    SessionDocument,
    SessionList,
    SessionMessage,
    UserSettings,
)
from tinycluster.serve.protocol import ChatRequest, CompletionRequest
from tinycluster.serve.responses_fields import ResponsesRequest
from tinycluster.serve.sessions_fields import ChatTurn, Fork, Import, PageSettings, SessionChange
from tinycluster.serve.tokenize import DetokenizeRequest, TokenizeRequest

JSON = "application/json"
EVENTS = "text/event-stream"
EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
"""A server-sent event; its data is JSON, and `[DONE]` in the last."""
MEANINGS = {
    400: "A field is wrong; `param` names it",
    401: "There is no key, or it is wrong, revoked or expired",
    403: "The Origin is a web page of a stranger, or the key's role does not allow this",
    404: "There is no such model or object",
    408: "The body did not come in time, or the request's own timeout is over",
    409: "An answer is still being written, or the id of a message is taken",
    413: "The body is too large",
    415: "The body is not plain JSON",
    421: "The Host is not a name of this server",
    429: "The queue is full or a limit is reached; Retry-After says when to come again",
    500: "The server failed",
    503: "The model is not available; Retry-After says when to come again",
}
ON_READ = (400, 403, 421, 500, 503)
ON_FIND = (400, 403, 404, 421, 500, 503)
ON_SEND = (400, 403, 404, 408, 413, 415, 421, 500, 503)
ON_CHAT = tuple(MEANINGS)
ON_GENERATE = tuple(status for status in ON_CHAT if status != 409)

FOR_KEYS = (401, 429)
"""May come from every route that is not public."""
KEY = {"key": {"type": "http", "scheme": "bearer", "description": "A key of `tinycluster keys create`"}}

PAGE: Sequence[Mapping[str, Any]] = (
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}},
    {"name": "order", "in": "query", "schema": {"type": "string", "enum": ["asc", "desc"], "default": "desc"}},
    {"name": "after", "in": "query", "schema": {"type": "string"}, "description": "The id of the item before the page"},
)

INCLUDE: Sequence[Mapping[str, Any]] = (
    {
        "name": "include",
        "in": "query",
        "schema": {"type": "array", "items": {"type": "string", "enum": list(INCLUDABLE)}},
        "description": "Items have none of this here",
    },
)


@dataclass(frozen=True)
class Operation:
    """One method of one path. `answer` is a type, or the media type of what is not JSON."""

    summary: str
    answer: type[BaseModel] | str
    errors: Sequence[int]
    request: type[BaseModel] | None = None
    may_stream: bool = False
    query: Sequence[Mapping[str, Any]] = ()
    links_to: str = ""
    """The path parameter of other operations that the answer's id is good for."""


OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("GET", "/health"): Operation("Whether the process answers", answers.Status, ON_READ),
    ("GET", "/health/ready"): Operation("Whether every rank computes", answers.Status, ON_READ),
    ("GET", "/health_generate"): Operation("One token of every model", answers.Status, (*ON_READ, 429)),
    ("GET", "/version"): Operation("The server's version", answers.Version, ON_READ),
    ("GET", "/load"): Operation("Requests in the engines", answers.Load, ON_READ),
    ("GET", "/metrics"): Operation("Counters, gauges and histograms for Prometheus", "text/plain", ON_READ),
    ("GET", "/api/me"): Operation("Whose key this is", Me, ON_READ),
    ("GET", "/api/keys"): Operation("All keys", KeyList, ON_READ),
    ("POST", "/api/keys"): Operation("Make a key, which is shown this once", MadeKey, ON_SEND, NewKey),
    ("DELETE", "/api/keys/{key_id}"): Operation("Revoke a key", DeletedKey, ON_FIND),
    ("GET", "/openapi.json"): Operation("This document", JSON, ON_READ),
    ("GET", "/"): Operation("The web page that talks to the models", "text/html", ON_READ),
    ("GET", "/cluster"): Operation("The web page that shows the cluster", "text/html", ON_READ),
    ("GET", "/ui/{name}"): Operation("A file that the web pages are made of", "text/javascript", ON_FIND),
    ("GET", "/v1/models"): Operation("The models", answers.ModelList, ON_READ),
    ("GET", "/v1/models/{name}"): Operation("One model", answers.ModelCard, ON_FIND),
    ("POST", "/v1/chat/completions"): Operation(
        "Answer a conversation", answers.ChatCompletion, ON_GENERATE, ChatRequest, may_stream=True
    ),
    ("POST", "/v1/completions"): Operation(
        "Continue a text", answers.Completion, ON_GENERATE, CompletionRequest, may_stream=True
    ),
    ("POST", "/v1/responses"): Operation(
        "Answer a conversation and store the answer",
        answers.ResponseObject,
        ON_GENERATE,
        ResponsesRequest,
        may_stream=True,
        links_to="response_id",
    ),
    ("GET", "/v1/responses/{response_id}"): Operation("A stored response", answers.ResponseObject, ON_FIND),
    ("DELETE", "/v1/responses/{response_id}"): Operation("Forget a response", answers.DeletedResponse, ON_FIND),
    ("POST", "/v1/responses/{response_id}/cancel"): Operation(
        "End a background response", answers.ResponseObject, ON_FIND
    ),
    ("GET", "/v1/responses/{response_id}/input_items"): Operation(
        "The items that a response answers", answers.InputItems, ON_FIND, query=PAGE
    ),
    ("POST", "/v1/conversations"): Operation(
        "Begin a conversation",
        answers.ConversationObject,
        ON_SEND,
        CreateConversation,
        links_to="conversation_id",
    ),
    ("GET", "/v1/conversations/{conversation_id}"): Operation("A conversation", answers.ConversationObject, ON_FIND),
    ("POST", "/v1/conversations/{conversation_id}"): Operation(
        "Replace a conversation's metadata", answers.ConversationObject, ON_SEND, UpdateConversation
    ),
    ("DELETE", "/v1/conversations/{conversation_id}"): Operation(
        "Delete a conversation with its items", answers.DeletedConversation, ON_FIND
    ),
    ("GET", "/v1/conversations/{conversation_id}/items"): Operation(
        "The items of a conversation", answers.InputItems, ON_FIND, query=(*PAGE, *INCLUDE)
    ),
    ("POST", "/v1/conversations/{conversation_id}/items"): Operation(
        "Add items to a conversation", answers.InputItems, ON_SEND, CreateItems, query=INCLUDE
    ),
    ("GET", "/v1/conversations/{conversation_id}/items/{item_id}"): Operation(
        "One item of a conversation", answers.Item, ON_FIND, query=INCLUDE
    ),
    ("DELETE", "/v1/conversations/{conversation_id}/items/{item_id}"): Operation(
        "Delete an item; what follows it stays", answers.ConversationObject, ON_FIND
    ),
    ("GET", "/api/cluster"): Operation("Nodes, models and ranks", ClusterSnapshot, ON_READ),
    ("GET", "/api/cluster/events"): Operation("The same each second, as `event: snapshot`", EVENTS, ON_READ),
    ("POST", "/api/chat"): Operation(
        "Say something in a session, or have it answered anew", ChatAnswer, ON_CHAT, ChatTurn, may_stream=True
    ),
    ("GET", "/api/sessions"): Operation("The sessions", SessionList, ON_READ, query=LIST_QUERY),
    ("GET", "/api/sessions/export"): Operation("All sessions, to be imported elsewhere", SessionDocument, ON_READ),
    ("POST", "/api/sessions/import"): Operation("What was exported", ImportedSessions, ON_SEND, Import),
    ("GET", "/api/sessions/{session_id}"): Operation("One session", Session, ON_FIND),
    ("PATCH", "/api/sessions/{session_id}"): Operation("Change a session", Session, ON_SEND, SessionChange),
    ("DELETE", "/api/sessions/{session_id}"): Operation("Delete a session", DeletedSession, ON_FIND),
    ("POST", "/api/sessions/{session_id}/fork"): Operation(
        "Copy a branch of a session", Session, ON_SEND, Fork, links_to="session_id"
    ),
    ("GET", "/api/sessions/{session_id}/export"): Operation(
        "One session, to be imported elsewhere", SessionDocument, ON_FIND
    ),
    ("GET", "/api/sessions/{session_id}/messages/{message_id}/events"): Operation(
        "The events of an answer, from any place on", EVENTS, ON_FIND, query=EVENTS_QUERY
    ),
    ("POST", "/api/sessions/{session_id}/messages/{message_id}/stop"): Operation(
        "End an answer as it is", SessionMessage, ON_FIND
    ),
    ("GET", "/api/settings"): Operation("What this user has set on the page", UserSettings, ON_READ),
    ("PUT", "/api/settings"): Operation("The same, replaced", UserSettings, ON_SEND, PageSettings),
    ("POST", "/tokenize"): Operation("The tokens of a text", answers.Tokens, ON_SEND, TokenizeRequest),
    ("POST", "/detokenize"): Operation("The text of tokens", answers.Detokenized, ON_SEND, DetokenizeRequest),
}


def document(*, with_keys: bool = False) -> dict[str, Any]:
    """The OpenAPI 3.1 document of all routes; `with_keys` as a server needs them whose auth is keys."""
    schemas, components = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        described = paths.setdefault(path, {})[method.lower()] = _described(method, path, operation, schemas)
        if with_keys:
            described["security"] = [] if level_of(path) == "public" else [{"key": []}]
    parts = {"schemas": components, **({"securitySchemes": KEY} if with_keys else {})}
    info = {"title": "tinycluster", "version": tinycluster.__version__}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": parts}


Mode = Literal["validation", "serialization"]
Schemas = Mapping[tuple[Any, Mode], Mapping[str, Any]]


def _schemas() -> tuple[Schemas, Mapping[str, Any]]:
    """References by type, and what they refer to."""
    requests = {operation.request for operation in OPERATIONS.values() if operation.request is not None}
    shown = {operation.answer for operation in OPERATIONS.values() if not isinstance(operation.answer, str)}
    wanted: list[tuple[Any, Mode]] = [(kind, "validation") for kind in requests]
    wanted += [(kind, "serialization") for kind in {*shown, answers.Error}]
    wanted.sort(key=lambda pair: pair[0].__name__)
    references, definitions = models_json_schema(wanted, ref_template="#/components/schemas/{model}")
    return references, definitions["$defs"]


def _described(method: str, path: str, operation: Operation, schemas: Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _operation_id(method, path),
        "parameters": [*_path_parameters(path), *operation.query],
        "responses": {"200": _answer(operation, schemas)},
    }
    error = {JSON: {"schema": schemas[answers.Error, "serialization"]}}
    for status in sorted({*operation.errors, *(() if level_of(path) == "public" else FOR_KEYS)}):
        described["responses"][str(status)] = {"description": MEANINGS[status], "content": error}
    if operation.request is not None:
        content = {JSON: {"schema": schemas[operation.request, "validation"]}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _answer(operation: Operation, schemas: Schemas) -> dict[str, Any]:
    if isinstance(operation.answer, str):
        kind = {"type": "object"} if operation.answer == JSON else {"type": "string"}
        return {"description": operation.summary, "content": {operation.answer: {"schema": kind}}}
    content: dict[str, Any] = {JSON: {"schema": schemas[operation.answer, "serialization"]}}
    if operation.may_stream:
        content[EVENTS] = {"schema": EVENT}
    answer: dict[str, Any] = {"description": operation.summary, "content": content}
    if operation.links_to:
        answer["links"] = {
            name: {"operationId": name, "parameters": {operation.links_to: "$response.body#/id"}}
            for name in _operations_with(operation.links_to)
        }
    return answer


def _operations_with(parameter: str) -> Iterator[str]:
    for method, path in OPERATIONS:
        if f"{{{parameter}}}" in path:
            yield _operation_id(method, path)


def _path_parameters(path: str) -> Iterator[dict[str, Any]]:
    for name in (part[1:-1] for part in path.split("/") if part.startswith("{")):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _operation_id(method: str, path: str) -> str:
    words = path.translate(str.maketrans("/_.{}", "     ")).split()
    return method.lower() + "".join(word.title() for word in words)


def add_openapi_routes(app: FastAPI) -> None:
    body: list[bytes] = []

    @app.get("/openapi.json")
    async def show_openapi() -> Response:
        if not body:
            body.append(json.dumps(document(with_keys=app.state.guard.has_limits)).encode())
        return Response(body[0], media_type=JSON)
