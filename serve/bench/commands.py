"""`tinycluster bench serve | latency | throughput | perplexity | ...`: options in, a table or a JSON object out.

Imports of what does the work stand inside the commands, so that `--help` and completion answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinycluster.serve.bench.options import (
    InputLenOption,
    IterationsOption,
    JsonOption,
    ModelOption,
    OutputLenOption,
    SeedOption,
    WarmupsOption,
    parse_numbers,
)
from tinycluster.serve.bench.speed_commands import growth, kernels, peers
from tinycluster.serve.console import own_stdout
from tinycluster.serve.options import (
    ConfigArgument,
    KeyFileOption,
    LocalOption,
    PipelineOption,
    SetOption,
    TensorOption,
    WeightsOption,
    api_key,
    load,
    mesh_overrides,
)

if TYPE_CHECKING:
    from tinycluster.serve.bench.load import LoadOptions

bench_app = typer.Typer(help="Measure latency, throughput and accuracy.", no_args_is_help=True)
bench_app.command()(kernels)
bench_app.command()(peers)
bench_app.command()(growth)


class Dataset(StrEnum):
    random = "random"
    sharegpt = "sharegpt"
    custom = "custom"
    prefix_repetition = "prefix_repetition"


@bench_app.command()
def serve(
    base_url: str = typer.Option("http://127.0.0.1:8000", help="The server, without the endpoint."),
    endpoint: str = typer.Option("/v1/completions", help="/v1/completions or /v1/chat/completions."),
    api_key_file: KeyFileOption = None,
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
    if _run_load(dict(locals()))["completed"] == 0:
        raise typer.Exit(1)


def _run_load(given: Mapping[str, Any]) -> Mapping[str, Any]:
    import asyncio
    import time

    from tinycluster.serve.bench.console import print_result, progress_bar
    from tinycluster.serve.bench.load import run, save_result
    from tinycluster.serve.bench.plot import check_plot, plot_latencies
    from tinycluster.serve.bench.report import load_table

    options = _load_options(given)
    if given["plot"] is not None:
        check_plot(given["plot"])
    with progress_bar("requests", options.num_prompts, hidden=given["as_json"]) as on_done:
        outcome = asyncio.run(run(options, clock=time.perf_counter, on_done=on_done))
    print_result(sys.stdout, outcome.summary, load_table, as_json=given["as_json"])
    if given["save_result"]:
        path = save_result(outcome.summary, given["result_dir"], given["result_filename"])
        typer.echo(f"saved {path}", err=True)
    if given["plot"] is not None:
        plot_latencies(given["plot"], outcome.records, outcome.summary, options.percentiles)
    return outcome.summary


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
        "key": api_key(given["api_key_file"]),
    }
    return LoadOptions(**same_name | built)


def _with_prefix(prefix: str, given: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}


@bench_app.command()
def latency(
    config: ConfigArgument,
    model: ModelOption = None,
    batch_size: Annotated[str, typer.Option(help="Requests per batch; several sizes between commas.")] = "1,4,16",
    input_len: InputLenOption = 32,
    output_len: OutputLenOption = 128,
    num_iters_warmup: WarmupsOption = 1,
    num_iters: IterationsOption = 5,
    metric_percentiles: Annotated[str, typer.Option(help="Percentiles of a batch's time.")] = "50,90,99",
    seed: SeedOption = 0,
    trace: Annotated[
        Path | None, typer.Option(help="Write what every rank did in one more batch, for Chrome's trace viewer.")
    ] = None,
    as_json: JsonOption = False,
    local: LocalOption = False,
    tensor: TensorOption = None,
    pipeline: PipelineOption = None,
    weights: WeightsOption = None,
    assignments: SetOption = None,
) -> None:
    """Measure prefill and decode tokens per second of batches, with an engine in this process."""
    from tinycluster.serve.bench import latency as bench
    from tinycluster.serve.bench.batch import Lengths, measure
    from tinycluster.serve.bench.console import print_result
    from tinycluster.serve.bench.metrics import parse_percentiles

    sizes, percentiles = parse_numbers(batch_size, "--batch-size"), parse_percentiles(metric_percentiles)
    lengths = Lengths(input_len, output_len)
    options = bench.LatencyOptions(sizes, lengths, num_iters_warmup, num_iters, percentiles, seed, trace)
    settings = load(config, mesh_overrides(local, tensor, pipeline, weights), assignments)
    with own_stdout() as out:
        result = measure(settings, model, options, bench.run, hidden=as_json)
        print_result(out, result, bench.table, as_json=as_json)


@bench_app.command()
def throughput(
    config: ConfigArgument,
    model: ModelOption = None,
    num_prompts: Annotated[int, typer.Option(help="Requests at once.")] = 16,
    input_len: InputLenOption = 32,
    output_len: OutputLenOption = 128,
    num_iters_warmup: WarmupsOption = 1,
    num_iters: IterationsOption = 5,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    local: LocalOption = False,
    tensor: TensorOption = None,
    pipeline: PipelineOption = None,
    weights: WeightsOption = None,
    assignments: SetOption = None,
) -> None:
    """Measure output tokens per second of many requests at once, and their ratio to one request."""
    from tinycluster.serve.bench import throughput as bench
    from tinycluster.serve.bench.batch import Lengths, measure
    from tinycluster.serve.bench.console import print_result

    lengths = Lengths(input_len, output_len)
    options = bench.ThroughputOptions(num_prompts, lengths, num_iters_warmup, num_iters, seed)
    settings = load(config, mesh_overrides(local, tensor, pipeline, weights), assignments)
    with own_stdout() as out:
        result = measure(settings, model, options, bench.run, hidden=as_json)
        print_result(out, result, bench.table, as_json=as_json)


@bench_app.command()
def perplexity(
    config: ConfigArgument,
    model: ModelOption = None,
    text: Annotated[Path, typer.Option(help="The text to predict, UTF-8.")] = Path("tests/serve/data/alice.txt"),
    weights: Annotated[str, typer.Option(help="Formats between commas; f32 always comes first.")] = "stored,q8,q4",
    window: Annotated[int, typer.Option(help="Tokens of each window; windows do not overlap.")] = 512,
    max_tokens: Annotated[int | None, typer.Option(help="Use only the first tokens of the text.")] = None,
    threads: Annotated[int | None, typer.Option(help="By default one per core.")] = None,
    as_json: JsonOption = False,
    assignments: SetOption = None,
) -> None:
    """Measure a text's perplexity under each weight format, against float32 arithmetic on the same weights."""
    from tinycluster.serve.bench import perplexity_formats as bench
    from tinycluster.serve.bench.console import print_result

    options = bench.PerplexityOptions(text, bench.parse_formats(weights), window, max_tokens, threads)
    settings = load(config, {}, assignments)
    with own_stdout() as out:
        result = bench.run(settings, model, options, hidden=as_json)
        print_result(out, result, bench.table, as_json=as_json)
