"""One batch of requests through an engine in this process: how long its prefill and its decode took.

submit all ──► first token of every request ──► last token of every request
   └───────── prefill ────────┘└──────── decode ────────┘
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from tinycluster.engine.errors import ConfigError
from tinycluster.engine.request import SamplingParams
from tinycluster.serve.bench.client import Clock
from tinycluster.serve.bench.console import progress_bar
from tinycluster.serve.bench.workload import LengthRange, PromptSource, random_requests
from tinycluster.serve.progress import Bars

if TYPE_CHECKING:
    from tinycluster.cluster.config import Settings
    from tinycluster.cluster.driver import Generation
    from tinycluster.cluster.timeline import Timeline

Prompts = Sequence[Sequence[int]]


class MeasuredEngine(Protocol):
    """The part of an engine that benchmarks need."""

    @property
    def name(self) -> str: ...

    def submit(self, prompt_token_ids: Sequence[int], sampling: SamplingParams) -> Generation: ...
    def start_tracing(self) -> None: ...
    def stop_tracing(self) -> list[Timeline]: ...


@dataclass(frozen=True)
class Lengths:
    input_len: int
    output_len: int

    def __post_init__(self) -> None:
        if self.input_len < 1:
            raise ConfigError(f"--input-len must be at least 1, got {self.input_len}")
        if self.output_len < 2:
            raise ConfigError(f"--output-len must be at least 2 to see a decode step, got {self.output_len}")

    def check(self, max_model_len: int) -> None:
        if self.input_len + self.output_len > max_model_len:
            raise ConfigError(
                f"--input-len {self.input_len} and --output-len {self.output_len} together exceed the model's context "
                f"of {max_model_len} tokens"
            )


@dataclass(frozen=True)
class BatchTiming:
    """Seconds of the caller's clock. A request that decodes while another is still in its prefill is not counted twice:
    `decoded_tokens` are those that came after the last first token."""

    prefill_s: float
    decode_s: float
    prompt_tokens: int
    output_tokens: int
    decoded_tokens: int

    @property
    def total_s(self) -> float:
        return self.prefill_s + self.decode_s

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.prompt_tokens / self.prefill_s

    @property
    def decode_tokens_per_s(self) -> float:
        return self.decoded_tokens / self.decode_s

    @property
    def output_tokens_per_s(self) -> float:
        return self.output_tokens / self.total_s


async def run_batch(engine: MeasuredEngine, prompts: Prompts, output_len: int, clock: Clock) -> BatchTiming:
    """Submit all prompts at once, greedy and to full length, and time their tokens."""
    sampling = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True)
    start_s = clock()
    generations = [engine.submit(prompt, sampling) for prompt in prompts]
    streams = await asyncio.gather(*(_arrivals(generation, clock) for generation in generations))
    prefilled_s = max(stream[0] for stream in streams)
    end_s = max(stream[-1] for stream in streams)
    return BatchTiming(
        prefill_s=prefilled_s - start_s,
        decode_s=end_s - prefilled_s,
        prompt_tokens=sum(map(len, prompts)),
        output_tokens=sum(map(len, streams)),
        decoded_tokens=sum(time_s > prefilled_s for stream in streams for time_s in stream),
    )


async def _arrivals(generation: Generation, clock: Clock) -> list[float]:
    """When each token of a request came."""
    times_s: list[float] = []
    async for delta in generation:
        times_s += [clock()] * len(delta.token_ids)
    return times_s


def draw_prompts(rng: np.random.Generator, vocab_size: int, num_prompts: int, input_len: int) -> Prompts:
    """Fresh random prompts, so that no prefix cache helps."""
    requests = random_requests(rng, PromptSource(vocab_size), num_prompts, LengthRange(input_len), LengthRange(1))
    return [request.prompt for request in requests if not isinstance(request.prompt, str)]


class EngineOptions(Protocol):
    @property
    def lengths(self) -> Lengths:
        """Of the longest request."""
        ...

    @property
    def num_batches(self) -> int: ...


Options = TypeVar("Options", bound=EngineOptions, contravariant=True)


class Run(Protocol[Options]):
    async def __call__(
        self, engine: MeasuredEngine, options: Options, *, vocab_size: int, clock: Clock, on_done: Callable[[int], None]
    ) -> dict[str, Any]: ...


def measure(
    settings: Settings, model: str | None, options: Options, run: Run[Options], *, hidden: bool
) -> dict[str, Any]:
    """Start one model's engine, run a benchmark on it, and say in front of the figures what was measured."""
    from tinycluster.serve.llm import LLM

    with Bars() as bars:
        llm = LLM(settings, model=model, progress=bars)
    with llm:
        engine = llm.engine
        options.lengths.check(engine.max_model_len)
        with progress_bar("batches", options.num_batches, hidden=hidden) as on_done:
            figures = asyncio.run(
                run(engine, options, vocab_size=engine.vocab_size, clock=time.perf_counter, on_done=on_done)
            )
    return {
        "model": engine.name,
        "weights": next(entry.weights for entry in settings.models if entry.name == engine.name),
        "mesh": {"tensor": engine.mesh.tensor, "pipeline": engine.mesh.pipeline},
        "address": settings.cluster.address,
        **figures,
    }


def title(result: Mapping[str, Any]) -> str:
    """`smollm2 (stored), tensor 2 x pipeline 1, local: 32 tokens in, 128 out`."""
    return f"{engine_title(result)}: {result['input_len']} tokens in, {result['output_len']} out"


def engine_title(result: Mapping[str, Any]) -> str:
    """`smollm2 (stored), tensor 2 x pipeline 1, local`."""
    mesh = f"tensor {result['mesh']['tensor']} × pipeline {result['mesh']['pipeline']}"
    return f"{result['model']} ({result['weights']}), {mesh}, {result['address']}"
