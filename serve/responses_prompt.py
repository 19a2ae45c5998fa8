"""From the items of a conversation to a chat request that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tinycluster.cluster.driver import Engine
from tinycluster.engine.errors import ContextLengthError, RequestError
from tinycluster.engine.tool_calls import ToolCallParser
from tinycluster.serve.body import PARSE_IN_THREAD_BYTES
from tinycluster.serve.choices import Choices
from tinycluster.serve.generation_routes import call_parser, rendered_prompt, submit_request
from tinycluster.serve.identity import Terms
from tinycluster.serve.protocol import ChatRequest, parse
from tinycluster.serve.responses_fields import ResponsesRequest, chat_body, renamed
from tinycluster.serve.responses_logprobs import MessageLogprobs
from tinycluster.serve.responses_store import Context

MAX_CONTEXT_BYTES = 2**24
"""A conversation grows with every response that continues it; this is four times as long as one body may be."""
MAX_CONTEXT_ITEMS = 2**15


class Submitted(NamedTuple):
    """The one choice that is generated, what finds calls of functions in its text, and its log-probabilities."""

    choices: Choices
    parser: ToolCallParser | None
    logprobs: MessageLogprobs | None


async def submit_response(
    engine: Engine, asked: ResponsesRequest, body: Mapping[str, Any], context: Context, terms: Terms
) -> Submitted:
    """What answers the context. RequestError under the names of /v1/responses, or as engine.submit."""
    check_size(context.num_bytes, len(context.items))
    try:
        chat, prompt = await _Prompts(engine, asked, body, context).fitting()
        parser = call_parser(engine, chat)() if chat.parses_calls else None
        num_top = chat.num_logprobs()
        logprobs = None if num_top is None else MessageLogprobs(engine.tokenizer, num_top)
        chat = chat.model_copy(update={"stream": asked.stream})
        return Submitted(await submit_request(terms, chat, engine, [prompt]), parser, logprobs)
    except RequestError as error:
        raise renamed(error) from None


def check_size(num_bytes: int, num_items: int) -> None:
    """ContextLengthError for a conversation that no response can continue."""
    if num_bytes > MAX_CONTEXT_BYTES or num_items > MAX_CONTEXT_ITEMS:
        limit = f"{MAX_CONTEXT_BYTES} bytes or {MAX_CONTEXT_ITEMS} items"
        raise ContextLengthError(f"The conversation is longer than {limit}", "input")


class _Prompts:
    """The chat requests of a conversation: of the whole, and without its oldest turns."""

    def __init__(self, engine: Engine, asked: ResponsesRequest, body: Mapping[str, Any], context: Context) -> None:
        self._engine, self._asked, self._body, self._context = engine, asked, body, context

    async def fitting(self) -> tuple[ChatRequest, Sequence[int]]:
        """With truncation "auto" without as many turns as do not fit; a turn begins with a user's message."""
        chat, prompt = await self._without_items_before(0)
        room = self._engine.max_model_len - (self._asked.max_output_tokens or 1)
        if self._asked.truncation != "auto" or len(prompt) <= room:
            return chat, prompt
        turns = [i for i, item in enumerate(self._context.items) if item.get("role") == "user"]
        first, last = 1, len(turns) - 1
        if first > last:
            return chat, prompt
        while first < last:
            middle = (first + last) // 2
            _, prompt = await self._without_items_before(turns[middle])
            first, last = (first, middle) if len(prompt) <= room else (middle + 1, last)
        return await self._without_items_before(turns[first])

    async def _without_items_before(self, start: int) -> tuple[ChatRequest, Sequence[int]]:
        """System messages at the begin of the conversation are kept."""
        if self._context.num_bytes < PARSE_IN_THREAD_BYTES:
            chat = self._chat(start)
        else:
            chat = await asyncio.to_thread(self._chat, start)
        return chat, await rendered_prompt(self._engine, chat)

    def _chat(self, start: int) -> ChatRequest:
        items = self._context.items
        num_system = next((i for i, item in enumerate(items) if item.get("role") not in ("system", "developer")), 0)
        kept = items if start == 0 else [*items[:num_system], *items[start:]]
        return parse(ChatRequest, chat_body(self._asked, self._body, kept))
