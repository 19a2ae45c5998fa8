"""`bench latency`: prefill and decode speed of batches of several sizes, one batch after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group

from tinycluster.engine.errors import ConfigError
from tinycluster.serve.bench.batch import BatchTiming, Lengths, MeasuredEngine, draw_prompts, run_batch, title
from tinycluster.serve.bench.client import Clock
from tinycluster.serve.bench.metrics import percentile_name
from tinycluster.serve.bench.report import table_of
from tinycluster.serve.bench.trace import check_trace, decode_shares, write_trace

if TYPE_CHECKING:
    from tinycluster.cluster.timeline import Timeline


@dataclass(frozen=True)
class LatencyOptions:
    batch_sizes: tuple[int, ...]
    lengths: Lengths
    num_warmups: int
    num_iterations: int
    percentiles: tuple[float, ...]
    seed: int
    trace: Path | None = None
    """Where to write what the ranks did in one more batch of each size, which is not measured."""

    def __post_init__(self) -> None:
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ConfigError(f"--batch-size takes sizes of at least 1, got {list(self.batch_sizes)}")
        if self.num_warmups < 0 or self.num_iterations < 1:
            raise ConfigError("--num-iters must be at least 1 and --num-iters-warmup at least 0")
        if self.trace is not None:
            check_trace(self.trace)

    @property
    def num_batches(self) -> int:
        return len(self.batch_sizes) * (self.num_warmups + self.num_iterations + (self.trace is not None))


async def run(
    engine: MeasuredEngine, options: LatencyOptions, *, vocab_size: int, clock: Clock, on_done: Callable[[int], None]
) -> dict[str, Any]:
    """One entry of `results` per batch size."""
    rng = np.random.default_rng(options.seed)
    results: list[dict[str, Any]] = []
    recordings: list[list[Timeline]] = []
    for batch_size in options.batch_sizes:
        timings = []
        for _ in range(options.num_warmups + options.num_iterations):
            prompts = draw_prompts(rng, vocab_size, batch_size, options.lengths.input_len)
            timings.append(await run_batch(engine, prompts, options.lengths.output_len, clock))
            on_done(1)
        figures = summarize(timings[options.num_warmups :], options.percentiles)
        results.append({"batch_size": batch_size, **figures})
        if options.trace is not None:
            prompts = draw_prompts(rng, vocab_size, batch_size, options.lengths.input_len)
            engine.start_tracing()
            await run_batch(engine, prompts, options.lengths.output_len, clock)
            recordings.append(engine.stop_tracing())
            results[-1] |= decode_shares(recordings[-1])
            on_done(1)
    if options.trace is not None:
        write_trace(options.trace, engine.name, recordings)
    return {"input_len": options.lengths.input_len, "output_len": options.lengths.output_len, "results": results}


def summarize(timings: Sequence[BatchTiming], percentiles: Sequence[float]) -> dict[str, Any]:
    """Medians over iterations, and percentiles of the seconds that a whole batch took."""
    latencies_ms = [1e3 * timing.total_s for timing in timings]
    return {
        "iterations": len(timings),
        "prefill_tokens_per_s": _median([timing.prefill_tokens_per_s for timing in timings]),
        "decode_tokens_per_s": _median([timing.decode_tokens_per_s for timing in timings]),
        "median_ttft_ms": _median([1e3 * timing.prefill_s for timing in timings]),
        "mean_latency_ms": float(np.mean(latencies_ms)),
        "median_latency_ms": _median(latencies_ms),
        **{f"{percentile_name(p)}_latency_ms": float(np.percentile(latencies_ms, p)) for p in percentiles},
    }


_SHARES = {
    "decode_compute_share": "compute",
    "decode_communicate_share": "communicate",
    "decode_wait_share": "wait",
    "decode_plan_wait_share": "of it, wait for the plan",
    "decode_longest_wait_share": "wait, of the rank that waits most",
}


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def table(result: dict[str, Any]) -> Group:
    """A row per figure, a column per batch size."""
    results = result["results"]
    names = [name for name in results[0] if name.endswith(("_tokens_per_s", "_ms", "_share"))]
    rows = [[_row_title(name), *(_cell(name, figures[name]) for figures in results)] for name in names]
    return table_of(title(result), ["batch size", *(str(figures["batch_size"]) for figures in results)], rows)


def _cell(name: str, value: float) -> str:
    return f"{value:.1%}" if name.endswith("_share") else f"{value:,.1f}"


def _row_title(name: str) -> str:
    if name.endswith("_share"):
        return f"ranks' share of a decode step: {_SHARES[name]}"
    words = name.replace("_tokens_per_s", " tokens/s").replace("_ms", ", ms").replace("_", " ")
    return words.replace("ttft", "TTFT")
