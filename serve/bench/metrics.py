"""From the times of every request to the figures that are compared: TTFT, TPOT, ITL, E2EL, throughput, goodput.

    start ──────► first token ──► token ──► token ──► last token
      └── TTFT ──────┘└── ITL ──┘└── ITL ─┘└── ITL ───┘
      └──────────────────── E2EL ─────────────────────┘

Pure: times come from the caller's clock. Field names are those of `vllm bench serve`, so results compare directly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from tinycluster.engine.errors import ConfigError

Metric = Literal["ttft", "tpot", "itl", "e2el"]
METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True)
class Record:
    """One request's life in seconds of the client's clock; token counts are the server's. `error` None: it succeeded.

    `chunk_times_s` are the arrivals of the stream's parts that carry text; a part may hold several tokens.
    """

    start_s: float
    end_s: float
    chunk_times_s: tuple[float, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def ttft_ms(self) -> float:
        return 1e3 * (self.chunk_times_s[0] - self.start_s)

    @property
    def e2el_ms(self) -> float:
        return 1e3 * (self.end_s - self.start_s)

    @property
    def tpot_ms(self) -> float | None:
        """(E2EL - TTFT) / (output tokens - 1); None for answers of one token."""
        if self.output_tokens < 2:
            return None
        return (self.e2el_ms - self.ttft_ms) / (self.output_tokens - 1)

    @property
    def itls_ms(self) -> tuple[float, ...]:
        times = self.chunk_times_s
        return tuple(1e3 * (later - earlier) for earlier, later in pairwise(times))


Goodput = Mapping[Metric, float]
"""The milliseconds that a request must keep to count as good: keys among ttft, tpot, e2el."""


def parse_goodput(pairs: Iterable[str]) -> dict[Metric, float]:
    """`ttft:200 tpot:50` (milliseconds) as a mapping."""
    objectives: dict[Metric, float] = {}
    by_name: dict[str, Metric] = {"ttft": "ttft", "tpot": "tpot", "e2el": "e2el"}
    for pair in pairs:
        name, _, value = pair.partition(":")
        if name not in by_name:
            raise ConfigError(f"--goodput takes ttft:MS, tpot:MS or e2el:MS, got {pair!r}")
        try:
            objectives[by_name[name]] = float(value)
        except ValueError as error:
            raise ConfigError(f"--goodput {name} needs milliseconds, got {value!r}") from error
    return objectives


def parse_metrics(text: str) -> tuple[Metric, ...]:
    """`ttft,tpot` as metrics, in the order of METRICS."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in METRICS]:
        raise ConfigError(f"--percentile-metrics takes {', '.join(METRICS)}, got {unknown[0]!r}")
    return tuple(metric for metric in METRICS if metric in names)


def parse_percentiles(text: str) -> tuple[float, ...]:
    """`50,99.9` as ascending numbers between 0 and 100."""
    try:
        percentiles = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError as error:
        raise ConfigError(f"--metric-percentiles takes numbers between commas, got {text!r}") from error
    if any(not 0 <= percentile <= 100 for percentile in percentiles):
        raise ConfigError(f"--metric-percentiles must lie between 0 and 100, got {text!r}")
    return tuple(percentiles)


def is_good(record: Record, goodput: Goodput) -> bool:
    """Whether a completed request kept every objective; an answer of one token keeps any TPOT."""
    measured: dict[Metric, float] = {"ttft": record.ttft_ms, "tpot": record.tpot_ms or 0.0, "e2el": record.e2el_ms}
    return all(measured[name] <= limit_ms for name, limit_ms in goodput.items())


def samples_ms(records: Sequence[Record]) -> dict[Metric, list[float]]:
    """Every sample of every metric over the completed requests, in milliseconds."""
    completed = [record for record in records if record.error is None]
    return {
        "ttft": [record.ttft_ms for record in completed],
        "tpot": [tpot for record in completed if (tpot := record.tpot_ms) is not None],
        "itl": [itl for record in completed for itl in record.itls_ms],
        "e2el": [record.e2el_ms for record in completed],
    }


def peak_concurrency(records: Sequence[Record]) -> int:
    """The largest number of requests that were in the server's hands at one instant."""
    # An end sorts before a start of the same instant: the two requests did not overlap.
    changes = sorted([(record.start_s, 1) for record in records] + [(record.end_s, -1) for record in records])
    running = np.cumsum([change for _, change in changes])
    return int(running.max(initial=0))


def percentile_name(percentile: float) -> str:
    return f"p{percentile:g}"


def describe(values_ms: Sequence[float], metric: Metric, percentiles: Sequence[float]) -> dict[str, float]:
    """Mean, median, population standard deviation and percentiles (linear interpolation); 0 without samples."""
    values = np.asarray(values_ms or [0.0], np.float64)
    figures = {"mean": values.mean(), "median": np.median(values), "std": values.std()}
    figures |= {percentile_name(p): np.percentile(values, p) for p in percentiles}
    return {f"{name}_{metric}_ms": float(value) for name, value in figures.items()}


def summarize(
    records: Sequence[Record],
    duration_s: float,
    *,
    goodput: Goodput,
    metrics: Sequence[Metric] = METRICS,
    percentiles: Sequence[float] = (99,),
) -> dict[str, Any]:
    """The result object. Rates are per second of `duration_s`; `request_goodput` is null without objectives."""
    completed = [record for record in records if record.error is None]
    num_input = sum(record.prompt_tokens for record in completed)
    num_output = sum(record.output_tokens for record in completed)
    num_good = sum(is_good(record, goodput) for record in completed)
    samples = samples_ms(records)
    result: dict[str, Any] = {
        "duration": duration_s,
        "completed": len(completed),
        "failed": len(records) - len(completed),
        "errors": dict(Counter(record.error for record in records if record.error is not None)),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": _rate(len(completed), duration_s),
        "request_goodput": _rate(num_good, duration_s) if goodput else None,
        "output_throughput": _rate(num_output, duration_s),
        "total_token_throughput": _rate(num_input + num_output, duration_s),
        "max_concurrent_requests": peak_concurrency(records),
    }
    for metric in metrics:
        result |= describe(samples[metric], metric, percentiles)
    return result


def _rate(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0
