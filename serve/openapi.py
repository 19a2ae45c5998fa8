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
from tinycluster.serve.protocol import ChatRequest, CompletionRequest
from tinycluster.serve.responses_fields import ResponsesRequest
from tinycluster.serve.tokenize import DetokenizeRequest, TokenizeRequest

JSON = "application/json"
EVENTS = "text/event-stream"
EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
"""A server-sent event; its data is JSON, and `[DONE]` in the last."""
MEANINGS = {
    400: "A field is wrong; `param` names it",
    403: "The Origin is a web page of a stranger",
    404: "There is no such model or object",
    408: "The body did not come in time, or the request's own timeout is over",
    413: "The body is too large",
    415: "The body is not plain JSON",
    421: "The Host is not a name of this server",
    429: "The queue is full; Retry-After says when to come again",
    500: "The server failed",
    503: "The model is not available; Retry-After says when to come again",
}
ON_READ = (400, 403, 421, 500, 503)
ON_FIND = (400, 403, 404, 421, 500, 503)
ON_SEND = (400, 403, 404, 408, 413, 415, 421, 500, 503)
ON_GENERATE = tuple(MEANINGS)

PAGE: Sequence[Mapping[str, Any]] = (
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}},
    {"name": "order", "in": "query", "schema": {"type": "string", "enum": ["asc", "desc"], "default": "desc"}},
    {"name": "after", "in": "query", "schema": {"type": "string"}, "description": "The id of the item before the page"},
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
    ("GET", "/openapi.json"): Operation("This document", JSON, ON_READ),
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
    ("POST", "/tokenize"): Operation("The tokens of a text", answers.Tokens, ON_SEND, TokenizeRequest),
    ("POST", "/detokenize"): Operation("The text of tokens", answers.Detokenized, ON_SEND, DetokenizeRequest),
}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document of all routes."""
    schemas, components = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _described(method, path, operation, schemas)
    info = {"title": "tinycluster", "version": tinycluster.__version__}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": components}}


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
    for status in operation.errors:
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
            body.append(json.dumps(document()).encode())
        return Response(body[0], media_type=JSON)
