"""From a request's text to token ids. Long texts are templated and tokenized off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from tinycluster.cluster.driver import Engine
from tinycluster.engine.errors import RequestError
from tinycluster.engine.sampling_rules import check_token_ids
from tinycluster.serve.messages import Message, template_messages
from tinycluster.serve.protocol import Prompt

IN_THREAD_CHARS = 2048
"""Shorter texts take less time than a hand-over to a thread and back."""
LARGE_CHARS = 2**18
MESSAGE_CHARS = 32
"""What a template writes around a message, about."""

Result = TypeVar("Result")


async def chat_prompt(
    engine: Engine,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """The token ids of a conversation. RequestError where the model's template refuses it."""
    num_chars = sum(len(message.text or "") + MESSAGE_CHARS for message in messages) + (IN_THREAD_CHARS if tools else 0)
    return await run_for_text(
        num_chars,
        lambda: engine.tokenizer.apply_chat_template(
            template_messages(messages),
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
        ),
    )


async def completion_prompts(
    engine: Engine, prompts: Sequence[Prompt], *, add_special_tokens: bool = True
) -> list[Sequence[int]]:
    """Token ids of every prompt. RequestError for an id outside the vocabulary and for a prompt of no tokens."""
    return [await _token_ids(engine, prompt, add_special_tokens) for prompt in prompts]


def truncated(engine: Engine, prompt: Sequence[int], num_kept: int | None, num_generated: int | None) -> Sequence[int]:
    """The last `num_kept` tokens; -1 keeps what leaves room for the answer. RequestError beyond the context."""
    if num_kept is None:
        return prompt
    if num_kept > engine.max_model_len:
        message = f"truncate_prompt_tokens must not exceed the context, {engine.max_model_len}, got {num_kept}"
        raise RequestError(message, param="truncate_prompt_tokens")
    return prompt[-num_kept:] if num_kept > 0 else prompt[-max(engine.max_model_len - (num_generated or 1), 1) :]


async def _token_ids(engine: Engine, prompt: Prompt, add_special_tokens: bool) -> Sequence[int]:
    if isinstance(prompt, str):
        text = prompt
        token_ids = await run_for_text(
            len(text), lambda: engine.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        )
        if not token_ids:
            raise RequestError("prompt must hold at least one token, got an empty text", param="prompt")
        return token_ids
    check_token_ids(prompt, engine.config.vocab_size, "prompt")
    return prompt


async def run_for_text(num_chars: int, work: Callable[[], Result]) -> Result:
    """`work` on a text of this length, where it delays nobody: of large texts one at a time, so that they take neither
    all threads nor, a hundred times their size each, the memory."""
    if num_chars <= IN_THREAD_CHARS:
        return work()
    if num_chars <= LARGE_CHARS:
        return await asyncio.to_thread(work)
    turn = _LARGE_TEXTS.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    async with turn:
        return await asyncio.to_thread(work)


_LARGE_TEXTS: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
