"""Turns pydantic's findings into one sentence with the field, the value and the rule."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ValidationError

# Pydantic's words, and how people say it who have not read its manual.
_PLAIN = {
    "Value error, ": "",
    "Input should": "must",
    "String should": "must",
    "'": '"',
    "must be a valid tuple": "must be a list",
    "must be a valid string": "must be text",
    "must be a valid integer": "must be a whole number",
    ", unable to parse string as an integer": "",
    ", got a number with a fractional part": "",
}


def sentence_of(error: ValidationError, root: type[BaseModel]) -> str:
    """The first finding: unknown keys before wrong values, because a misspelt key also leaves its field missing."""
    finding = min(error.errors(), key=lambda finding: finding["type"] != "extra_forbidden")
    location = finding["loc"]
    field = ".".join(str(part) for part in location)
    if finding["type"] == "extra_forbidden":
        return unknown_key(str(location[-1]), field, keys_at(location[:-1], root))
    if finding["type"] == "missing":
        return f"{field} is missing"
    if finding["type"] == "model_type":
        return f"{field} must be a mapping, got {finding['input']!r}"
    rule = finding["msg"]
    for words, plain in _PLAIN.items():
        rule = rule.replace(words, plain)
    if rule.startswith("must"):
        return f"{field} {rule}, got {finding['input']!r}"
    return f"{field}: {rule}" if field else rule


def unknown_key(key: str, field: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)
    return f"{field} is not a setting; the nearest is {nearest[0]}" if nearest else f"{field} is not a setting"


def keys_at(location: Sequence[int | str], root: type[BaseModel]) -> list[str]:
    """The keys that the section at a location may hold, as they are written in the file."""
    section = root
    for part in location:
        if isinstance(part, str):
            section = _section_type(section.model_fields[part].annotation)
    return [field.alias or name for name, field in section.model_fields.items()]


def _section_type(annotation: object) -> type[BaseModel]:
    """MeshSettings of `MeshSettings` or of `tuple[MeshSettings, ...]`."""
    candidates = [annotation, *typing.get_args(annotation)]
    return next(kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel))
