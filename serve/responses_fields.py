"""The request of /v1/responses and what it means as a request of /v1/chat/completions.

Everything that chooses tokens is the chat request's: this file only translates. Parts of OpenAI's API that this server
cannot do are refused by name: built-in tools, images and files, reasoning effort and stored prompts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tinycluster.engine.errors import RequestError
from tinycluster.serve.fields import Fields
from tinycluster.serve.responses_items import MAX_ID_CHARS, Input, messages_of, validated_items
from tinycluster.serve.sampling_fields import NumLogprobs

MAX_TOKENS = 2**31 - 1
PASSED_ON = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("logit_bias", "min_tokens", "bad_words", "allowed_token_ids", "stop", "stop_token_ids", "ignore_eos"),
    *(
        "include_stop_str_in_output",
        "skip_special_tokens",
        "structured_outputs",
        "priority",
        "cache_salt",
        "timeout",
        "session_id",
        "user",
    ),
)
"""Fields that mean the same in a chat request."""
_RENAMED = {
    "input": r"messages\b.*",
    "max_output_tokens": r"max_(?:completion_)?tokens\b",
    "text.format": r"response_format(?:\.json_schema)?\b",
    "tool_choice": r"tool_choice\b.*",
    r"tools\1": r"tools(\[\d+\])\.function\b",
}
"""Names of this API by patterns of those of the chat's."""


class FunctionTool(Fields):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        return {"type": "function", "function": self.model_dump(exclude={"type"}, exclude_none=True)}


class TextFormat(Fields):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    json_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        if self.type != "json_schema":
            return {"type": self.type}
        return {"type": self.type, "json_schema": self._described()}

    def as_answered(self) -> dict[str, Any]:
        return {"type": self.type} if self.type != "json_schema" else {"type": self.type, **self._described()}

    def _described(self) -> dict[str, Any]:
        if self.name is None or self.json_schema is None:
            missing = "text.format.name" if self.name is None else "text.format.schema"
            raise RequestError(f"{missing} is required", missing)
        described = {"name": self.name, "schema": self.json_schema}
        described |= {} if self.description is None else {"description": self.description}
        return described | ({} if self.strict is None else {"strict": self.strict})


class TextOptions(Fields):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class NamedTool(Fields):
    type: Literal["function"]
    name: str


def _choice(value: Any) -> Any:
    if value in ("none", "auto", "required"):
        return value
    if isinstance(value, dict) and value.get("type") == "function" and isinstance(value.get("name"), str):
        return {"type": "function", "function": {"name": value["name"]}}
    raise ValueError("must be none, auto, required or of the form {'type': 'function', 'name': '…'}")


ToolChoice = Annotated[
    Any, BeforeValidator(_choice, json_schema_input_type=Literal["none", "auto", "required"] | NamedTool)
]
"""As a chat request says it."""
Label = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[Annotated[str, Field(max_length=64)], Label], Field(max_length=16)]


class ConversationReference(Fields):
    id: str


def _conversation_id(value: Any) -> Any:
    return value["id"] if isinstance(value, dict) and "id" in value else value


ConversationId = Annotated[str, BeforeValidator(_conversation_id, json_schema_input_type=str | ConversationReference)]


class ResponsesRequest(Fields):
    """`store` is true by default. The sampling fields of a chat request are taken too."""

    model: str | None = None
    input: Input
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    text: TextOptions | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    conversation: ConversationId | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[str] | None = None
    top_logprobs: NumLogprobs | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    service_tier: str | None = None
    user: str | None = None

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    @property
    def has_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())


_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "context_management": (),
    "prompt": (),
    "reasoning": ({}, {"effort": None}, {"effort": "none"}, {"effort": None, "summary": None}),
}
LOGPROBS = "message.output_text.logprobs"
"""The only member of `include` that this server has anything to show for."""


def parse_responses(body: Mapping[str, Any]) -> ResponsesRequest:
    """The checked request. RequestError with the field's path in `param`."""
    for name, neutral in _NEUTRAL.items():
        if (value := body.get(name)) is not None and value not in neutral:
            raise RequestError(f"{name} is not supported", name)
    asked = validated_items(ResponsesRequest, body)
    if asked.top_logprobs and not asked.has_logprobs:
        raise RequestError(f"top_logprobs is allowed only where include has {LOGPROBS}", "top_logprobs")
    if asked.background and not asked.is_stored:
        raise RequestError("background is allowed only with store: true", "background")
    if asked.conversation is not None and asked.previous_response_id is not None:
        raise RequestError("conversation and previous_response_id cannot be used together", "conversation")
    if asked.conversation is not None and not asked.is_stored:
        raise RequestError("conversation is allowed only with store: true: it stores the answer", "conversation")
    if asked.background and asked.stream:
        raise RequestError("background is not available with stream: true", "background")
    return asked


def chat_body(asked: ResponsesRequest, body: Mapping[str, Any], context: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The body of the chat request that answers `context`, all input items of the conversation."""
    chat: dict[str, Any] = {name: body[name] for name in PASSED_ON if body.get(name) is not None}
    chat["messages"] = messages_of(asked.instructions, context)
    if (continued := asked.conversation or asked.previous_response_id) is not None:
        chat.setdefault("session_id", continued[:MAX_ID_CHARS])
    chat["max_completion_tokens"] = asked.max_output_tokens
    if asked.has_logprobs:
        chat |= {"logprobs": True, "top_logprobs": asked.top_logprobs}
    if asked.text is not None and asked.text.format is not None:
        chat["response_format"] = asked.text.format.for_chat()
    if asked.tools:
        chat["tools"] = [tool.for_chat() for tool in asked.tools]
        chat["parallel_tool_calls"] = asked.parallel_tool_calls
    chat["tool_choice"] = asked.tool_choice
    return {name: value for name, value in chat.items() if value is not None}


def renamed(error: RequestError) -> RequestError:
    """A mistake that the chat request found, under the name that the field has here."""
    if error.param is None:
        return error
    name = error.param
    for here, there in _RENAMED.items():
        name = re.sub(rf"^{there}", here, name)
    return type(error)(error.message.replace(error.param, name), name, error.code)
