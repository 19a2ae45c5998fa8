"""`tinycluster bench kernels | peers | growth`: how fast, beside what is possible, beside others, and at what size."""

from __future__ import annotations

from typing import Annotated

import typer

from tinycluster.serve.bench.options import IterationsOption, JsonOption, ModelOption, parse_names, parse_numbers
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
