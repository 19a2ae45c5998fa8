"""The request bodies of /v1/chat/completions and /v1/completions.

Field names and defaults are OpenAI's; those that OpenAI does not have are vLLM's, and `timeout` is ours. A known field
that would change the answer and is not supported is refused (`unsupported.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BeforeValidator, Field, WithJsonSchema

from tinycluster.engine.errors import RequestError
from tinycluster.engine.grammar import GrammarSpec
from tinycluster.engine.request import Grammar, RequestOptions
from tinycluster.engine.tool_definitions import ToolUse, read_tool_use
from tinycluster.engine.tool_format import ToolFormat
from tinycluster.engine.tool_grammar import tool_grammar
from tinycluster.serve.fields import Fields, TokenId, validated
from tinycluster.serve.identity import salt_of
from tinycluster.serve.messages import Messages
from tinycluster.serve.sampling_fields import MAX_CHOICES, MAX_TOKENS, NumLogprobs, SamplingFields
from tinycluster.serve.structured_output import read_grammar
from tinycluster.serve.unsupported import CHAT_NEUTRAL, COMPLETION_NEUTRAL, refuse_unsupported

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions; a chat answer may fill the context."""
MAX_SALT_CHARS = 1024
MAX_TIMEOUT_S = 86_400.0
MAX_ID_CHARS = 512
TOOL_CHOICE = {
    "anyOf": [
        {"type": "string", "enum": ["none", "auto", "required"]},
        {
            "type": "object",
            "properties": {
                "type": {"const": "function"},
                "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
            },
            "required": ["type", "function"],
        },
        {"type": "null"},
    ]
}


class StreamOptions(Fields):
    """`continuous_usage_stats` puts the usage so far into every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Rules(NamedTuple):
    """A grammar to be compiled, and the field that is at fault where it cannot be."""

    spec: GrammarSpec
    param: str


class GenerationFields(SamplingFields):
    """What both routes share. `user`, `metadata`, `store` and `service_tier` are accepted and change nothing."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    return_token_ids: bool | None = None
    return_progress: bool | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARS)] | None = None
    timeout: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S)] | None = None
    session_id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None

    @property
    def is_prompt_only(self) -> bool:
        """Whether no answer is shown."""
        return False

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def has_continuous_usage(self) -> bool:
        return bool(self.include_usage and self.stream_options and self.stream_options.continuous_usage_stats)

    def num_shown_logprobs(self) -> int | None:
        """As `num_logprobs`, without those that only choose the best candidate."""
        return self.num_logprobs()

    @cached_property
    def text_rules(self) -> GrammarSpec | None:
        """The rules that response_format or structured_outputs give the answer's text. RequestError."""
        return read_grammar(self.response_format, self.structured_outputs)

    def rules(self, tool_format: ToolFormat) -> Rules | None:
        """What the answer must look like, for a model that calls tools in this form."""
        if self.text_rules is None:
            return None
        is_format = self.response_format and not self.structured_outputs
        return Rules(self.text_rules, "response_format" if is_format else "structured_outputs")

    def options(self, client: str, grammar: Grammar | None) -> RequestOptions:
        return RequestOptions(
            priority=self.priority or 0,
            client=client,
            cache_salt=salt_of(client, self.cache_salt),
            timeout_s=self.timeout,
            grammar=grammar,
            report_progress=bool(self.return_progress and self.stream),
            session_id=self.session_id or "",
        )

    def check(self) -> None:
        """RequestError where fields that are right alone contradict each other."""
        self.check_sampling_fields()
        if self.truncate_prompt_tokens == 0:
            raise RequestError("truncate_prompt_tokens must be at least 1, or -1, got 0", "truncate_prompt_tokens")
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options is allowed only with stream: true", "stream_options")
        self.text_rules  # noqa: B018 (reading it is the check)
        if self.prompt_logprobs is not None and self.stream:
            raise RequestError("prompt_logprobs is not available with stream: true", "prompt_logprobs")


class ChatRequest(GenerationFields):
    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Annotated[Any, WithJsonSchema(TOOL_CHOICE)] = None
    parallel_tool_calls: bool | None = None

    @cached_property
    def tool_use(self) -> ToolUse | None:
        """The tools that the model is told of and may call. RequestError."""
        return read_tool_use(self.tools, self.tool_choice, self.parallel_tool_calls)

    @property
    def parses_calls(self) -> bool:
        """Whether calls are looked for in the answer: not in one of which the rules of its text leave no room."""
        return self.tool_use is not None and (self.tool_use.choice != "auto" or self.text_rules is None)

    @property
    def skips_special_tokens(self) -> bool:
        # Some models mark their calls with control tokens.
        return not self.parses_calls if self.skip_special_tokens is None else self.skip_special_tokens

    def rules(self, tool_format: ToolFormat) -> Rules | None:
        """Calls that must be made come before the rules for text."""
        use = self.tool_use
        spec = None if use is None else tool_grammar(tool_format, use.tools, use.choice, use.is_parallel)
        return super().rules(tool_format) if spec is None else Rules(spec, "tools")

    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def has_generation_prompt(self) -> bool:
        """Whether the prompt ends with the begin of an answer; one that goes on in the last message does not."""
        return not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt

    def check(self) -> None:
        super().check()
        self.tool_use  # noqa: B018 (reading it is the check)
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs is allowed only with logprobs: true", "top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            message = "continue_final_message and add_generation_prompt exclude each other"
            raise RequestError(message, "continue_final_message")


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


TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Several = Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
Prompts = Annotated[Any, BeforeValidator(_prompts, json_schema_input_type=str | TokenIds | Several)]


class CompletionRequest(GenerationFields):
    """With `echo`, `max_tokens` may be 0: the answer is the prompt alone, and its log-probabilities if asked for."""

    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    logprobs: NumLogprobs | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None

    @property
    def is_prompt_only(self) -> bool:
        return self.max_tokens == 0

    @property
    def num_candidates(self) -> int:
        return self.num_choices if self.best_of is None else self.best_of

    def limit(self) -> int | None:
        # A prompt is computed to sample the token after it, so at least one is.
        return COMPLETION_MAX_TOKENS if self.max_tokens is None else max(self.max_tokens, 1)

    def num_logprobs(self) -> int | None:
        chooses = self.num_candidates > self.num_choices
        return 0 if chooses and self.logprobs is None else self.logprobs

    def num_shown_logprobs(self) -> int | None:
        return self.logprobs

    def num_prompt_logprobs(self) -> int | None:
        asked = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((number for number in asked if number is not None), default=None)

    def check(self) -> None:
        super().check()
        if self.is_prompt_only and not self.echo:
            raise RequestError("max_tokens must be at least 1, or echo true, got 0", "max_tokens")
        if self.num_candidates < self.num_choices:
            raise RequestError(f"best_of must not be less than n, {self.num_choices}, got {self.best_of}", "best_of")
        if self.num_candidates > self.num_choices and self.stream:
            raise RequestError("best_of is not available with stream: true", "best_of")
        if len(self.prompt) * self.num_candidates > MAX_CHOICES:
            raise RequestError(f"prompt × n must not exceed {MAX_CHOICES} generations", "n")


Body = TypeVar("Body", ChatRequest, CompletionRequest)


def parse(kind: type[Body], body: Mapping[str, Any]) -> Body:
    """The checked request. RequestError with the field's path in `param`."""
    refuse_unsupported(body, CHAT_NEUTRAL if kind is ChatRequest else COMPLETION_NEUTRAL)
    request = validated(kind, body)
    request.check()
    return request
