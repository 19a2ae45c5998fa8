"""From a request's text to token ids. Long texts are templated and tokenized off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from tinycluster.cluster.driver import Engine
from tinycluster.engine.errors import RequestError
from tinycluster.serve.protocol import Prompt

IN_THREAD_CHARS = 2048
"""Shorter texts take less time than a hand-over to a thread and back."""

Result = TypeVar("Result")


async def chat_prompt(engine: Engine, messages: Sequence[Mapping[str, str]]) -> list[int]:
    num_chars = sum(len(message["content"]) for message in messages)
    return await _run(num_chars, lambda: engine.tokenizer.apply_chat_template(messages))


async def completion_prompts(engine: Engine, prompts: Sequence[Prompt]) -> list[Sequence[int]]:
    """Token ids of every prompt. RequestError for an id outside the vocabulary and for a prompt of no tokens."""
    return [await _token_ids(engine, prompt) for prompt in prompts]


async def _token_ids(engine: Engine, prompt: Prompt) -> Sequence[int]:
    if isinstance(prompt, str):
        text = prompt
        token_ids = await _run(len(text), lambda: engine.tokenizer.encode(text, add_special_tokens=True))
        if not token_ids:
            raise RequestError("prompt must hold at least one token, got an empty text", param="prompt")
        return token_ids
    largest = max(prompt)
    if largest >= engine.config.vocab_size:
        message = f"prompt holds token id {largest}, but the vocabulary ends at {engine.config.vocab_size - 1}"
        raise RequestError(message, param="prompt")
    return prompt


async def _run(num_chars: int, work: Callable[[], Result]) -> Result:
    return await asyncio.to_thread(work) if num_chars > IN_THREAD_CHARS else work()
