"""Standard output that holds our own lines only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def own_stdout() -> Iterator[TextIO]:
    """The real stdout for us, while everyone else's prints go to stderr.

    A Ray driver prints to sys.stdout what Ray's daemons report, from a thread of its own, and nothing turns it off.
    """
    ours, sys.stdout = sys.stdout, sys.stderr
    try:
        yield ours
    finally:
        sys.stdout = ours


@contextmanager
def silence() -> Iterator[None]:
    """Drop everyone's prints: while we end Ray's workers, Ray reports each of them as a death."""
    ours = sys.stdout
    with open(os.devnull, "w") as nowhere:
        sys.stdout = nowhere
        try:
            yield
        finally:
            sys.stdout = ours
