"""`tinycluster keys`: works on the database itself, also while servers use it."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tinycluster.serve.storage.keys import ApiKey, Keys

keys_app = typer.Typer(help="API keys, for server.auth: keys.", no_args_is_help=True)

ConfigOption = Annotated[str | None, typer.Option(metavar="CONFIG", help="Whose storage.url names the database.")]
UrlOption = Annotated[str | None, typer.Option(metavar="URL", help="The database; by default that of `serve`.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is, for people.")]
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600, "y": 365 * 24 * 3600}


@keys_app.command()
def create(
    name: Name,
    config: ConfigOption = None,
    storage_url: UrlOption = None,
    role: Annotated[str, typer.Option(help="user, or admin, who may also see the cluster and make keys.")] = "user",
    expires: Annotated[str | None, typer.Option(metavar="TIME", help="Like 12h, 30d or 1y; never by default.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(metavar="N")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(metavar="N", help="Of prompts and answers.")] = None,
    max_running: Annotated[int | None, typer.Option(metavar="N", help="Answers at once; a request of n has n.")] = None,
    weight: Annotated[float, typer.Option(metavar="W", help="2 gets twice of what 1 gets when all wait.")] = 1.0,
) -> None:
    """Make a key and print it, once: what is kept of it does not give it back."""
    from tinycluster.serve.fields import validated
    from tinycluster.serve.new_key import NewKey, create_key

    given: dict[str, Any] = {
        "name": name,
        "role": role,
        "expires_in": None if expires is None else _seconds(expires),
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_running": max_running,
        "weight": weight,
    }
    wanted = validated(NewKey, given)
    with _keys(config, storage_url, may_make=True) as keys:
        kept, text = asyncio.run(create_key(keys, wanted))
    print(f"{kept.id}, {kept.role} {kept.name}; the key is shown this once:", file=sys.stderr)
    print(text)


@keys_app.command("list")
def list_keys(
    config: ConfigOption = None,
    storage_url: UrlOption = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """All keys, also those that are revoked or have expired, by the last characters of each."""
    from tinycluster.serve.new_key import shown

    with _keys(config, storage_url) as keys:
        found = [shown(key, time.time() * 1000) for key in asyncio.run(keys.list())]
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _print_table(found)


@keys_app.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME|ID")],
    config: ConfigOption = None,
    storage_url: UrlOption = None,
) -> None:
    """End a key: servers refuse it within a second and end what it has running."""
    from tinycluster.serve.new_key import revoke_key

    with _keys(config, storage_url) as keys:
        revoked: ApiKey = asyncio.run(revoke_key(keys, name))
    print(f"revoked {revoked.id}, {revoked.role} {revoked.name}")


@contextmanager
def _keys(config: str | None, url: str | None, *, may_make: bool = False) -> Iterator[Keys]:
    """The keys of --storage-url, of CONFIG's storage.url, or of the user's own database. ConfigError, also where there
    is no such file and none may be made."""
    from tinycluster.engine.errors import ConfigError
    from tinycluster.serve.options import load
    from tinycluster.serve.storage.database import default_url
    from tinycluster.serve.storage.storage import open_storage

    if config is not None and url is not None:
        raise ConfigError("--config and --storage-url name two databases; give one of them")
    named = load(config, {}).storage.url if config is not None else url
    if named is not None and (not named.strip() or named == "memory"):
        raise ConfigError("storage.url must name a database for keys, which outlive a server")
    storage = open_storage(named or default_url(), may_make=may_make, is_checked=False)
    try:
        yield storage.keys
    finally:
        storage.close()


def _seconds(text: str) -> float:
    from tinycluster.engine.errors import ConfigError

    match = re.fullmatch(r"(\d{1,9})([smhdwy])", text.strip())
    if match is None:
        raise ConfigError(f"--expires must be a number with s, m, h, d, w or y, like 30d, got {text!r}")
    return int(match[1]) * SECONDS[match[2]]


def _print_table(found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "key", "role", "state", "created", "expires", "limits", "id", box=None)
    for key in found:
        limits = {"requests/min": "requests_per_minute", "tokens/min": "tokens_per_minute", "running": "max_running"}
        words = [f"{key[field]} {unit}" for unit, field in limits.items() if key[field] is not None]
        words += [f"weight {key['weight']:g}"] if key["weight"] != 1 else []
        cells = [key["name"], f"tc-…{key['hint']}", key["role"], key["state"], _day(key["created_at"])]
        table.add_row(*cells, _day(key["expires_at"]), ", ".join(words) or "-", key["id"])
    # Wide enough for a file or a pipe, where nothing tells the width.
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False, emoji=False)
    console.print(table)


def _day(seconds: int | None) -> str:
    return "never" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
