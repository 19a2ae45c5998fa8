"""Ctrl-C and SIGTERM end the server in order, and in bounded time."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_WITHIN_S = 9.0
"""After a signal the process ends in this time, whatever still hangs."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal(BaseException):
    """SIGINT or SIGTERM, raised in the main thread wherever it is; `finally` blocks run."""


def raise_on_signals() -> None:
    """The first SIGINT or SIGTERM raises StopSignal; later ones change nothing, because the end is bounded."""
    for number in _SIGNALS:
        signal.signal(number, _stop)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """`raise_on_signals` inside, what was before outside."""
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    raise_on_signals()
    try:
        yield
    finally:
        for number, action in previous.items():
            signal.signal(number, action)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """SIGTERM inside is SystemExit, so that `finally` blocks run: by default it would leave children and files."""

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _stop(_number: int, _frame: FrameType | None) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    watchdog = threading.Timer(STOP_WITHIN_S, os._exit, (0,))
    watchdog.daemon = True
    watchdog.start()
    raise StopSignal
