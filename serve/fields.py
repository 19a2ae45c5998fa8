"""How a request's fields are checked: exactly JSON's types, no conversion; the first mistake becomes a sentence.

A null stands for the default in every field. A field that nobody knows is ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinycluster.engine.errors import RequestError


class Fields(BaseModel):
    """The base of every object that a client may send."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


TokenId = Annotated[int, Field(ge=0, lt=2**31)]

Model = TypeVar("Model", bound=BaseModel)


def validated(kind: type[Model], body: Mapping[str, Any]) -> Model:
    """The body as an object of this kind. RequestError with the path of the first wrong field in `param`."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _first_mistake(error) from None


_RULES = {
    "model_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "bool_type": "must be a boolean",
    "float_type": "must be a number",
}


def _first_mistake(error: ValidationError) -> RequestError:
    mistake = error.errors(include_url=False, include_context=False)[0]
    param = _path(mistake["loc"])
    if mistake["type"] == "missing":
        return RequestError(f"{param} is required", param=param)
    rule = _RULES.get(mistake["type"]) or _rule(mistake["msg"])
    return RequestError(f"{param} {rule}, got {_shown(mistake['input'])}", param=param)


def _rule(message: str) -> str:
    rule = message.removeprefix("Value error, ").partition(" after validation")[0]
    return re.sub(r"^\w+ should", "must", rule)


def _path(location: Sequence[str | int]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def or_default(value: Any, default: Any) -> Any:
    return default if value is None else value
