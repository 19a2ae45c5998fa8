"""What a rank did in each of its steps, for a trace: recorded by the rank, sent to the driver when tracing ends.

timeline   clock_ns i64, bytes of the names u32, steps u32, spans u32, then names, steps, spans
step       step_id u64, requests u32, tokens u32, wait_start_ns i64, start_ns i64, end_ns i64, spans u32
span       name u16, kind u8, start_ns i64, end_ns i64
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from tinycluster.cluster.messages import EncodedTimeline, ProtocolError
from tinycluster.cluster.rank_clock import RankClock
from tinycluster.engine.request import StepPlan
from tinycluster.kernels.executor import SPAN_KINDS, Span

_HEAD = struct.Struct("<qIII")
_STEP = struct.Struct("<QIIqqqI")
_SPAN = struct.Struct("<HBqq")
_OTHER_CLOCK_NS = 10**9


@dataclass(frozen=True)
class TracedStep:
    """One step of one rank on CLOCK_MONOTONIC. `spans` lie inside it, in order; between them Python ran."""

    step_id: int
    num_requests: int
    num_tokens: int
    wait_start_ns: int
    """From here on the rank had nothing to do but wait for the step's plan."""
    start_ns: int
    end_ns: int
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Timeline:
    """The steps of one rank; `clock_ns` is what its clock said when it sent them."""

    clock_ns: int
    steps: tuple[TracedStep, ...]

    def on_clock(self, now_ns: int) -> Timeline:
        """As the reader's clock saw it, which says `now_ns` when the timeline arrives.

        On one machine all processes have one clock and nothing is changed. Another machine's clock starts at another
        time; the steps are then moved by the difference, which is as exact as the message was fast.
        """
        ahead_ns = self.clock_ns - now_ns
        if abs(ahead_ns) < _OTHER_CLOCK_NS:
            return self
        return Timeline(now_ns, tuple(_moved(step, -ahead_ns) for step in self.steps))


def _moved(step: TracedStep, by_ns: int) -> TracedStep:
    return replace(
        step,
        wait_start_ns=step.wait_start_ns + by_ns,
        start_ns=step.start_ns + by_ns,
        end_ns=step.end_ns + by_ns,
        spans=tuple(replace(s, start_ns=s.start_ns + by_ns, end_ns=s.end_ns + by_ns) for s in step.spans),
    )


class Traceable(Protocol):
    """The part of a runner that a recorder needs."""

    def set_tracing(self, on: bool) -> None: ...
    def take_timeline(self) -> list[Span]: ...


class StepRecorder:
    """A rank's steps while tracing is on; its clock is told of all of them."""

    def __init__(self, runner: Traceable, clock: RankClock) -> None:
        self._runner, self._clock, self._is_on = runner, clock, False
        self._steps: list[TracedStep] = []
        self._idle_since_ns = 0

    def start(self) -> None:
        self._runner.set_tracing(True)
        self._steps, self._is_on, self._idle_since_ns = [], True, time.monotonic_ns()

    def stop(self) -> Timeline:
        self._runner.set_tracing(False)
        self._is_on = False
        return Timeline(time.monotonic_ns(), tuple(self._steps))

    @contextmanager
    def step(self, plan: StepPlan) -> Iterator[None]:
        """Around everything that a rank does for a plan."""
        start_ns = time.monotonic_ns()
        self._clock.begin(start_ns)
        yield
        spans = tuple(self._runner.take_timeline()) if self._is_on else ()
        end_ns = time.monotonic_ns()
        self._clock.end(end_ns)
        if self._is_on:
            counts = (len(plan.rows), sum(len(row.tokens) for row in plan.rows))
            self._steps.append(TracedStep(plan.step_id, *counts, self._idle_since_ns, start_ns, end_ns, spans))
            self._idle_since_ns = end_ns


def encode_timeline(timeline: Timeline) -> EncodedTimeline:
    spans = [span for step in timeline.steps for span in step.spans]
    index = {name: number for number, name in enumerate(dict.fromkeys(span.name for span in spans))}
    names = "\n".join(index).encode()
    parts = [_HEAD.pack(timeline.clock_ns, len(names), len(timeline.steps), len(spans)), names]
    parts += [
        _STEP.pack(s.step_id, s.num_requests, s.num_tokens, s.wait_start_ns, s.start_ns, s.end_ns, len(s.spans))
        for s in timeline.steps
    ]
    parts += [_SPAN.pack(index[s.name], SPAN_KINDS.index(s.kind), s.start_ns, s.end_ns) for s in spans]
    return EncodedTimeline(b"".join(parts))


def decode_timeline(message: EncodedTimeline) -> Timeline:
    """ProtocolError for anything that `encode_timeline` does not write."""
    try:
        return _decode(message.payload)
    except (struct.error, UnicodeDecodeError, IndexError):
        raise ProtocolError("a timeline does not fit its counts") from None


def _decode(payload: bytes) -> Timeline:
    clock_ns, num_name_bytes, num_steps, num_spans = _HEAD.unpack_from(payload)
    names_end = _HEAD.size + num_name_bytes
    steps_end = names_end + num_steps * _STEP.size
    if len(payload) != steps_end + num_spans * _SPAN.size:
        raise ProtocolError("a timeline does not fit its counts")
    names = payload[_HEAD.size : names_end].decode().split("\n")
    spans = [
        Span(names[name], SPAN_KINDS[kind], start_ns, end_ns)
        for name, kind, start_ns, end_ns in _SPAN.iter_unpack(payload[steps_end:])
    ]
    steps, at = [], 0
    for id_, requests, tokens, wait_start_ns, start_ns, end_ns, num_own in _STEP.iter_unpack(
        payload[names_end:steps_end]
    ):
        own = tuple(spans[at : at + num_own])
        steps.append(TracedStep(id_, requests, tokens, wait_start_ns, start_ns, end_ns, own))
        at += num_own
    if at != num_spans:
        raise ProtocolError("a timeline does not fit its counts")
    return Timeline(clock_ns, tuple(steps))
