"""`bench growth`: how speed changes with the number of requests, the length of the prompt and that of the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from rich.console import Group

from tinycluster.engine.errors import ConfigError
from tinycluster.serve.bench.batch import (
    BatchTiming,
    Lengths,
    MeasuredEngine,
    draw_prompts,
    engine_title,
    run_batch,
)
from tinycluster.serve.bench.client import Clock
from tinycluster.serve.bench.report import table_of

SHORT_PROMPT = 32


@dataclass(frozen=True)
class GrowthOptions:
    """One request answers prompts of each of `input_lens` tokens; each of `num_requests` answer short ones together."""

    num_requests: tuple[int, ...]
    input_lens: tuple[int, ...]
    output_len: int
    num_warmups: int
    num_iterations: int
    seed: int

    def __post_init__(self) -> None:
        for option, numbers in (("--num-prompts", self.num_requests), ("--input-lens", self.input_lens)):
            if not numbers or min(numbers) < 1 or sorted(set(numbers)) != list(numbers):
                raise ConfigError(f"{option} takes growing numbers of at least 1, got {list(numbers)}")
        if self.num_warmups < 0 or self.num_iterations < 1:
            raise ConfigError("--num-iters must be at least 1 and --num-iters-warmup at least 0")
        Lengths(1, self.output_len)

    @property
    def lengths(self) -> Lengths:
        """The longest request."""
        return Lengths(max(*self.input_lens, SHORT_PROMPT), self.output_len)

    @property
    def num_batches(self) -> int:
        return (len(self.num_requests) + len(self.input_lens)) * (self.num_warmups + self.num_iterations)

    @property
    def limits(self) -> dict[str, int]:
        """Settings under which all of it fits."""
        return {
            "limits.max_running": max(self.num_requests),
            "limits.max_model_len": self.lengths.input_len + self.output_len,
        }


async def run(
    engine: MeasuredEngine, options: GrowthOptions, *, vocab_size: int, clock: Clock, on_done: Callable[[int], None]
) -> dict[str, Any]:
    """All sizes once per round, so that a machine that slows down slows them all."""
    rng = np.random.default_rng(options.seed)
    points = [(count, SHORT_PROMPT) for count in options.num_requests] + [(1, size) for size in options.input_lens]
    timings: list[list[BatchTiming]] = [[] for _ in points]
    for round_number in range(options.num_warmups + options.num_iterations):
        for (num_requests, input_len), of_point in zip(points, timings, strict=True):
            prompts = draw_prompts(rng, vocab_size, num_requests, input_len)
            timing = await run_batch(engine, prompts, options.output_len, clock)
            if round_number >= options.num_warmups:
                of_point.append(timing)
            on_done(1)
    together, alone = timings[: len(options.num_requests)], timings[len(options.num_requests) :]
    return summarize(options, together, alone)


def summarize(
    options: GrowthOptions, together: Sequence[Sequence[BatchTiming]], alone: Sequence[Sequence[BatchTiming]]
) -> dict[str, Any]:
    """Medians with their extremes at every size, and the deepest fall of each rate from one size to the next."""
    requests = [
        {
            "num_requests": count,
            "decode_tokens_per_s": spread([timing.decode_tokens_per_s for timing in timings]),
            "decode_tokens_per_s_each": spread([timing.decode_tokens_per_s / count for timing in timings]),
        }
        for count, timings in zip(options.num_requests, together, strict=True)
    ]
    lengths = [
        {
            "num_tokens": size,
            "prefill_tokens_per_s": spread([timing.prefill_tokens_per_s for timing in timings]),
            "decode_tokens_per_s": spread([timing.decode_tokens_per_s for timing in timings]),
            "decode_ms_per_token": spread([1e3 / timing.decode_tokens_per_s for timing in timings]),
        }
        for size, timings in zip(options.input_lens, alone, strict=True)
    ]
    return {
        "iterations": options.num_iterations,
        "output_len": options.output_len,
        "requests": requests,
        "lengths": lengths,
        "lowest_step": {
            "decode_with_requests": lowest_step([row["decode_tokens_per_s"] for row in requests]),
            "prefill_with_length": lowest_step([row["prefill_tokens_per_s"] for row in lengths]),
            "decode_with_context": lowest_step([row["decode_tokens_per_s"] for row in lengths]),
        },
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "low": float(np.min(values)), "high": float(np.max(values))}


def lowest_step(rates: Sequence[Any]) -> float:
    """The smallest ratio of a rate to the one before it: far below 1 is a cliff. 1 for a single rate."""
    medians = [rate["median"] for rate in rates]
    return min((after / before for before, after in pairwise(medians)), default=1.0)


def table(result: dict[str, Any]) -> Group:
    requests = [
        [str(row["num_requests"]), _median(row["decode_tokens_per_s_each"]), _median(row["decode_tokens_per_s"])]
        for row in result["requests"]
    ]
    lengths = [
        [f"{row['num_tokens']:,}", _median(row["prefill_tokens_per_s"]), f"{row['decode_ms_per_token']['median']:,.2f}"]
        for row in result["lengths"]
    ]
    falls = ", ".join(f"{name.replace('_', ' ')} × {step:.2f}" for name, step in result["lowest_step"].items())
    return Group(
        table_of(title(result), ["requests", "decode tokens/s, each", "all together"], requests),
        table_of("", ["tokens before", "prefill tokens/s", "decode, ms per token"], lengths),
        f"lowest step from one size to the next: {falls}",
    )


def title(result: dict[str, Any]) -> str:
    return f"{engine_title(result)}: medians of {result['iterations']}, {result['output_len']} tokens out"


def _median(values: dict[str, float]) -> str:
    return f"{values['median']:,.1f}"
