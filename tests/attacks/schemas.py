"""The bodies of every route, and values that their schemas do not take, generated from the schemas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
from pydantic import BaseModel

from tinycluster.serve.conversation_fields import CreateConversation, CreateItems, UpdateConversation
from tinycluster.serve.new_key import NewKey
from tinycluster.serve.protocol import ChatRequest, CompletionRequest
from tinycluster.serve.responses_fields import ResponsesRequest
from tinycluster.serve.sessions_fields import ChatTurn, Fork, Import
from tinycluster.serve.tokenize import DetokenizeRequest, TokenizeRequest

HELLO = [{"role": "user", "content": "hello"}]
BODIES: Mapping[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "/v1/chat/completions": (ChatRequest, {"messages": HELLO, "max_tokens": 2}),
    "/v1/completions": (CompletionRequest, {"prompt": "good", "max_tokens": 2}),
    "/v1/responses": (ResponsesRequest, {"input": "good", "max_output_tokens": 2}),
    "/v1/conversations": (CreateConversation, {"items": HELLO}),
    "/v1/conversations/absent": (UpdateConversation, {"metadata": {"a": "b"}}),
    "/v1/conversations/absent/items": (CreateItems, {"items": HELLO}),
    "/api/chat": (ChatTurn, {"input": "good", "max_tokens": 2}),
    "/api/sessions/absent/fork": (Fork, {}),
    "/api/sessions/import": (
        Import,
        {"document": {"format": "tinycluster.sessions", "version": 1, "sessions": [{"title": "good"}]}},
    ),
    "/api/keys": (NewKey, {"name": "good"}),
    "/tokenize": (TokenizeRequest, {"prompt": "good"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [65]}),
}
"""The model of each route's body, and a body that is right."""
STATUSES = {"/api/keys": 403, **{path: 404 for path in BODIES if "absent" in path}}
"""What a right body is answered with, where that is not 200: without keys none are made over HTTP, and a path may lead
nowhere."""

# One value of each JSON type, in the schemas' words; an integer is a number too.
EXAMPLES: Mapping[str, tuple[Any, ...]] = {
    "boolean": (True, False),
    "integer": (7,),
    "number": (0.5,),
    "string": ("text", ""),
    "array": ([[]], [None], [{}]),
    "object": ({"a": 1}, {}),
}


def wrong_values(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """(field, value) pairs that the schema of the field does not take."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    for name, field in schema["properties"].items():
        # What one alternative does not take, another may.
        whole = jsonschema.Draft202012Validator({**field, "$defs": definitions})
        yield from ((name, value) for value in _wrong(field, definitions) if not whole.is_valid(value))


def _wrong(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Any]:
    alternatives = [_resolved(each, definitions) for each in schema.get("anyOf", [schema])]
    types = {each.get("type") for each in alternatives}
    if None in types:  # anything: its validator decides
        return
    accepted = types | ({"integer"} if "number" in types else set())
    for kind, examples in EXAMPLES.items():
        if kind not in accepted:
            yield from examples
    for each in alternatives:
        yield from _out_of_bounds(each)
        if each.get("type") == "array" and "items" in each:
            yield from ([wrong] for wrong in _wrong(each["items"], definitions))
        if each.get("type") == "object":
            yield from _wrong_members(each, definitions)


def _wrong_members(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Any]:
    """Objects with one wrong member; the others are left out where they may be."""
    for name, member in schema.get("properties", {}).items():
        yield from ({name: wrong} for wrong in _wrong(member, definitions))


def _out_of_bounds(schema: Mapping[str, Any]) -> Iterator[Any]:
    if "minimum" in schema:
        yield schema["minimum"] - 1
        yield -(10**400)
    if "exclusiveMinimum" in schema:
        yield schema["exclusiveMinimum"]
    if "maximum" in schema:
        yield schema["maximum"] + 1
        yield 10**400
    if "exclusiveMaximum" in schema:
        yield schema["exclusiveMaximum"]
    if "maxLength" in schema:
        yield "x" * (schema["maxLength"] + 1)
    if schema.get("minLength"):
        yield ""
    if "enum" in schema:
        yield "no such choice"


def _resolved(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    return schema if reference is None else definitions[reference.rpartition("/")[2]]
