"""`bench serve` from options to a result: discover the model, draw the workload, send it, summarize it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tinycluster.engine.errors import ConfigError, UnavailableError
from tinycluster.serve.bench.client import Client, Clock, Target, open_http, run_load, served_models
from tinycluster.serve.bench.metrics import METRICS, Goodput, Metric, Record, summarize
from tinycluster.serve.bench.workload import (
    BenchRequest,
    DatasetName,
    LengthRange,
    PrefixRepetition,
    PromptSource,
    arrival_times,
    custom_requests,
    prefix_repetition_requests,
    random_requests,
    sharegpt_requests,
)

# Smaller than the vocabulary of any model in common use (Llama 2 has 32,000 ids); taken when the server names none.
COMMON_VOCAB_SIZE = 30_000


@dataclass(frozen=True)
class LoadOptions:
    """The options of `bench serve`, with the names and meanings of `vllm bench serve`."""

    base_url: str = "http://127.0.0.1:8000"
    endpoint: str = "/v1/completions"
    model: str | None = None
    dataset_name: DatasetName = "random"
    dataset_path: Path | None = None
    vocab_size: int | None = None
    input_len: LengthRange = field(default_factory=lambda: LengthRange(1024))
    output_len: LengthRange = field(default_factory=lambda: LengthRange(128))
    text_output_len: int | None = None
    prefix_repetition: PrefixRepetition = field(default_factory=PrefixRepetition)
    num_prompts: int = 100
    request_rate: float = math.inf
    burstiness: float = 1.0
    max_concurrency: int | None = None
    num_warmups: int = 0
    ignore_eos: bool = False
    temperature: float = 0.0
    seed: int = 0
    goodput: Goodput | None = None
    metrics: tuple[Metric, ...] = METRICS
    percentiles: tuple[float, ...] = (50, 90, 99)
    timeout_s: float = 600.0
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise ConfigError(f"--num-prompts must be at least 1, got {self.num_prompts}")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ConfigError(f"--max-concurrency must be at least 1, got {self.max_concurrency}")
        if self.dataset_name in ("sharegpt", "custom") and self.dataset_path is None:
            raise ConfigError(f"--dataset-name {self.dataset_name} needs --dataset-path")


@dataclass(frozen=True)
class LoadResult:
    records: tuple[Record, ...]
    summary: dict[str, Any]


async def run(options: LoadOptions, *, clock: Clock, on_done: Callable[[int], None] = lambda steps: None) -> LoadResult:
    """Warm up, run the load once and summarize it. ConfigError where no server answers."""
    rng = np.random.default_rng(options.seed)
    arrivals_s = arrival_times(rng, options.num_prompts, options.request_rate, options.burstiness)
    async with open_http(
        options.base_url, max_concurrency=options.max_concurrency, timeout_s=options.timeout_s, key=options.key
    ) as http:
        model = await choose_model(http, options.model)
        target = Target(options.endpoint, str(model["id"]), options.ignore_eos, options.temperature)
        requests = draw_requests(rng, options, vocab_size=_vocab_size(options, target, model))
        client = Client(http, target, clock)
        await _warm_up(client, requests, options.num_warmups)
        records, duration_s = await run_load(
            client.send,
            requests,
            arrivals_s,
            max_concurrency=options.max_concurrency,
            clock=clock,
            on_done=on_done,
        )
    figures = summarize(
        records,
        duration_s,
        goodput=options.goodput or {},
        metrics=options.metrics,
        percentiles=options.percentiles,
    )
    return LoadResult(records, _load(options, target.model) | figures)


async def choose_model(http: httpx.AsyncClient, model: str | None) -> Mapping[str, Any]:
    """The server's entry of this model, or of its first model; a bare name where the server lists none."""
    entries = await served_models(http)
    if model is None:
        if not entries:
            raise ConfigError(f"{http.base_url} lists no models; name one with --model")
        return entries[0]
    return next((entry for entry in entries if entry.get("id") == model), {"id": model})


async def _warm_up(client: Client, requests: tuple[BenchRequest, ...], num_warmups: int) -> None:
    for index in range(num_warmups):
        record = await client.send(requests[index % len(requests)])
        if record.error is not None:
            raise UnavailableError(f"a warm-up request failed: {record.error}")


def _vocab_size(options: LoadOptions, target: Target, model: Mapping[str, Any]) -> int | None:
    """None where prompts are words: a chat takes text."""
    if target.is_chat:
        return None
    meta = model.get("meta") or {}
    return options.vocab_size or model.get("vocab_size") or meta.get("n_vocab") or COMMON_VOCAB_SIZE


def draw_requests(
    rng: np.random.Generator, options: LoadOptions, *, vocab_size: int | None
) -> tuple[BenchRequest, ...]:
    source, num_prompts = PromptSource(vocab_size), options.num_prompts
    if options.dataset_name == "prefix_repetition":
        return prefix_repetition_requests(rng, source, num_prompts, options.prefix_repetition)
    if options.dataset_path is None or options.dataset_name == "random":
        return random_requests(rng, source, num_prompts, options.input_len, options.output_len)
    if options.dataset_name == "sharegpt":
        return sharegpt_requests(rng, options.dataset_path, num_prompts, options.text_output_len)
    output_len = options.text_output_len or options.output_len.mean
    return custom_requests(rng, options.dataset_path, num_prompts, output_len)


def _load(options: LoadOptions, model: str) -> dict[str, Any]:
    """What was asked, as it stands in front of the figures."""
    return {
        "date": datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
        "endpoint": options.endpoint,
        "model": model,
        "dataset_name": options.dataset_name,
        "num_prompts": options.num_prompts,
        "request_rate": "inf" if math.isinf(options.request_rate) else options.request_rate,
        "burstiness": options.burstiness,
        "max_concurrency": options.max_concurrency,
        "seed": options.seed,
        "ignore_eos": options.ignore_eos,
    }


def save_result(result: Mapping[str, Any], directory: Path, filename: str | None) -> Path:
    """Write the result as JSON; the default name says rate, concurrency, model and date."""
    name = filename or "{rate}qps-{concurrency}-{model}-{date}.json".format(
        rate=result["request_rate"],
        concurrency=f"concurrency{limit}" if (limit := result["max_concurrency"]) else "open",
        model=str(result["model"]).replace("/", "-"),
        date=result["date"],
    )
    path = directory / name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the result cannot be written to {path}: {error.strerror}") from error
    return path
