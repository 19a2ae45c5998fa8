"""`tinycluster`: the command line. What does the work is imported inside the commands: --help must answer at once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import tinycluster
from tinycluster.engine.errors import TinyclusterError, UnavailableError
from tinycluster.serve.bench.commands import bench_app
from tinycluster.serve.cluster_commands import add_cluster_commands
from tinycluster.serve.key_commands import keys_app
from tinycluster.serve.options import (
    CaOption,
    ConfigArgument,
    KeyFileOption,
    LocalOption,
    PipelineOption,
    SetOption,
    TensorOption,
    WeightsOption,
    api_key,
    authorization,
    load,
    mesh_overrides,
    trust,
)
from tinycluster.serve.signals import exit_on_sigterm

app = typer.Typer(
    help="One language model, spread over whatever machines you have, behind an OpenAI-compatible API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(bench_app, name="bench")
app.add_typer(keys_app, name="keys")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(tinycluster.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version)] = False,
) -> None:
    pass


@app.command()
def serve(
    config: ConfigArgument,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    front: Annotated[str | None, typer.Option(help="direct, or proxy for Ray Serve's own HTTP proxy.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without keys.")] = False,
    local: LocalOption = False,
    tensor: TensorOption = None,
    pipeline: PipelineOption = None,
    weights: WeightsOption = None,
    assignments: SetOption = None,
) -> None:
    """Serve the models of CONFIG until Ctrl-C."""
    from tinycluster.serve.serving import run_server

    server = {"server.host": host, "server.port": port, "server.front": front, "server.insecure": insecure or None}
    overrides = {key: value for key, value in server.items() if value is not None}
    run_server(load(config, {**overrides, **mesh_overrides(local, tensor, pipeline, weights)}, assignments))


@app.command()
def generate(
    config: ConfigArgument,
    prompt: Annotated[str, typer.Option(help="The text; it goes through the model's chat template.")],
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text itself, without the chat template.")] = False,
    max_tokens: Annotated[int, typer.Option(metavar="N")] = 256,
    temperature: Annotated[float | None, typer.Option(metavar="T", help="0 takes the most likely token.")] = None,
    top_p: Annotated[float | None, typer.Option(metavar="P")] = None,
    top_k: Annotated[int | None, typer.Option(metavar="K", help="0 is off.")] = None,
    min_p: Annotated[float | None, typer.Option(metavar="P")] = None,
    seed: Annotated[int | None, typer.Option(metavar="S")] = None,
    presence_penalty: Annotated[float, typer.Option(metavar="P")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(metavar="P")] = 0.0,
    repetition_penalty: Annotated[float | None, typer.Option(metavar="P", help="1 is off.")] = None,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End here; may be repeated.")] = None,
    json_schema: Annotated[Path | None, typer.Option(metavar="FILE", help="The answer is JSON of this schema.")] = None,
    regex: Annotated[str | None, typer.Option(metavar="PATTERN", help="The whole answer matches it.")] = None,
    grammar: Annotated[Path | None, typer.Option(metavar="FILE", help="The answer follows this EBNF.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One object with token ids and a digest of logits.")] = False,
    local: LocalOption = False,
    tensor: TensorOption = None,
    pipeline: PipelineOption = None,
    weights: WeightsOption = None,
    assignments: SetOption = None,
) -> None:
    """Answer one prompt without a server; the text is printed as it comes. CONFIG and the model say how tokens are
    chosen where no option does."""
    from tinycluster.serve.generate import generate, rules_given

    options = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "max_tokens": max_tokens,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "stop": tuple(stop or ()),
        "ignore_eos": ignore_eos,
        "return_logits_digest": as_json,
    }
    given = {name: value for name, value in options.items() if value is not None}
    rules = rules_given(json_schema, regex, grammar)
    settings = load(config, mesh_overrides(local, tensor, pipeline, weights), assignments)
    generate(settings, prompt, given, rules, raw=raw, as_json=as_json)


@app.command()
def chat(
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="By default the first that the server lists.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    temperature: Annotated[float | None, typer.Option()] = None,
    max_tokens: Annotated[int | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    api_key_file: KeyFileOption = None,
    ca: CaOption = None,
) -> None:
    """Talk to a running server: /clear, /system TEXT, /exit."""
    from tinycluster.serve.chat import Access, chat

    options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    access = Access(authorization(api_key(api_key_file)), trust(ca))
    chat(url, model, system, {key: value for key, value in options.items() if value is not None}, access)


@app.command()
def config(
    config: ConfigArgument,
    local: LocalOption = False,
    tensor: TensorOption = None,
    pipeline: PipelineOption = None,
    weights: WeightsOption = None,
    assignments: SetOption = None,
) -> None:
    """Print the settings that CONFIG and the options make, with every default, as JSON."""
    settings = load(config, mesh_overrides(local, tensor, pipeline, weights), assignments)
    print(json.dumps(settings.model_dump(mode="json", by_alias=True), indent=2))


@app.command()
def explain(
    config: ConfigArgument,
    rank: Annotated[int, typer.Option(metavar="R", help="Whose plan.")] = 0,
    model: Annotated[str | None, typer.Option(help="By default the first of CONFIG.")] = None,
    tensor: TensorOption = None,
    pipeline: PipelineOption = None,
    weights: WeightsOption = None,
    assignments: SetOption = None,
) -> None:
    """Print what a rank runs in a step, before and after the passes: ops, buffers, bytes."""
    from tinycluster.serve.explain import print_plan

    print_plan(load(config, mesh_overrides(False, tensor, pipeline, weights), assignments), model, rank)


add_cluster_commands(app)


def main() -> None:
    """The entry point. Exit code 2 for a user's mistake, 1 for a fault of the cluster; one sentence on stderr."""
    try:
        with exit_on_sigterm():
            app()
    except TinyclusterError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, UnavailableError) else 2)
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not complain about it while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
