"""`tinycluster bench kernels | peers | growth`: how fast, beside what is possible, beside others, and at what size."""

from __future__ import annotations

from typing import Annotated

import typer

from tinycluster.serve.bench.options import (
    IterationsOption,
    JsonOption,
    ModelOption,
    SeedOption,
    parse_names,
    parse_numbers,
)
from tinycluster.serve.console import own_stdout
from tinycluster.serve.options import ConfigArgument, SetOption, TensorOption, load, mesh_overrides


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
