"""`tinycluster bench kernels | peers | growth`: how fast, beside what is possible, beside others, and at what size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinycluster.serve.bench.options import (
    IterationsOption,
    JsonOption,
    ModelOption,
    OutputLenOption,
    SeedOption,
    WarmupsOption,
    parse_names,
    parse_numbers,
)
from tinycluster.serve.console import own_stdout
from tinycluster.serve.options import (
    ConfigArgument,
    LocalOption,
    PipelineOption,
    SetOption,
    TensorOption,
    WeightsOption,
    load,
    mesh_overrides,
)


def kernels(
    config: ConfigArgument,
    model: ModelOption = None,
    op: Annotated[str | None, typer.Option(help="Ops between commas; by default all.")] = None,
    weight_format: Annotated[
        str | None, typer.Option("--format", help="Formats of matrices between commas; by default all.")
    ] = None,
    tokens: Annotated[str, typer.Option(help="Tokens of a step, several numbers between commas.")] = "1,4,16,64,512",
    threads: Annotated[int | None, typer.Option(help="By default one per core.")] = None,
    isa: Annotated[str, typer.Option(help="Instruction set; auto is the best of this machine.")] = "auto",
    num_iters: IterationsOption = 5,
    as_json: JsonOption = False,
    tensor: TensorOption = None,
    assignments: SetOption = None,
) -> None:
    """Check and time every op at the model's shapes, beside what this machine's memory and arithmetic give at most.

    Exit code 1 if a result is not that of its definition.
    """
    import time

    from tinycluster.serve.bench.console import print_result
    from tinycluster.serve.bench.kernels import run as bench

    options = bench.KernelOptions(
        parse_names(op), parse_names(weight_format), parse_numbers(tokens, "--tokens"), threads, isa, num_iters
    )
    settings = load(config, mesh_overrides(False, tensor, None, None), assignments)
    with own_stdout() as out:
        result = bench.run(settings, model, options, time.perf_counter, hidden=as_json)
        print_result(out, result, bench.table, as_json=as_json)
    if result["num_wrong"]:
        raise typer.Exit(1)


def peers(
    config: ConfigArgument,
    model: ModelOption = None,
    peers: Annotated[str, typer.Option(help="llama.cpp, transformers, or both between commas.")] = "llama.cpp",
    weights: Annotated[str, typer.Option(help="stored, q4, q8 or bf16, several between commas.")] = "stored",
    rounds: Annotated[int, typer.Option(help="Measured rounds; in each, every engine has its turn.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Of every engine; by default one per core.")] = None,
    input_len: Annotated[int, typer.Option(help="Tokens of the prefill.")] = 512,
    output_len: Annotated[int, typer.Option(help="Tokens of the answer of one request alone.")] = 128,
    num_prompts: Annotated[int, typer.Option(help="Requests together.")] = 32,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    assignments: SetOption = None,
) -> None:
    """Compare with other engines on the same model file and requests, in turn; prints a Markdown table.

    Needs the extra `peers`: pip install 'tinycluster[peers]'.
    """
    import json

    from tinycluster.serve.bench.peers import run as bench

    options = bench.PeerOptions(
        parse_names(peers), parse_names(weights), rounds, threads, input_len, output_len, num_prompts, seed
    )
    settings = load(config, {"cluster.address": "local"}, assignments)
    with own_stdout() as out:
        result = bench.run(settings, model, options, source=(config, assignments or ()), hidden=as_json)
        print(json.dumps(result) if as_json else bench.markdown(result), file=out)


def growth(
    config: ConfigArgument,
    model: ModelOption = None,
    num_prompts: Annotated[str, typer.Option(help="Requests together, growing numbers between commas.")] = (
        "1,2,4,8,16,32,64"
    ),
    input_lens: Annotated[str, typer.Option(help="Tokens of one prompt, growing numbers between commas.")] = (
        "16,32,64,128,256,512,1024,2048,4096"
    ),
    output_len: OutputLenOption = 32,
    num_iters_warmup: WarmupsOption = 1,
    num_iters: IterationsOption = 3,
    seed: SeedOption = 0,
    plot: Annotated[Path | None, typer.Option(help="Write the curves as a PNG or SVG.")] = None,
    as_json: JsonOption = False,
    local: LocalOption = False,
    tensor: TensorOption = None,
    pipeline: PipelineOption = None,
    weights: WeightsOption = None,
    assignments: SetOption = None,
) -> None:
    """Measure decode against the number of requests, and prefill and decode against the length before them.

    Sets limits.max_running and limits.max_model_len so that all of it fits.
    """
    from tinycluster.serve.bench import growth as bench
    from tinycluster.serve.bench.batch import measure
    from tinycluster.serve.bench.console import print_result
    from tinycluster.serve.bench.growth_plot import check_growth_plot, plot_growth

    counts, sizes = parse_numbers(num_prompts, "--num-prompts"), parse_numbers(input_lens, "--input-lens")
    options = bench.GrowthOptions(counts, sizes, output_len, num_iters_warmup, num_iters, seed)
    if plot is not None:
        check_growth_plot(plot)
    settings = load(config, mesh_overrides(local, tensor, pipeline, weights) | options.limits, assignments)
    with own_stdout() as out:
        result = measure(settings, model, options, bench.run, hidden=as_json)
        print_result(out, result, bench.table, as_json=as_json)
    if plot is not None:
        plot_growth(plot, result)
