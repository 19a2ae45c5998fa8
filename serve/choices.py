"""The generations of one HTTP request, run side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from tinycluster.cluster.driver import Engine
from tinycluster.cluster.generation import Delta, Generation
from tinycluster.engine.errors import UnavailableError
from tinycluster.engine.request import FinishReason, SamplingParams
from tinycluster.engine.sampling_rules import check_sampling

Step = list[tuple[int, Delta]]
"""What one engine step added: (choice, delta), at most a few per choice."""


class Choices:
    """One generation per (prompt, choice); choice number i belongs to prompt i // n.

    Iterate `steps()` once. `abort()` in a `finally` frees the blocks of whatever still runs.
    """

    def __init__(self, generations: Sequence[Generation], num_prompt_tokens: int) -> None:
        self._generations = generations
        self.num_prompt_tokens = num_prompt_tokens
        self.num_completion_tokens = 0

    @property
    def num_choices(self) -> int:
        return len(self._generations)

    async def steps(self) -> AsyncGenerator[Step]:
        """Deltas as they come, all choices of an engine step together. UnavailableError where a generation fails."""
        if len(self._generations) == 1:
            async for delta in self._generations[0]:
                self._count(delta)
                yield [(0, delta)]
            return
        async with aclosing(_merged(self._generations)) as merged:
            async for step in merged:
                for _choice, delta in step:
                    self._count(delta)
                yield step

    def _count(self, delta: Delta) -> None:
        self.num_completion_tokens += len(delta.token_ids)
        if delta.finish_reason in ("abort", "error"):
            raise UnavailableError("The engine ended this request before it was complete")

    def abort(self) -> None:
        for generation in self._generations:
            generation.abort()

    def usage(self) -> dict[str, int]:
        """Each prompt counts once, however many choices it has."""
        total = self.num_prompt_tokens + self.num_completion_tokens
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_completion_tokens,
            "total_tokens": total,
        }


def submit(
    engine: Engine, prompts: Sequence[Sequence[int]], num_choices: int, sampling: Callable[[int], SamplingParams]
) -> Choices:
    """Submit every choice of every prompt, or none: a full queue ends those already submitted."""
    generations: list[Generation] = []
    try:
        for prompt in prompts:
            for choice in range(num_choices):
                params = sampling(choice)
                check_sampling(params, engine.config.vocab_size)
                generations.append(engine.submit(prompt, params))
    except BaseException:
        for generation in generations:
            generation.abort()
        raise
    return Choices(generations, sum(len(prompt) for prompt in prompts))


@dataclass
class Text:
    """A choice's whole answer, gathered from its deltas."""

    pieces: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


async def gather(choices: Choices) -> list[Text]:
    """The answers of all choices. The caller aborts what still runs after an error."""
    texts = [Text() for _ in range(choices.num_choices)]
    async with aclosing(choices.steps()) as steps:
        async for step in steps:
            for choice, delta in step:
                texts[choice].pieces.append(delta.text)
                if delta.finish_reason:
                    texts[choice].finish_reason, texts[choice].stop_reason = delta.finish_reason, delta.stop_reason
    return texts


async def _merged(generations: Sequence[Generation]) -> AsyncGenerator[Step]:
    """One task per generation fills `ready`. The engine wakes all of them at once, so a step is taken as one."""
    ready: Step = []
    has_news = asyncio.Event()

    async def drain(choice: int, generation: Generation) -> None:
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
