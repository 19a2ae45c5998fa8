"""`tinycluster bench serve | latency | throughput | perplexity`: options in, a table or a JSON object out.

Imports of what does the work stand inside the commands, so that `--help` and completion answer at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tinycluster.serve.bench.console import print_result, progress_bar, user_errors

if TYPE_CHECKING:
    from tinycluster.serve.bench.load import LoadOptions

bench_app = typer.Typer(help="Measure latency, throughput and accuracy.", no_args_is_help=True)


class Dataset(StrEnum):
    random = "random"
    sharegpt = "sharegpt"
    custom = "custom"
    prefix_repetition = "prefix_repetition"


@bench_app.command()
def serve(
    base_url: str = typer.Option("http://127.0.0.1:8000", help="The server, without the endpoint."),
    endpoint: str = typer.Option("/v1/completions", help="/v1/completions or /v1/chat/completions."),
    model: str | None = typer.Option(None, help="Model name; by default the first that the server lists."),
    dataset_name: Dataset = typer.Option(Dataset.random, help="Where prompts come from."),
    dataset_path: Path | None = typer.Option(None, help="File of the sharegpt (JSON) or custom (JSON Lines) dataset."),
    random_input_len: int = typer.Option(1024, help="Tokens per prompt."),
    random_output_len: int = typer.Option(128, help="Tokens per answer."),
    random_range_ratio: float = typer.Option(0.0, help="Lengths vary by this share of the mean, in [0, 1)."),
    vocab_size: int | None = typer.Option(None, help="Random ids lie below this; by default the server's figure."),
    text_output_len: int | None = typer.Option(None, help="Tokens per answer of the sharegpt and custom datasets."),
    prefix_repetition_num_prefixes: int = typer.Option(10, help="Different prefixes."),
    prefix_repetition_prefix_len: int = typer.Option(256, help="Tokens per prefix."),
    prefix_repetition_suffix_len: int = typer.Option(256, help="Tokens per suffix."),
    prefix_repetition_output_len: int = typer.Option(128, help="Tokens per answer."),
    num_prompts: int = typer.Option(100, help="Requests to send."),
    request_rate: float = typer.Option(float("inf"), help="Requests per second; inf sends all at once."),
    burstiness: float = typer.Option(1.0, help="Shape of the gamma distribution of gaps; 1 is a Poisson process."),
    max_concurrency: int | None = typer.Option(None, help="Most requests at once (closed loop)."),
    num_warmups: int = typer.Option(0, help="Requests sent one by one before the measurement."),
    ignore_eos: bool = typer.Option(False, "--ignore-eos", help="Every answer has its full length."),
    temperature: float = typer.Option(0.0, help="Sampling temperature."),
    seed: int = typer.Option(0, help="Seed of prompts and arrivals."),
    goodput: list[str] = typer.Option([], help="Objectives in ms: ttft:200 tpot:50 e2el:3000."),
    more_goodput: list[str] = typer.Argument(None, metavar="", hidden=True),
    percentile_metrics: str = typer.Option("ttft,tpot,itl,e2el", help="Metrics in the result."),
    metric_percentiles: str = typer.Option("50,90,99", help="Percentiles in the result."),
    save_result: bool = typer.Option(False, "--save-result", help="Write the result as JSON."),
    result_dir: Path = typer.Option(Path("."), help="Folder of the saved result."),
    result_filename: str | None = typer.Option(None, help="Name of the saved result."),
    plot: Path | None = typer.Option(None, help="Write the latency distributions as a PNG."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object instead of tables."),
) -> None:
    """Load an OpenAI-compatible server and measure TTFT, TPOT, ITL, end-to-end latency and throughput."""
    given = dict(locals())
    with user_errors():
        result = _run_load(given)
    if result["completed"] == 0:
        raise typer.Exit(1)


def _run_load(given: Mapping[str, Any]) -> Mapping[str, Any]:
    import asyncio
    import time

    from rich.console import Console

    from tinycluster.serve.bench.load import run, save_result
    from tinycluster.serve.bench.plot import check_plot, plot_latencies
    from tinycluster.serve.bench.report import print_load

    options = _load_options(given)
    if given["plot"] is not None:
        check_plot(given["plot"])
    with progress_bar("requests", options.num_prompts, hidden=given["as_json"]) as on_done:
        load = asyncio.run(run(options, clock=time.perf_counter, on_done=on_done))
    if given["as_json"]:
        typer.echo(json.dumps(load.summary))
    else:
        print_load(Console(), load.summary)
    if given["save_result"]:
        path = save_result(load.summary, given["result_dir"], given["result_filename"])
        typer.echo(f"saved {path}", err=True)
    if given["plot"] is not None:
        plot_latencies(given["plot"], load.records, load.summary, options.percentiles)
    return load.summary


def _load_options(given: Mapping[str, Any]) -> LoadOptions:
    from tinycluster.serve.bench.load import LoadOptions
    from tinycluster.serve.bench.metrics import parse_goodput, parse_metrics, parse_percentiles
    from tinycluster.serve.bench.workload import LengthRange, PrefixRepetition

    same_name = {field.name: given[field.name] for field in fields(LoadOptions) if field.name in given}
    built = {
        "input_len": LengthRange(given["random_input_len"], given["random_range_ratio"]),
        "output_len": LengthRange(given["random_output_len"], given["random_range_ratio"]),
        "prefix_repetition": PrefixRepetition(**_with_prefix("prefix_repetition_", given)),
        "goodput": parse_goodput([*given["goodput"], *(given["more_goodput"] or ())]),
        "metrics": parse_metrics(given["percentile_metrics"]),
        "percentiles": parse_percentiles(given["metric_percentiles"]),
    }
    return LoadOptions(**same_name | built)


def _with_prefix(prefix: str, given: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}


CONFIG = typer.Argument(help="The configuration file.")
MODEL = typer.Option(None, help="Name of the model; by default the first of the file.")
LOCAL = typer.Option(False, "--local", help="Ranks are threads of this process; no Ray.")
TENSOR = typer.Option(None, help="Tensor-parallel ranks.")
PIPELINE = typer.Option(None, help="Pipeline stages.")
WEIGHTS = typer.Option(None, help="Weight format: stored, f32, bf16, f16, q8 or q4.")
SET = typer.Option([], "--set", help="Override one setting: key=value.")
INPUT_LEN = typer.Option(32, help="Tokens per prompt.")
OUTPUT_LEN = typer.Option(128, help="Tokens per answer.")
WARMUPS = typer.Option(1, help="Iterations that are not measured.")
ITERATIONS = typer.Option(5, help="Measured iterations.")
SEED = typer.Option(0, help="Seed of the prompts.")
JSON = typer.Option(False, "--json", help="Print one JSON object instead of a table.")


@bench_app.command()
def latency(
    config: Path = CONFIG,
    model: str | None = MODEL,
    local: bool = LOCAL,
    tensor: int | None = TENSOR,
    pipeline: int | None = PIPELINE,
    weights: str | None = WEIGHTS,
    settings: list[str] = SET,
    batch_size: str = typer.Option("1,4,16", help="Requests per batch; several sizes between commas."),
    input_len: int = INPUT_LEN,
    output_len: int = OUTPUT_LEN,
    num_iters_warmup: int = WARMUPS,
    num_iters: int = ITERATIONS,
    metric_percentiles: str = typer.Option("50,90,99", help="Percentiles of a batch's seconds."),
    seed: int = SEED,
    as_json: bool = JSON,
) -> None:
    """Measure prefill and decode tokens per second of batches, with an engine in this process."""
    from tinycluster.serve.bench import latency as bench
    from tinycluster.serve.bench.batch import Lengths, MeshFlags, measure
    from tinycluster.serve.bench.metrics import parse_percentiles

    with user_errors():
        options = bench.LatencyOptions(
            batch_sizes=bench.parse_batch_sizes(batch_size),
            lengths=Lengths(input_len, output_len),
            num_warmups=num_iters_warmup,
            num_iterations=num_iters,
            percentiles=parse_percentiles(metric_percentiles),
            seed=seed,
        )
        flags = MeshFlags(local, tensor, pipeline, weights, tuple(settings))
        result = measure(config, model, flags, options, bench.run, hidden=as_json)
        print_result(result, bench.table, as_json=as_json)


@bench_app.command()
def throughput(
    config: Path = CONFIG,
    model: str | None = MODEL,
    local: bool = LOCAL,
    tensor: int | None = TENSOR,
    pipeline: int | None = PIPELINE,
    weights: str | None = WEIGHTS,
    settings: list[str] = SET,
    num_prompts: int = typer.Option(16, help="Requests at once."),
    input_len: int = INPUT_LEN,
    output_len: int = OUTPUT_LEN,
    num_iters_warmup: int = WARMUPS,
    num_iters: int = ITERATIONS,
    seed: int = SEED,
    as_json: bool = JSON,
) -> None:
    """Measure output tokens per second of many requests at once, and their ratio to one request."""
    from tinycluster.serve.bench import throughput as bench
    from tinycluster.serve.bench.batch import Lengths, MeshFlags, measure

    with user_errors():
        lengths = Lengths(input_len, output_len)
        options = bench.ThroughputOptions(num_prompts, lengths, num_iters_warmup, num_iters, seed)
        flags = MeshFlags(local, tensor, pipeline, weights, tuple(settings))
        result = measure(config, model, flags, options, bench.run, hidden=as_json)
        print_result(result, bench.table, as_json=as_json)


@bench_app.command()
def perplexity(
    config: Path = CONFIG,
    model: str | None = MODEL,
    text: Path = typer.Option(Path("tests/serve/data/alice.txt"), help="The text to predict, UTF-8."),
    weights: str = typer.Option("stored,q8,q4", help="Formats between commas; f32 is always measured first."),
    window: int = typer.Option(512, help="Tokens of each window; windows do not overlap."),
    max_tokens: int | None = typer.Option(None, help="Use only the first tokens of the text."),
    threads: int | None = typer.Option(None, help="Threads; by default every core."),
    settings: list[str] = SET,
    as_json: bool = JSON,
) -> None:
    """Measure a text's perplexity under each weight format, against float32 arithmetic on the same weights."""
    from tinycluster.serve.bench import perplexity_formats as bench

    with user_errors():
        options = bench.PerplexityOptions(text, bench.parse_formats(weights), window, max_tokens, threads)
        result = bench.run(config, model, tuple(settings), options, hidden=as_json)
        print_result(result, bench.table, as_json=as_json)
