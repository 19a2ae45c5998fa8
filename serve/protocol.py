"""The request bodies of /v1/chat/completions and /v1/completions, checked without any conversion of types.

Field names and defaults are OpenAI's; `top_k`, `min_p`, `stop_token_ids`, `ignore_eos` and `include_stop_str_in_output`
are vLLM's. A null stands for the default. A field that nobody knows is ignored; a known field that would change the
answer and is not supported is refused (`unsupported.py`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tinycluster.engine.errors import RequestError
from tinycluster.engine.request import SamplingParams
from tinycluster.serve.unsupported import refuse_unsupported

MAX_CHOICES = 128
"""Largest number of generations of one HTTP request: prompts × n."""
MAX_STOP_CHARS = 1024
MAX_TOKENS = 2**31 - 1
COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions; a chat answer may fill the context."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _joined(content: Any) -> Any:
    """Text parts become one string, a line each."""
    if not isinstance(content, list):
        return content
    parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
    texts = [text for part in parts if isinstance(text := part.get("text"), str)]
    if len(texts) != len(content):
        raise ValueError("must be a string or parts of the form {'type': 'text', 'text': '…'}")
    return "\n".join(texts)


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Message(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined)]


class StreamOptions(_Body):
    include_usage: bool | None = None


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class _Sampling(_Body):
    """What both routes share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[Stop], Field(max_length=4), BeforeValidator(_listed)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, choice: int) -> SamplingParams:
        """The parameters of the choice with this number; its seed is `choice_seed` of the request's."""
        defaults = SamplingParams()
        return SamplingParams(
            temperature=_or(self.temperature, defaults.temperature),
            top_k=min(max(_or(self.top_k, 0), 0), 2**31 - 1),
            top_p=_or(self.top_p, defaults.top_p),
            min_p=_or(self.min_p, defaults.min_p),
            seed=None if self.seed is None else choice_seed(self.seed, choice),
            max_tokens=self.limit(),
            stop=tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            include_stop_str_in_output=bool(self.include_stop_str_in_output),
        )

    def limit(self) -> int | None:
        return self.max_tokens


class ChatRequest(_Sampling):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None

    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def template_messages(self) -> list[dict[str, str]]:
        """Messages as chat templates know them: OpenAI's newer role `developer` is their `system`."""
        roles = {"developer": "system"}
        return [{"role": roles.get(m.role, m.role), "content": m.content} for m in self.messages]


Prompt = str | tuple[int, ...]


def _prompts(value: Any) -> tuple[Prompt, ...]:
    """One or several prompts, each a text or token ids."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists")
    if all(isinstance(item, str) for item in value):
        return tuple(value)
    if all(isinstance(item, list) for item in value):
        return tuple(_token_ids(item) for item in value)
    return (_token_ids(value),)


def _token_ids(value: list[Any]) -> tuple[int, ...]:
    if not value or not all(type(item) is int and 0 <= item < 2**31 for item in value):
        raise ValueError("must hold at least one token id in a list, and only non-negative integers")
    return tuple(value)


class CompletionRequest(_Sampling):
    prompt: Annotated[Any, AfterValidator(_prompts)]

    def limit(self) -> int | None:
        return COMPLETION_MAX_TOKENS if self.max_tokens is None else self.max_tokens


def choice_seed(seed: int, choice: int) -> int:
    """The seed of choice number `choice` of a request with this seed: an integer in 0 .. 2**63 - 1.

    Choice 0 has the request's own seed, so that it equals the answer with n = 1; every other has the first eight bytes
    of SHA-256 over "seed:choice". The sign of a negative seed is dropped.
    """
    number = seed if choice == 0 else int.from_bytes(hashlib.sha256(f"{seed}:{choice}".encode()).digest()[:8], "little")
    return number & (2**63 - 1)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


Body = TypeVar("Body", bound=_Sampling)


def parse(kind: type[Body], body: Mapping[str, Any]) -> Body:
    """The checked request. RequestError with the field's path in `param`."""
    refuse_unsupported(body)
    request = validated(kind, body)
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options is allowed only with stream: true", param="stream_options")
    if isinstance(request, CompletionRequest) and len(request.prompt) * request.num_choices > MAX_CHOICES:
        raise RequestError(f"prompt × n must not exceed {MAX_CHOICES} generations", param="n")
    return request


Model = TypeVar("Model", bound=BaseModel)


def validated(kind: type[Model], body: Mapping[str, Any]) -> Model:
    """The body as a model of this kind. RequestError with the path of the first wrong field in `param`."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _first_mistake(error) from None


_RULES = {
    "model_type": "must be an object",
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
