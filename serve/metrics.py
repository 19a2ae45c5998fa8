"""GET /metrics: every engine's statistics in Prometheus' text form, with vLLM's names behind our own prefix.

Read when they are asked for: between two scrapes nothing is computed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

from tinycluster.cluster.driver import Engine
from tinycluster.cluster.statistics import FINISH_REASONS, Histogram
from tinycluster.serve.rank_metrics import rank_metrics
from tinycluster.serve.registry import ModelRegistry

PREFIX = "tinycluster:"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

COUNTERS: Sequence[tuple[str, str, Callable[[Engine], int]]] = (
    ("num_preemptions", "Requests that lost their blocks to another", lambda e: e.num_preemptions),
    ("prompt_tokens", "Prompt tokens processed", lambda e: e.statistics.num_prompt_tokens),
    ("generation_tokens", "Tokens generated", lambda e: e.statistics.num_generation_tokens),
    ("prefix_cache_queries", "Prompt tokens looked up", lambda e: e.statistics.num_prefix_queries),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache", lambda e: e.statistics.num_prefix_hits),
    (
        "recoveries",
        "Losses of a rank that the engine survived",
        lambda e: sum(e.statistics.recovery_s.counts),
    ),
    ("admission_rejections", "Requests refused for lack of room", lambda e: e.statistics.num_rejections),
    ("spec_decode_num_drafts", "Drafts verified", lambda e: e.statistics.drafts.num_drafts),
    ("spec_decode_num_draft_tokens", "Tokens of all drafts", lambda e: e.statistics.drafts.num_draft_tokens),
    (
        "spec_decode_num_accepted_tokens",
        "Draft tokens that were right",
        lambda e: e.statistics.drafts.num_accepted_tokens,
    ),
)

HISTOGRAMS: Sequence[tuple[str, str, Callable[[Engine], Histogram]]] = (
    ("iteration_tokens_total", "Tokens computed by a step", lambda e: e.statistics.step_tokens),
    ("time_to_first_token_seconds", "From arrival to the first token", lambda e: e.statistics.time_to_first_token_s),
    ("inter_token_latency_seconds", "Between a request's tokens", lambda e: e.statistics.inter_token_latency_s),
    (
        "request_time_per_output_token_seconds",
        "A request's mean time per token after its first",
        lambda e: e.statistics.time_per_output_token_s,
    ),
    ("e2e_request_latency_seconds", "From arrival to the end", lambda e: e.statistics.e2e_latency_s),
    ("request_queue_time_seconds", "From arrival to the first step", lambda e: e.statistics.queue_time_s),
    ("request_prefill_time_seconds", "From the first step to the first token", lambda e: e.statistics.prefill_time_s),
    ("request_decode_time_seconds", "From the first token to the last", lambda e: e.statistics.decode_time_s),
    ("recovery_seconds", "From a rank's loss until all ranks computed again", lambda e: e.statistics.recovery_s),
    ("request_prompt_tokens", "A request's prompt tokens", lambda e: e.statistics.request_prompt_tokens),
    ("request_generation_tokens", "A request's generated tokens", lambda e: e.statistics.request_generation_tokens),
)


class EngineCollector(Collector):
    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        engines = self._registry.engines
        for name, meaning, count in COUNTERS:
            counter = CounterMetricFamily(PREFIX + name, meaning, labels=["model_name"])
            for engine in engines:
                counter.add_metric([engine.name], count(engine))
            yield counter
        for name, meaning, histogram in HISTOGRAMS:
            family = HistogramMetricFamily(PREFIX + name, meaning, labels=["model_name"])
            for engine in engines:
                _add_histogram(family, engine.name, histogram(engine))
            yield family
        yield _finished(engines)
        yield from _gauges(engines)
        yield from _cache(engines)
        yield from rank_metrics(engines, PREFIX)


def _add_histogram(family: HistogramMetricFamily, model: str, histogram: Histogram) -> None:
    total, counts = histogram.total, list(histogram.counts)
    buckets, num_below = [], 0
    for bound, count in zip([*map(str, histogram.bounds), "+Inf"], counts, strict=True):
        num_below += count
        buckets.append((bound, num_below))
    family.add_metric([model], buckets, total)


def _finished(engines: Sequence[Engine]) -> Metric:
    family = CounterMetricFamily(
        f"{PREFIX}request_success", "Requests that ended, by reason", labels=["model_name", "finished_reason"]
    )
    for engine in engines:
        for reason in FINISH_REASONS:
            family.add_metric([engine.name, reason], engine.statistics.num_finished(reason))
    return family


def _gauges(engines: Sequence[Engine]) -> Iterator[Metric]:
    yield _gauge("num_requests_running", "Requests that hold blocks", [(e, e.num_running) for e in engines])
    yield _gauge("num_requests_waiting", "Requests in the queue", [(e, e.num_waiting) for e in engines])
    started = [(e, s) for e in engines if (s := e.statistics.startup_time_s) is not None]
    yield _gauge("startup_time_seconds", "From the start to the first readiness", started)


def _cache(engines: Sequence[Engine]) -> Iterator[Metric]:
    """The numbers of one engine are of one moment: free, used and cached blocks add up to all of them."""
    uses = [(engine, engine.cache_use) for engine in engines]
    used = [(engine, use.num_used / use.num_blocks) for engine, use in uses]
    yield _gauge("kv_cache_usage_perc", "The part of the KV cache that requests hold; 1 is all of it", used)
    yield _gauge("kv_cache_blocks", "Blocks of the KV cache", [(engine, use.num_blocks) for engine, use in uses])
    yield _gauge("kv_cache_blocks_free", "Blocks of no content", [(engine, use.num_free) for engine, use in uses])
    yield _gauge("kv_cache_blocks_used", "Blocks that requests hold", [(engine, use.num_used) for engine, use in uses])
    cached = [(engine, use.num_cached) for engine, use in uses]
    yield _gauge("kv_cache_blocks_cached", "Blocks that only the prefix cache holds", cached)
    leaked = [(engine, engine.statistics.num_leaked_blocks) for engine in engines]
    yield _gauge("kv_cache_blocks_leaked", "Blocks of nobody when nothing was left to do; 0 or a fault", leaked)
    labels = ["model_name", "block_size", "num_gpu_blocks"]
    config = GaugeMetricFamily(f"{PREFIX}cache_config_info", "The KV cache's configuration, in labels", labels=labels)
    for engine, use in uses:
        config.add_metric([engine.name, str(use.block_tokens), str(use.num_blocks)], 1)
    yield config


def _gauge(name: str, meaning: str, values: Sequence[tuple[Engine, float]]) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, meaning, labels=["model_name"])
    for engine, value in values:
        family.add_metric([engine.name], value)
    return family


def add_metrics_routes(app: FastAPI, registry: ModelRegistry) -> None:
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(EngineCollector(registry))

    ProcessCollector(registry=collectors)
    lag = Gauge(
        f"{PREFIX}event_loop_lag_seconds",
        "How long a turn of the event loop took at this scrape: what every client waits at least",
        registry=collectors,
    )

    @app.get("/metrics")
    async def metrics() -> Response:
        """All engines' counters, gauges and histograms, and those of this process."""
        asked_s = time.monotonic()
        await asyncio.sleep(0)
        lag.set(time.monotonic() - asked_s)
        return Response(generate_latest(collectors), media_type=CONTENT_TYPE)
