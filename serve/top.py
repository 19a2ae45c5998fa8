"""`tinycluster status` and `tinycluster top`: the cluster at one moment, or live until q or Ctrl-C."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live

from tinycluster.engine.errors import TinyclusterError, UnavailableError
from tinycluster.serve.cluster_client import ClusterClient
from tinycluster.serve.cluster_screen import plain_lines, screen

HINT = "q ends"
ENDS = frozenset(b"qQ\x04")
WAIT_S = 0.1


def show_status(client: ClusterClient, out: TextIO, *, as_json: bool) -> None:
    """One look. UnavailableError where a model has failed."""
    shown = client.snapshot()
    if as_json:
        print(json.dumps(shown, indent=2), file=out)
    elif out.isatty():
        console = Console(file=out)
        console.print(screen(shown, width=console.width))
    else:
        out.writelines(f"{line}\n" for line in plain_lines(shown))
    failed = [model["name"] for model in shown["models"] if model["state"] == "failed"]
    if failed:
        raise UnavailableError(f"{', '.join(failed)} failed; the server's log has the reason: tinycluster logs")


def show_live(client: ClusterClient, out: TextIO) -> None:
    """On a terminal a screen that is drawn anew each second; in a pipe a line per model and second."""
    if out.isatty() and sys.stdin.isatty():
        _show_screen(client, Console(file=out))
        return
    for shown in client.snapshots():
        out.writelines(f"{line}\n" for line in plain_lines(shown))
        out.flush()


def _show_screen(client: ClusterClient, console: Console) -> None:
    latest = _Latest(client)
    with (
        _interrupts() as interrupts,
        _single_keys() as pressed,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while not latest.is_over:
            if (shown := latest.take()) is not None:
                live.update(screen(shown, width=console.width, hint=HINT), refresh=True)
            if ENDS.intersection(pressed(WAIT_S)) or interrupts:
                return
    latest.raise_error()
    console.print("the server has ended")


class _Latest:
    """Reads snapshots in a thread: a key must not wait for the next one."""

    def __init__(self, client: ClusterClient) -> None:
        self._client = client
        self._shown: dict[str, Any] | None = None
        self._taken: dict[str, Any] | None = None
        self._error: TinyclusterError | None = None
        self.is_over = False
        threading.Thread(target=self._read, name="snapshots", daemon=True).start()

    def take(self) -> dict[str, Any] | None:
        """The newest, unless it was taken before."""
        shown = self._shown
        if shown is self._taken:
            return None
        self._taken = shown
        return shown

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _read(self) -> None:
        try:
            for shown in self._client.snapshots():
                self._shown = shown
        except TinyclusterError as error:
            self._error = error
        finally:
            self.is_over = True


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Those that have come. As an exception an interrupt may come where Python only reports it, in a destructor."""
    come: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: come.append(number))
    try:
        yield come
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _single_keys() -> Iterator[Callable[[float], bytes]]:
    """Keys come as they are pressed and are not echoed; gives a function that waits for some."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def pressed(wait_s: float) -> bytes:
        ready, _, _ = select.select([fd], [], [], wait_s)
        return os.read(fd, 1024) if ready else b""

    try:
        tty.setcbreak(fd)
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
