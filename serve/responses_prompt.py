"""From the items of a conversation to a chat request that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinycluster.cluster.driver import Engine
from tinycluster.engine.errors import ContextLengthError, RequestError
from tinycluster.serve.choices import Choices
from tinycluster.serve.generation_routes import rendered_prompt, submit_request
from tinycluster.serve.protocol import ChatRequest, parse
from tinycluster.serve.responses_fields import ResponsesRequest, chat_body, renamed
from tinycluster.serve.responses_store import Item

MAX_CONTEXT_CHARS = 2**23
"""A conversation grows with every response that continues it; this is twice as long as one body may be."""


async def submit_response(
    engine: Engine, asked: ResponsesRequest, body: Mapping[str, Any], context: Sequence[Item], client: str
) -> Choices:
    """The one choice that answers the context. RequestError under the names of /v1/responses, or as engine.submit."""
    if sum(len(str(item)) for item in context) > MAX_CONTEXT_CHARS:
        raise ContextLengthError(f"The conversation is longer than {MAX_CONTEXT_CHARS} characters", "input")
    try:
        chat, prompt = await _chat(engine, asked, body, context)
        return await submit_request(client, chat, engine, [prompt])
    except RequestError as error:
        raise renamed(error) from None


async def _chat(
    engine: Engine, asked: ResponsesRequest, body: Mapping[str, Any], context: Sequence[Item]
) -> tuple[ChatRequest, Sequence[int]]:
    """The chat request and its prompt; with truncation "auto" without as many of the oldest turns as do not fit."""

    async def of(items: Sequence[Item]) -> tuple[ChatRequest, Sequence[int]]:
        chat = parse(ChatRequest, chat_body(asked, body, items))
        return chat, await rendered_prompt(engine, chat)

    chat, prompt = await of(context)
    room = engine.max_model_len - (asked.max_output_tokens or 1)
    if asked.truncation != "auto" or len(prompt) <= room:
        return chat, prompt
    shorter = _shortened(context)
    first, last = 0, len(shorter) - 1
    while first < last:
        middle = (first + last) // 2
        _, prompt = await of(shorter[middle])
        first, last = (first, middle) if len(prompt) <= room else (middle + 1, last)
    return await of(shorter[first]) if shorter else (chat, prompt)


def _shortened(context: Sequence[Item]) -> list[Sequence[Item]]:
    """The context without its first turn, its first two turns and so on; a turn begins with a user's message."""
    num_system = next((i for i, item in enumerate(context) if item.get("role") not in ("system", "developer")), 0)
    turns = [i for i, item in enumerate(context) if item["type"] == "message" and item["role"] == "user"]
    return [[*context[:num_system], *context[start:]] for start in turns[1:]]
