"""`bench throughput`: output tokens per second of many requests at once, and how many times one request that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group

from tinycluster.engine.errors import ConfigError
from tinycluster.serve.bench.batch import BatchTiming, Lengths, MeasuredEngine, draw_prompts, run_batch, title
from tinycluster.serve.bench.client import Clock
from tinycluster.serve.bench.report import table_of


@dataclass(frozen=True)
class ThroughputOptions:
    num_requests: int
    lengths: Lengths
    num_warmups: int
    num_iterations: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_requests < 1:
            raise ConfigError(f"--num-prompts must be at least 1, got {self.num_requests}")
        if self.num_warmups < 0 or self.num_iterations < 1:
            raise ConfigError("--num-iters must be at least 1 and --num-iters-warmup at least 0")

    @property
    def num_batches(self) -> int:
        return 2 * (self.num_warmups + self.num_iterations)


async def run(
    engine: MeasuredEngine, options: ThroughputOptions, *, vocab_size: int, clock: Clock, on_done: Callable[[int], None]
) -> dict[str, Any]:
    """One request alone and all at once in turn, so that a machine that slows down slows both."""
    rng = np.random.default_rng(options.seed)
    alone: list[BatchTiming] = []
    together: list[BatchTiming] = []
    for _ in range(options.num_warmups + options.num_iterations):
        for num_requests, timings in ((1, alone), (options.num_requests, together)):
            prompts = draw_prompts(rng, vocab_size, num_requests, options.lengths.input_len)
            timings.append(await run_batch(engine, prompts, options.lengths.output_len, clock))
            on_done(1)
    return {
        "input_len": options.lengths.input_len,
        "output_len": options.lengths.output_len,
        **summarize(alone[options.num_warmups :], together[options.num_warmups :], options.num_requests),
    }


def summarize(alone: Sequence[BatchTiming], together: Sequence[BatchTiming], num_requests: int) -> dict[str, Any]:
    """Medians over iterations. Output throughput counts the prefill's time, decode throughput does not."""
    single, batch = _speeds(alone), _speeds(together)
    return {
        "num_requests": num_requests,
        "iterations": len(together),
        "output_throughput": batch["output"],
        "decode_throughput": batch["decode"],
        "total_token_throughput": batch["total"],
        "request_throughput": batch["requests"] * num_requests,
        "single_output_throughput": single["output"],
        "single_decode_throughput": single["decode"],
        "output_ratio": batch["output"] / single["output"],
        "decode_ratio": batch["decode"] / single["decode"],
    }


def _speeds(timings: Sequence[BatchTiming]) -> dict[str, float]:
    return {
        "output": _median([timing.output_tokens_per_s for timing in timings]),
        "decode": _median([timing.decode_tokens_per_s for timing in timings]),
        "total": _median([(timing.prompt_tokens + timing.output_tokens) / timing.total_s for timing in timings]),
        "requests": _median([1 / timing.total_s for timing in timings]),
    }


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def table(result: dict[str, Any]) -> Group:
    rows = [
        [
            f"{kind.capitalize()} tokens/s",
            f"{result[f'single_{kind}_throughput']:,.1f}",
            f"{result[f'{kind}_throughput']:,.1f}",
            f"{result[f'{kind}_ratio']:.2f}",
        ]
        for kind in ("output", "decode")
    ]
    return table_of(title(result), ["", "1 request", f"{result['num_requests']} requests", "ratio"], rows)
