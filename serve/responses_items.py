"""Items: what a conversation of /v1/responses consists of. Messages, calls of functions and their results.

A client may send an item in several forms; from here on it has the one form in which the API lists it.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Discriminator, Field, Tag

from tinycluster.engine.errors import RequestError
from tinycluster.serve.fields import Fields, validated

TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
MAX_ID_CHARS = 512
MAX_ITEMS = 2**14


class TextPart(Fields):
    type: Literal["input_text", "output_text", "text"]
    text: str


class RefusalPart(Fields):
    type: Literal["refusal"]
    refusal: str


PARTS_RULE = "must be a string or parts of the form {'type': 'input_text', 'text': '…'}"


def _texts_of(content: Any) -> list[str]:
    """The texts of the parts, at least one."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise ValueError(PARTS_RULE)
    return [_text_of(part) for part in content] or [""]


def _text_of(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind not in TEXT_PARTS:
        raise ValueError(f"must consist of text: a part of type {json.dumps(kind[:40])} is unsupported")
    text = part.get(TEXT_PARTS[kind]) if isinstance(kind, str) else None
    if not isinstance(text, str):
        raise ValueError(PARTS_RULE)
    return text


Content = Annotated[Any, BeforeValidator(_texts_of, json_schema_input_type=str | list[TextPart | RefusalPart])]
"""A list of texts."""
Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]


def new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


class MessageItem(Fields):
    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Content

    def as_listed(self) -> dict[str, Any]:
        return message_item(self.role, self.content)


class FunctionCallItem(Fields):
    type: Literal["function_call"]
    call_id: Id
    name: Id
    arguments: str

    def as_listed(self) -> dict[str, Any]:
        return {**self.model_dump(), "id": new_id("fc"), "status": "completed"}


class FunctionOutputItem(Fields):
    type: Literal["function_call_output"]
    call_id: Id
    output: Content

    def as_listed(self) -> dict[str, Any]:
        # Text parts become one string, a line each.
        output = "\n".join(self.output)
        return {**self.model_dump(), "output": output, "id": new_id("fco"), "status": "completed"}


def message_item(role: str, texts: Sequence[str], status: str = "completed", item_id: str = "") -> dict[str, Any]:
    part = text_part if role == "assistant" else input_part
    content = [part(text) for text in texts]
    return {"id": item_id or new_id("msg"), "type": "message", "role": role, "status": status, "content": content}


def input_part(text: str) -> dict[str, Any]:
    return {"type": "input_text", "text": text}


def text_part(text: str) -> dict[str, Any]:
    """What the model says."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _kind_of(item: Any) -> str | None:
    kind = (item.get("type") or "message") if isinstance(item, dict) else None
    return kind if kind in ("message", "function_call", "function_call_output") else None


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")],
    Discriminator(
        _kind_of,
        custom_error_type="input_item",
        custom_error_message="must be an object of type message, function_call or function_call_output",
    ),
]


def _items(value: Any) -> Any:
    if isinstance(value, list) and len(value) > MAX_ITEMS:
        raise ValueError(f"must have at most {MAX_ITEMS} items")
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


Items = Annotated[list[InputItem], Field(min_length=1)]
Input = Annotated[Items, BeforeValidator(_items, json_schema_input_type=str | Items)]


_KIND = re.compile(r"^((?:input|items)\[\d+\])\.(?:message|function_call_output|function_call)(?=[.\[ ])")
"""The kind of an item is part of the validator's path, but not of the client's."""
Checked = TypeVar("Checked", bound=Fields)


def validated_items(kind: type[Checked], body: Mapping[str, Any]) -> Checked:
    """A body with items. RequestError with the field's path in `param`."""
    try:
        return validated(kind, body)
    except RequestError as error:
        message, param = (_KIND.sub(r"\1", text) for text in (error.message, error.param or ""))
        raise RequestError(message, param) from None


def messages_of(instructions: str | None, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages of a chat. Instructions and the system messages that the conversation begins with become one.

    RequestError for the result of a call that no item before it asks for.
    """
    messages: list[dict[str, Any]] = []
    system = [] if instructions is None else [instructions]
    call_ids: set[str] = set()
    for item in items:
        if item["type"] == "function_call":
            call_ids.add(item["call_id"])
            _add_call(messages, item)
        elif item["type"] == "function_call_output":
            if item["call_id"] not in call_ids:
                raise RequestError(f"input has no function_call with call_id {item['call_id'][:64]!r}", "input")
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
        elif item["role"] in ("system", "developer") and not messages:
            system.append(text_of(item))
        else:
            messages.append({"role": item["role"], "content": text_of(item)})
    return ([{"role": "system", "content": "\n\n".join(system)}] if system else []) + messages


def _add_call(messages: list[dict[str, Any]], item: Mapping[str, Any]) -> None:
    """Calls that follow one another, or what the assistant said before them, are one message."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    function = {"name": item["name"], "arguments": item["arguments"]}
    messages[-1].setdefault("tool_calls", []).append({"id": item["call_id"], "type": "function", "function": function})


def text_of(item: Mapping[str, Any]) -> str:
    return "\n".join(_texts(item))


def _texts(item: Mapping[str, Any]) -> Iterator[str]:
    for part in item["content"]:
        yield part["text"]
