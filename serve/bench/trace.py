"""What ranks did, as a file that chrome://tracing and ui.perfetto.dev open, and as shares of a decode step.

A lane per rank; in it, a slice per step and inside that one per op:

    rank 0 │ wait for the plan │ step 17 ─────────────────────────── │
           │                   │ pack │ op │ op │ wait │ op │ sample │
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinycluster.cluster.timeline import Timeline, TracedStep
from tinycluster.engine.errors import ConfigError

COLORS = {"compute": "thread_state_running", "communicate": "thread_state_iowait", "wait": "terrible"}
"""Names that the viewers know."""


def check_trace(path: Path) -> None:
    """ConfigError where no trace could be written, so that a run is not lost at its end."""
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--trace {path}: the folder {path.absolute().parent} does not exist")


def decode_shares(timelines: Sequence[Timeline]) -> dict[str, float]:
    """How ranks spend a decode step: waiting, communicating, and the rest, which counts as computing.

    A step lasts from the end of the one before, so waiting for its plan is part of it. Means over the ranks, and the
    share of the rank that waits most. Only steps that decode count, and not the first of the trace.
    """
    steps = [[step for step in timeline.steps[1:] if step.num_tokens == step.num_requests] for timeline in timelines]
    spent_ns = np.array([_spent_ns(of_rank) for of_rank in steps], np.float64)
    total_ns, plan_wait_ns, other_wait_ns, communicate_ns = spent_ns.T
    plan_waits, other_waits, communicates = np.array([plan_wait_ns, other_wait_ns, communicate_ns]) / np.maximum(
        total_ns, 1
    )
    waits = plan_waits + other_waits
    return {
        "traced_decode_steps": len(steps[0]),
        "decode_compute_share": float(np.mean(1 - waits - communicates)),
        "decode_communicate_share": float(np.mean(communicates)),
        "decode_wait_share": float(np.mean(waits)),
        "decode_plan_wait_share": float(np.mean(plan_waits)),
        "decode_longest_wait_share": float(np.max(waits)),
    }


def _spent_ns(steps: Sequence[TracedStep]) -> tuple[int, int, int, int]:
    """(all, waiting for plans, waiting for other ranks, communicating) of one rank."""
    by_kind = {"compute": 0, "communicate": 0, "wait": 0}
    for span in (span for step in steps for span in step.spans):
        by_kind[span.kind] += span.end_ns - span.start_ns
    total_ns = sum(step.end_ns - step.wait_start_ns for step in steps)
    plan_wait_ns = sum(step.start_ns - step.wait_start_ns for step in steps)
    return total_ns, plan_wait_ns, by_kind["wait"], by_kind["communicate"]


def write_trace(path: Path, name: str, recordings: Sequence[Sequence[Timeline]]) -> None:
    """`recordings` are timelines by rank, of one model. ConfigError where the file cannot be written."""
    try:
        path.write_text(json.dumps(chrome_trace(name, recordings)), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--trace {path}: {error.strerror}") from error


def chrome_trace(name: str, recordings: Sequence[Sequence[Timeline]]) -> dict[str, Any]:
    """The "JSON Object Format" of Chrome's trace viewer: complete events in microseconds, nested by their times."""
    all_steps = [step for timelines in recordings for timeline in timelines for step in timeline.steps]
    origin_ns = min((step.wait_start_ns for step in all_steps), default=0)
    events = [_named("process_name", 0, name=name)]
    for rank in range(max(map(len, recordings), default=0)):
        events += [_named("thread_name", rank, name=f"rank {rank}"), _named("thread_sort_index", rank, sort_index=rank)]
    for timelines in recordings:
        for rank, timeline in enumerate(timelines):
            for step in timeline.steps:
                events += _step_events(step, rank, origin_ns)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _step_events(step: TracedStep, rank: int, origin_ns: int) -> Iterator[dict[str, Any]]:
    counts = {"requests": step.num_requests, "tokens": step.num_tokens}

    def event(name: str, kind: str, start_ns: int, end_ns: int) -> dict[str, Any]:
        times = {"ts": (start_ns - origin_ns) / 1000, "dur": (end_ns - start_ns) / 1000}
        return {"ph": "X", "name": name, "cat": kind, "pid": 0, "tid": rank, **times}

    yield event("wait for the plan", "wait", step.wait_start_ns, step.start_ns) | {"cname": COLORS["wait"]}
    yield event(f"step {step.step_id}", "step", step.start_ns, step.end_ns) | {"args": counts}
    for span in step.spans:
        if span.end_ns > span.start_ns:
            yield event(span.name, span.kind, span.start_ns, span.end_ns) | {"cname": COLORS[span.kind]}


def _named(what: str, rank: int, **args: str | int) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": 0, "tid": rank, "args": args}
