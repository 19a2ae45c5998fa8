"""The generations of one HTTP request, run side by side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, Protocol

from tinycluster.cluster.driver import Engine
from tinycluster.cluster.generation import Delta
from tinycluster.engine.errors import TinyclusterError, UnavailableError
from tinycluster.engine.request import FinishReason, RequestOptions, SamplingParams
from tinycluster.engine.sampling_rules import check_sampling

Step = list[tuple[int, Delta]]
"""What one engine step added: (choice, delta), at most a few per choice."""


class Deltas(Protocol):
    """One generation, or something that stands for it."""

    @property
    def scheduled_s(self) -> float | None: ...

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    def abort(self) -> None: ...


class Choices:
    """One generation per (prompt, choice); choice number i belongs to prompt i // n.

    Iterate `steps()` once. `abort()` in a `finally` frees the blocks of whatever still runs.
    """

    def __init__(self, generations: Sequence[Deltas], num_prompt_tokens: int, num_per_prompt: int = 1) -> None:
        self._generations = generations
        self.num_per_prompt = num_per_prompt
        self._num_cached: dict[int, int] = {}
        self.num_prompt_tokens = num_prompt_tokens
        self.num_completion_tokens = 0
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self._finish_reasons: dict[int, FinishReason] = {}
        self._end_of_others: FinishReason = "abort"
        self._on_end: list[Callable[[Choices], None]] = []
        self._refusal: TinyclusterError | None = None
        self._is_screened = False

    @property
    def num_choices(self) -> int:
        return len(self._generations)

    @property
    def num_cached_tokens(self) -> int:
        """Of the prompts' tokens, those that the prefix cache had; each prompt counts once."""
        return sum(self._num_cached.get(choice, 0) for choice in range(0, self.num_choices, self.num_per_prompt))

    @property
    def finish_reasons(self) -> list[FinishReason]:
        """By choice; of one that has not ended by itself "error" where its engine failed, else "abort"."""
        return [self._finish_reasons.get(choice, self._end_of_others) for choice in range(self.num_choices)]

    @property
    def scheduled_s(self) -> float | None:
        """When the first of them was planned for a step."""
        planned = (generation.scheduled_s for generation in self._generations)
        return min((at_s for at_s in planned if at_s is not None), default=None)

    def when_ended(self, tell: Callable[[Choices], None]) -> None:
        """`tell` is called once, by the first `abort`: every request ends with one, also after it was read."""
        self._on_end.append(tell)

    def prompt_only(self) -> None:
        """From here on, only the prompts' part is shown, and counted."""
        self._generations = [PromptOnly(generation) for generation in self._generations]

    def screen(self, screened: Callable[[Deltas, Callable[[Delta], None]], Deltas]) -> None:
        """Put something before every generation, made of it and of who counts each delta when it comes, before it is
        held back."""
        self._generations = [screened(generation, self._count_tokens) for generation in self._generations]
        self._is_screened = True

    def prompt_of(self, choice: int) -> int:
        return choice // self.num_per_prompt

    async def steps(self) -> AsyncGenerator[Step]:
        """Deltas as they come, all choices of an engine step together. UnavailableError where a generation fails."""
        try:
            if len(self._generations) == 1:
                async for delta in self._generations[0]:
                    self._count(0, delta)
                    yield [(0, delta)]
                return
            async with aclosing(_merged(self._generations)) as merged:
                async for step in merged:
                    for choice, delta in step:
                        self._count(choice, delta)
                    yield step
        except UnavailableError:
            self._end_of_others = "error"
            raise

    def refuse(self, error: TinyclusterError) -> None:
        """End the request: whoever reads it gets the error."""
        self._refusal = self._refusal or error
        self.abort()

    def _count(self, choice: int, delta: Delta) -> None:
        if self._refusal is not None:
            raise self._refusal
        if not self._is_screened:
            self._count_tokens(delta)
        if delta.finish_reason is not None:
            self._finish_reasons[choice] = delta.finish_reason
        if delta.progress is not None:
            self._num_cached[choice] = delta.progress.num_cached
        if delta.finish_reason is not None and delta.finish_reason in ("abort", "error"):
            raise UnavailableError("The engine ended this request before it was complete")

    def _count_tokens(self, delta: Delta) -> None:
        if delta.token_ids:
            self.num_completion_tokens += len(delta.token_ids)
            self.last_token_s = time.monotonic()
            if self.first_token_s is None:
                self.first_token_s = self.last_token_s

    def abort(self) -> None:
        """May be called again, and after the end."""
        for generation in self._generations:
            generation.abort()
        tellers, self._on_end = self._on_end, []
        for tell in tellers:
            tell(self)

    @contextmanager
    def aborted_on_error(self) -> Iterator[None]:
        """Whatever ends the block early ends the generations, which nobody would read any more."""
        try:
            yield
        except BaseException:
            self.abort()
            raise

    def usage(self) -> dict[str, Any]:
        """Each prompt counts once, however many choices it has; so do its tokens that the prefix cache had."""
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_completion_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": _NO_SPECIAL_TOKENS,
        }


_NO_SPECIAL_TOKENS = {
    "reasoning_tokens": 0,
    "audio_tokens": 0,
    "accepted_prediction_tokens": 0,
    "rejected_prediction_tokens": 0,
}


class PromptOnly:
    """A generation of which only the prompt's part is shown."""

    def __init__(self, generation: Deltas) -> None:
        self._generation = generation

    @property
    def scheduled_s(self) -> float | None:
        return self._generation.scheduled_s

    async def __aiter__(self) -> AsyncIterator[Delta]:
        async for delta in self._generation:
            reason: FinishReason | None = "length" if delta.finish_reason == "stop" else delta.finish_reason
            yield Delta((), "", reason, prompt_logprobs=delta.prompt_logprobs, progress=delta.progress)

    def abort(self) -> None:
        self._generation.abort()


def submit(
    engine: Engine, prompts: Sequence[Sequence[int]], candidates: Sequence[SamplingParams], options: RequestOptions
) -> Choices:
    """Submit every candidate of every prompt, or none: a full queue ends those already submitted."""
    # The others differ by their seeds, and ask for less.
    check_sampling(candidates[0], engine.config.vocab_size)
    generations: list[Deltas] = []
    try:
        for prompt in prompts:
            generations += engine.submit_choices(prompt, candidates, options)
    except BaseException:
        for generation in generations:
            generation.abort()
        raise
    return Choices(generations, sum(len(prompt) for prompt in prompts), len(candidates))


async def _merged(generations: Sequence[Deltas]) -> AsyncGenerator[Step]:
    """One task per generation fills `ready`. The engine wakes all of them at once, so a step is taken as one."""
    ready: Step = []
    has_news = asyncio.Event()

    async def drain(choice: int, generation: Deltas) -> None:
        try:
            async for delta in generation:
                ready.append((choice, delta))
                has_news.set()
        finally:
            has_news.set()

    tasks = [asyncio.create_task(drain(choice, generation)) for choice, generation in enumerate(generations)]
    try:
        while not all(task.done() for task in tasks) or ready:
            await has_news.wait()
            has_news.clear()
            step, ready[:] = list(ready), []
            if step:
                yield step
            for task in tasks:
                if task.done():
                    task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
