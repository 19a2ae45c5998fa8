"""Whether an object is exactly of a type of the `openai` package, whose own reading forgives everything."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter


def conforms(kind: Any, value: object) -> None:
    """ValidationError unless every declared field has its type, without any conversion."""
    TypeAdapter(kind).validate_python(value, strict=True)
