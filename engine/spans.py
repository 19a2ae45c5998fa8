"""What a rank does around its Program, as spans for a trace."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tinycluster.kernels.executor import Span, SpanKind


class SpanRecorder:
    """Spans of one thread on CLOCK_MONOTONIC. Records nothing until it is on."""

    def __init__(self) -> None:
        self.is_on = False
        self._spans: list[Span] = []

    @contextmanager
    def span(self, name: str, kind: SpanKind = "compute") -> Iterator[None]:
        start_ns = time.monotonic_ns()
        yield
        if self.is_on:
            self._spans.append(Span(name, kind, start_ns, time.monotonic_ns()))

    def take(self) -> list[Span]:
        """Those since the last call."""
        spans, self._spans = self._spans, []
        return spans
