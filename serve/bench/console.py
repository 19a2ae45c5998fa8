"""What every benchmark does on the terminal: errors as sentences, progress on standard error, a table or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.progress import Progress

from tinycluster.engine.errors import TinyclusterError


@contextmanager
def user_errors() -> Iterator[None]:
    """A mistake of the user's ends the command with one sentence and exit code 2."""
    try:
        yield
    except TinyclusterError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


@contextmanager
def progress_bar(label: str, total: int, *, hidden: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, so that standard output holds only the result; call what is yielded with the steps."""
    console = Console(stderr=True)
    with Progress(console=console, disable=hidden or not console.is_terminal, transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda steps: progress.advance(task, steps)


def print_result(result: dict[str, Any], table: Callable[[dict[str, Any]], RenderableType], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result))
    else:
        Console().print(table(result))
