"""The requests of the session API. How tokens are chosen is said and checked as in /v1/chat/completions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, RootModel

from tinycluster.engine.errors import RequestError
from tinycluster.serve.fields import Fields, validated
from tinycluster.serve.protocol import GenerationFields
from tinycluster.serve.sampling_fields import SamplingFields
from tinycluster.serve.unsupported import CHAT_NEUTRAL, refuse_unsupported

MAX_INPUT_CHARS = 2**20
MAX_SYSTEM_CHARS = 2**16
MAX_TITLE_CHARS = 200
MAX_OBJECT_BYTES = 2**16
"""Of settings and the like, as JSON."""
MAX_MODEL_CHARS = 256

Id = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]*$")]
System = Annotated[str, Field(max_length=MAX_SYSTEM_CHARS)]

NEUTRAL = {
    **CHAT_NEUTRAL,
    "messages": (),
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "prompt_logprobs": (),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "stream_options": (),
    "return_token_ids": (False,),
    "truncate_prompt_tokens": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}


class ChatTurn(GenerationFields):
    """POST /api/chat. `stream` is true by default. An explicit null as `parent_id` means: a new first message."""

    input: Annotated[str, Field(min_length=1, max_length=MAX_INPUT_CHARS)] | None = None
    session_id: Id | None = None
    parent_id: Id | None = None
    message_id: Id | None = None
    regenerate: Id | None = None
    system: System | None = None

    @property
    def is_streamed(self) -> bool:
        return self.stream is not False

    @property
    def has_parent(self) -> bool:
        """Whether the request says where its message belongs; else it follows what the session shows last."""
        return "parent_id" in self.model_fields_set

    def num_logprobs(self) -> int | None:
        return None

    def parameters(self) -> dict[str, Any]:
        """What the request says of how tokens are chosen."""
        return self.model_dump(include=set(SamplingFields.model_fields), exclude_none=True)

    def check(self) -> None:
        super().check()
        if (self.input is None) == (self.regenerate is None):
            raise RequestError("input is required, unless regenerate names a message to be answered anew", "input")
        if self.regenerate is not None and self.message_id is not None:
            raise RequestError("message_id is the id of a new message, which regenerate has not", "message_id")
        if self.regenerate is not None and self.parent_id is not None:
            raise RequestError("parent_id is the place of a new message, which regenerate has not", "parent_id")
        if self.session_id is None and (self.regenerate is not None or self.parent_id is not None):
            raise RequestError("session_id is required with regenerate and parent_id", "session_id")


def parse_turn(body: Mapping[str, Any]) -> ChatTurn:
    """RequestError with the field's path in `param`."""
    refuse_unsupported(body, NEUTRAL)
    turn = validated(ChatTurn, body)
    turn.check()
    return turn


def _small(value: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(value)) > MAX_OBJECT_BYTES:
        raise ValueError(f"must be at most {MAX_OBJECT_BYTES} bytes of JSON")
    return value


SmallObject = Annotated[dict[str, Any], AfterValidator(_small)]


class SessionChange(Fields):
    """PATCH of a session. What is left out stays as it is, and so does what is null, but the model."""

    title: Annotated[str, Field(min_length=1, max_length=MAX_TITLE_CHARS)] | None = None
    settings: SmallObject | None = None
    model: Annotated[str, Field(max_length=MAX_MODEL_CHARS)] | None = None
    head_id: Id | None = None


class Fork(Fields):
    """Without `message_id` the branch that is shown is copied, with it the branch up to this message."""

    message_id: Id | None = None


class Import(Fields):
    """What an export gave."""

    document: dict[str, Any]


class PageSettings(RootModel[dict[str, Any]]):
    """Whatever the page of a user wants to find again: at most 64 KiB of JSON."""

    model_config = ConfigDict(strict=True, frozen=True)


def parse_change(body: Mapping[str, Any]) -> SessionChange:
    return validated(SessionChange, body)


def parse_fork(body: Mapping[str, Any]) -> Fork:
    return validated(Fork, body)


def parse_import(body: Mapping[str, Any]) -> Import:
    return validated(Import, body)


def parse_settings(body: Mapping[str, Any]) -> dict[str, Any]:
    if len(json.dumps(body)) > MAX_OBJECT_BYTES:
        raise RequestError(f"The settings must be at most {MAX_OBJECT_BYTES} bytes of JSON")
    return dict(body)
