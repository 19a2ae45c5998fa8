"""An engine without a model: bytes are tokens, and the answer repeats the prompt. Deterministic."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinycluster.cluster.statistics import CacheUse, EngineStatistics
from tinycluster.engine.errors import ContextLengthError, QueueFullError, UnavailableError
from tinycluster.engine.models.spec import ModelConfig
from tinycluster.engine.request import FinishReason, RequestOptions, SamplingParams

ALONE = RequestOptions()
USE = CacheUse(num_blocks=8, block_tokens=16, num_free=5, num_used=2, num_cached=1)
TINY = ModelConfig("llama", 256, 8, 8, 1, 1, 1, 8, 1e-5, 1000)


@dataclass(frozen=True)
class FakeDelta:
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    logits: tuple[bytes, ...] = ()


class ByteTokenizer:
    """UTF-8 bytes; a chat's prompt is its last message."""

    vocab_size = 256

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token_ids).decode(errors="replace")

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        return self.encode(messages[-1]["content"], add_special_tokens=False)

    def spelling(self, token_id: int) -> str:
        return chr(token_id)


@dataclass
class FakeEngine:
    """`gate` None answers at once; else every token after the first waits for a release of the semaphore.

    With a temperature above 0 the answer starts with the seed, so that a test sees which seed a choice had.
    The prompts "lost" and "bug" fail after their first token, "full" is refused, "lost at once" fails before it.
    """

    name: str = "fake"
    max_model_len: int = 1000
    gate: threading.Semaphore | None = None
    is_ready: bool = True
    running: set[int] = field(default_factory=set)
    submitted: list[SamplingParams] = field(default_factory=list)
    tokenizer: ByteTokenizer = field(default_factory=ByteTokenizer)
    config: ModelConfig = TINY
    statistics: EngineStatistics = field(default_factory=lambda: EngineStatistics(max_model_len=1000))
    cache_use: CacheUse = USE
    num_waiting: int = 0
    num_preemptions: int = 0

    @property
    def num_running(self) -> int:
        return len(self.running)

    def __post_init__(self) -> None:
        self._ids = itertools.count()

    def submit(
        self, prompt_token_ids: Sequence[int], sampling: SamplingParams, options: RequestOptions = ALONE
    ) -> FakeGeneration:
        self.submitted.append(sampling)
        text = bytes(prompt_token_ids).decode(errors="replace")
        if len(prompt_token_ids) >= self.max_model_len:
            raise ContextLengthError(f"the prompt has {len(prompt_token_ids)} tokens, the context {self.max_model_len}")
        if text == "full":
            raise QueueFullError("the queue is full", retry_after_s=3)
        request_id = next(self._ids)
        self.running.add(request_id)
        return FakeGeneration(self, request_id, text, sampling)

    def check_ready(self) -> None:
        if not self.is_ready:
            raise UnavailableError("rank 1 has not answered for 12 s")


class FakeGeneration:
    def __init__(self, engine: FakeEngine, request_id: int, prompt: str, sampling: SamplingParams) -> None:
        self._engine, self._request_id, self._prompt, self._sampling = engine, request_id, prompt, sampling

    async def __aiter__(self) -> AsyncIterator[FakeDelta]:
        for number, delta in enumerate(self._deltas()):
            while number and self._engine.gate is not None and not self._engine.gate.acquire(blocking=False):
                await asyncio.sleep(0.001)
            yield delta
        self.abort()

    def __iter__(self) -> Iterator[FakeDelta]:
        yield from self._deltas()
        self.abort()

    def abort(self) -> None:
        self._engine.running.discard(self._request_id)

    def _deltas(self) -> Iterator[FakeDelta]:
        if self._prompt == "lost at once":
            raise UnavailableError("rank 1 was lost")
        text, reason, stop = self._answer()
        for number, character in enumerate(text):
            if number == 1 and self._prompt in FAULTS:
                raise FAULTS[self._prompt]()
            yield FakeDelta(tuple(character.encode()), character)
        yield FakeDelta((), "", reason, stop)

    def _answer(self) -> tuple[str, FinishReason, str | None]:
        sampled = self._sampling.temperature > 0 and self._sampling.seed is not None
        text = f"{self._sampling.seed}:{self._prompt}" if sampled else self._prompt
        limit = self._sampling.max_tokens
        for stop in self._sampling.stop:
            if stop in text[:limit]:
                return text[: text.index(stop)], "stop", stop
        if limit is not None and limit < len(text):
            return text[:limit], "length", None
        return text, "stop", None


FAULTS: dict[str, Callable[[], Exception]] = {
    "lost": lambda: UnavailableError("rank 1 was lost"),
    "bug": lambda: ZeroDivisionError("secret detail"),
}
