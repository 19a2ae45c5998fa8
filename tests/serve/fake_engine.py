"""An engine without a model: bytes are tokens, and the answer repeats the prompt. Deterministic."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinycluster.cluster.generation import Delta
from tinycluster.cluster.model_card import ModelCard
from tinycluster.cluster.rank_card import Place, RankCard
from tinycluster.cluster.rank_times import RankTimes
from tinycluster.cluster.statistics import CacheUse, EngineStatistics
from tinycluster.engine.errors import ContextLengthError, DeadlineError, QueueFullError, UnavailableError
from tinycluster.engine.models.spec import ModelConfig
from tinycluster.engine.request import FinishReason, PromptProgress, RequestOptions, SamplingParams, TokenLogprobs
from tinycluster.parallel.mesh import Mesh

ALONE = RequestOptions()
USE = CacheUse(num_blocks=8, block_tokens=16, num_free=5, num_used=2, num_cached=1)
TINY = ModelConfig("llama", 256, 8, 8, 1, 1, 1, 8, 1e-5, 1000)
RANK = RankCard(0, 0, 0, Place("local", "here", 1, 2), "cpu", 1, 1, 4, range(1), 1000, 2000)
END = 0
"""A control token: it has no text."""
NUM_CACHED = 2
"""Tokens of every prompt that the prefix cache has, if the prompt has more."""


class ByteTokenizer:
    """UTF-8 bytes; a chat's prompt is its last message. END is a control token."""

    vocab_size = 256
    strips_leading_space = False
    eos_token_ids = (END,)
    tool_format = "hermes"

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token_ids).decode(errors="replace")

    def token_bytes(self, token_id: int, *, skip_special_tokens: bool = True) -> bytes:
        return b"" if skip_special_tokens and self.is_special(token_id) else bytes([token_id])

    def encode_within(self, text: str) -> list[int]:
        return self.encode(text, add_special_tokens=False)

    def is_special(self, token_id: int) -> bool:
        return token_id == END

    def spelling(self, token_id: int) -> str:
        return chr(token_id)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        return self.encode(messages[-1]["content"], add_special_tokens=False)


class WholeChat(ByteTokenizer):
    """A chat's prompt is all of its messages."""

    def apply_chat_template(self, messages: Any, **_: Any) -> list[int]:
        return self.encode("".join(message["content"] for message in messages), add_special_tokens=False)


def fake_logprobs(token: int, position: int, num_top: int) -> TokenLogprobs:
    """The most likely tokens are token, token + 1 and so on, the first with a logprob that tells its position."""
    first = -(position + 1) / 64
    top = tuple(((token + rank) % 256, first - rank) for rank in range(num_top))
    return TokenLogprobs(first, 1, top)


@dataclass
class FakeEngine:
    """`gate` None answers at once; else every token after the first waits for a release of the semaphore.

    A step gives `step_chars` characters. With a temperature above 0 the answer starts with the seed, so that a test
    sees which seed a choice had. The prompts "lost", "late" and "bug" fail after their first token, "lost at once" and
    "late at once" before it, and "full" is refused.
    """

    name: str = "fake"
    max_model_len: int = 1000
    gate: threading.Semaphore | None = None
    step_chars: int = 1
    is_ready: bool = True
    is_full: bool = False
    running: set[int] = field(default_factory=set)
    submitted: list[SamplingParams] = field(default_factory=list)
    options: list[RequestOptions] = field(default_factory=list)
    tokenizer: ByteTokenizer = field(default_factory=ByteTokenizer)
    config: ModelConfig = TINY
    default_sampling: SamplingParams = field(default_factory=SamplingParams)
    statistics: EngineStatistics = field(default_factory=lambda: EngineStatistics(max_model_len=1000))
    cache_use: CacheUse = USE
    num_waiting: int = 0
    num_preemptions: int = 0
    client_weights: Mapping[str, float] = field(default_factory=dict)
    mesh: Mesh = field(default_factory=Mesh)
    rank_times: RankTimes = field(default_factory=lambda: RankTimes(1, 0.0))
    has_failed: bool = False

    @property
    def model(self) -> ModelCard:
        return ModelCard(
            self.name, self.config, self.tokenizer, self.mesh, self.max_model_len, self.default_sampling, (RANK,)
        )

    @property
    def num_running(self) -> int:
        return len(self.running)

    def __post_init__(self) -> None:
        self._ids = itertools.count()

    def submit(
        self, prompt_token_ids: Sequence[int], sampling: SamplingParams, options: RequestOptions = ALONE
    ) -> FakeGeneration:
        return self.submit_choices(prompt_token_ids, [sampling], options)[0]

    def weigh_clients(self, weights: Mapping[str, float]) -> None:
        self.client_weights = weights

    def check_room(self) -> None:
        if self.is_full:
            raise QueueFullError("the queue is full", retry_after_s=3)

    def submit_choices(
        self, prompt_token_ids: Sequence[int], choices: Sequence[SamplingParams], options: RequestOptions = ALONE
    ) -> list[FakeGeneration]:
        text = bytes(prompt_token_ids).decode(errors="replace")
        if len(prompt_token_ids) >= self.max_model_len:
            raise ContextLengthError(f"the prompt has {len(prompt_token_ids)} tokens, the context {self.max_model_len}")
        if text == "full":
            raise QueueFullError("the queue is full", retry_after_s=3)
        self.submitted += choices
        self.options.append(options)
        return [self._generation(tuple(prompt_token_ids), sampling, options) for sampling in choices]

    def _generation(self, prompt: tuple[int, ...], sampling: SamplingParams, options: RequestOptions) -> FakeGeneration:
        request_id = next(self._ids)
        self.running.add(request_id)
        return FakeGeneration(self, request_id, prompt, sampling, options)

    def check_ready(self) -> None:
        if not self.is_ready:
            raise UnavailableError("rank 1 has not answered for 12 s")


