"""What every benchmark does on the terminal: progress on standard error, a table or JSON on standard output."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.progress import Progress

PIPE_WIDTH = 160


@contextmanager
def progress_bar(label: str, total: int | None, *, hidden: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, so that standard output holds only the result; call what is yielded with the steps.

    `total` None: nobody knows how many steps there will be.
    """
    console = Console(stderr=True)
    with Progress(console=console, disable=hidden or not console.is_terminal, transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda steps: progress.advance(task, steps)


def print_result(
    out: TextIO, result: dict[str, Any], render: Callable[[dict[str, Any]], RenderableType], *, as_json: bool
) -> None:
    if as_json:
        print(json.dumps(result), file=out)
    else:
        # A pipe has no width of its own, and a table that is cut to a guessed one loses figures.
        Console(file=out, width=None if out.isatty() else PIPE_WIDTH).print(render(result))
