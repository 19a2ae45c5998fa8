"""`tinycluster status`, `top` and `logs`. What does the work is imported inside: --help must answer at once."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from tinycluster.serve.options import CaOption, KeyFileOption, api_key, trust

UrlOption = Annotated[str, typer.Option(help="The server.")]
HERE = "http://127.0.0.1:8000"


def status(
    url: UrlOption = HERE,
    api_key_file: KeyFileOption = None,
    ca: CaOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything that is known, as one object.")] = False,
) -> None:
    """Show a running server's models, ranks and nodes. Exit code 1 where one has failed or nobody answers."""
    from tinycluster.serve.cluster_client import ClusterClient
    from tinycluster.serve.top import show_status

    with ClusterClient(url, api_key(api_key_file), trust(ca)) as client:
        show_status(client, sys.stdout, as_json=as_json)


def top(url: UrlOption = HERE, api_key_file: KeyFileOption = None, ca: CaOption = None) -> None:
    """Follow a running server live; q or Ctrl-C ends. In a pipe: a line per model and second."""
    from tinycluster.serve.cluster_client import ClusterClient
    from tinycluster.serve.top import show_live

    with suppress(KeyboardInterrupt), ClusterClient(url, api_key(api_key_file), trust(ca)) as client:
        show_live(client, sys.stdout)


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written, until Ctrl-C.")] = False,
    rank: Annotated[int | None, typer.Option(metavar="R", help="Of a rank that ran on this machine.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --rank: of which model, where several have ranks.")
    ] = None,
    level: Annotated[str, typer.Option(help="From which level on: debug, info, warning, error.")] = "debug",
    lines: Annotated[int, typer.Option(metavar="N", min=0, help="How many of the last ones.")] = 100,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="By default the user's own; see telemetry.log_dir.")
    ] = None,
) -> None:
    """Print the log of the server, or of a rank."""
    from tinycluster.serve.log_reader import log_path, print_log

    with suppress(KeyboardInterrupt):
        print_log(log_path(folder, rank, model), sys.stdout, num_lines=lines, level=level, follows=follow)


def add_cluster_commands(app: typer.Typer) -> None:
    for command in (status, top, logs):
        app.command()(command)
