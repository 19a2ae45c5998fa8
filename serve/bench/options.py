"""Options that several benchmarks share."""

from __future__ import annotations

from typing import Annotated

import typer

ModelOption = Annotated[str | None, typer.Option(help="By default the first of the file.")]
InputLenOption = Annotated[int, typer.Option(help="Tokens per prompt.")]
OutputLenOption = Annotated[int, typer.Option(help="Tokens per answer.")]
WarmupsOption = Annotated[int, typer.Option(help="Iterations that are not measured.")]
IterationsOption = Annotated[int, typer.Option(help="Measured iterations.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the prompts.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """`1,4,16` as numbers. ConfigError."""
    from tinycluster.engine.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"{option} takes whole numbers between commas, got {text!r}") from error


def parse_names(text: str | None) -> tuple[str, ...]:
    """`q8,q4` as names; None is no name."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