class FakeGeneration:
    scheduled_s: float | None = None

    def __init__(
        self,
        engine: FakeEngine,
        request_id: int,
        prompt: tuple[int, ...],
        sampling: SamplingParams,
        options: RequestOptions,
    ) -> None:
        self._engine, self._request_id, self._sampling, self._options = engine, request_id, sampling, options
        self._prompt_token_ids, self._prompt = prompt, bytes(prompt).decode(errors="replace")

    async def __aiter__(self) -> AsyncIterator[Delta]:
        for number, delta in enumerate(self._deltas()):
            while number and self._engine.gate is not None and not self._engine.gate.acquire(blocking=False):
                await asyncio.sleep(0.001)
            yield delta
        self.abort()

    def __iter__(self) -> Iterator[Delta]:
        yield from self._deltas()
        self.abort()

    def abort(self) -> None:
        self._engine.running.discard(self._request_id)

    def _deltas(self) -> Iterator[Delta]:
        if self._prompt in FAULTS_AT_ONCE:
            raise FAULTS_AT_ONCE[self._prompt]()
        yield from self._prompt_deltas()
        text, reason, stop = self._answer()
        position, progress = 0, self._progress(len(self._prompt_token_ids))
        size = self._engine.step_chars
        for number, piece in enumerate(text[first : first + size] for first in range(0, len(text), size)):
            if number == 1 and self._prompt in FAULTS:
                raise FAULTS[self._prompt]()
            tokens = tuple(piece.encode())
            yield Delta(tokens, piece, logprobs=self._logprobs(tokens, position), progress=progress)
            position, progress = position + len(tokens), None
        yield Delta((), "", reason, stop, progress=progress)

    def _prompt_deltas(self) -> Iterator[Delta]:
        """The prompt is computed in two steps: without an output each, unless one was asked for."""
        prompt, num_top = self._prompt_token_ids, self._sampling.prompt_logprobs
        half = (len(prompt) + 1) // 2
        for first, end in ((1, half), (half, len(prompt))):
            logprobs: tuple[TokenLogprobs, ...] = ()
            if num_top is not None:
                places = range(max(first, 1), end)
                logprobs = tuple(fake_logprobs(prompt[place], place, num_top) for place in places)
            progress = self._progress(end) if self._options.report_progress and end < len(prompt) else None
            if logprobs or progress:
                yield Delta((), "", prompt_logprobs=logprobs, progress=progress)

    def _progress(self, num_computed: int) -> PromptProgress:
        num_tokens = len(self._prompt_token_ids)
        return PromptProgress(num_tokens, NUM_CACHED if num_tokens > NUM_CACHED else 0, num_computed)

    def _logprobs(self, tokens: tuple[int, ...], position: int) -> tuple[TokenLogprobs, ...]:
        if self._sampling.logprobs is None:
            return ()
        return tuple(
            fake_logprobs(token, position + index, self._sampling.logprobs) for index, token in enumerate(tokens)
        )

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
    "late": lambda: DeadlineError("the request's timeout is over"),
    "bug": lambda: ZeroDivisionError("secret detail"),
}
FAULTS_AT_ONCE: dict[str, Callable[[], Exception]] = {
    "late at once": lambda: DeadlineError("the request's timeout is over"),
    "lost at once": lambda: UnavailableError("rank 1 was lost"),
}
