"""What a rank does around its Program, as spans for a trace."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tinycluster.kernels.executor import Span, SpanKind


class SpanRecorder:
    """Spans of one thread on CLOCK_MONOTONIC. Records nothing until it is on, but adds up what is spent waiting."""

    def __init__(self) -> None:
        self.is_on = False
        self._spans: list[Span] = []
        self._waited: tuple[int, int | None] = (0, None)

    @property
    def wait_ns(self) -> int:
        """So far, a wait that has not ended included; any thread may ask."""
        waited_ns, since_ns = self._waited
        return waited_ns if since_ns is None else waited_ns + max(time.monotonic_ns() - since_ns, 0)

    @contextmanager
    def span(self, name: str, kind: SpanKind = "compute") -> Iterator[None]:
        start_ns, waited_ns = time.monotonic_ns(), self._waited[0]
        if kind == "wait":
            self._waited = (waited_ns, start_ns)
        yield
        end_ns = time.monotonic_ns()
        if kind == "wait":
            self._waited = (waited_ns + end_ns - start_ns, None)
        if self.is_on:
            self._spans.append(Span(name, kind, start_ns, end_ns))

    def take(self) -> list[Span]:
        """Those since the last call."""
        spans, self._spans = self._spans, []
        return spans
