"""The messages of a conversation, as OpenAI's clients send them and as chat templates read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from tinycluster.serve.fields import Fields

MAX_NAME_CHARS = 64


class TextPart(Fields):
    type: Literal["text"]
    text: str


class RefusalPart(Fields):
    type: Literal["refusal"]
    refusal: str


def _joined(content: Any) -> Any:
    """Text parts become one string, a line each."""
    if not isinstance(content, list):
        return content
    texts = [_text_of(part) for part in content]
    return "\n".join(texts)


def _text_of(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in ("text", "refusal") and isinstance(text := part.get(kind), str):
        return text
    if isinstance(kind, str) and kind not in ("text", "refusal"):
        raise ValueError(f"must consist of text: a part of type {json.dumps(kind[:40])} is unsupported")
    raise ValueError("must be a string or parts of the form {'type': 'text', 'text': '…'}")


Content = Annotated[str, BeforeValidator(_joined, json_schema_input_type=str | list[TextPart | RefusalPart])]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]


class CalledFunction(Fields):
    name: Name
    arguments: str


class ToolCall(Fields):
    """A call that an earlier answer asked for. Its arguments are as a model wrote them, perhaps malformed."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"]
    function: CalledFunction


class Message(Fields):
    # What is checked by the role comes after it, and the content last.
    role: Literal["system", "developer", "user", "assistant", "tool"]
    name: Name | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Annotated[str | None, Field(min_length=1, validate_default=True)] = None
    content: Annotated[Content | None, Field(validate_default=True)] = None

    @field_validator("tool_calls")
    @classmethod
    def _are_an_assistants(cls, value: list[ToolCall] | None, info: ValidationInfo) -> list[ToolCall] | None:
        if value and info.data.get("role") != "assistant":
            raise ValueError("must come from an assistant")
        return value

    @field_validator("tool_call_id")
    @classmethod
    def _is_in_a_tools_message(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("role") == "tool":
            raise ValueError("is required in a message of a tool")
        return value

    @field_validator("content")
    @classmethod
    def _is_there(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and not info.data.get("tool_calls") and info.data.get("refusal") is None:
            raise ValueError("is required")
        return value

    @property
    def text(self) -> str | None:
        return self.refusal if self.content is None else self.content

    def as_template_knows(self) -> dict[str, Any]:
        """OpenAI's newer role `developer` is the `system` of templates."""
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": self.text or ""}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


Messages = Annotated[list[Message], Field(min_length=1)]


def template_messages(messages: Sequence[Message]) -> list[Mapping[str, Any]]:
    return [message.as_template_knows() for message in messages]
