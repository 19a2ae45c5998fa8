"""Where a rank's time goes: the counters that are always on, against a trace of the same steps."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.engines import GREEDY, answer_all, engine_for, prompt_of
from tests.cluster.reports import Reports
from tinycluster.cluster.rank_clock import RankClock
from tinycluster.cluster.rank_report import LinkBytes, RankReport
from tinycluster.cluster.timeline import Timeline
from tinycluster.kernels.executor import AmongRanks


class ScriptedClock:
    def __init__(self) -> None:
        self.now_ns, self.among = 1_000, AmongRanks(0, 0, 0)

    def rank_clock(self) -> RankClock:
        return RankClock(lambda: self.among, lambda: (LinkBytes(1, 2, 3),), lambda: self.now_ns)


def test_the_time_since_readiness_is_compute_communicate_wait_and_idle() -> None:
    script = ScriptedClock()
    clock = script.rank_clock()
    script.now_ns = 1_100
    clock.begin(1_100)
    script.now_ns, script.among = 1_160, AmongRanks(7, 20, 5)
    middle = RankReport(1_160, 33, 7, 20, 100, 5, (LinkBytes(1, 2, 3),))
    assert clock.report() == middle
    clock.end(1_200)
    script.now_ns = 1_250
    assert clock.report() == RankReport(1_250, 73, 7, 20, 150, 5, (LinkBytes(1, 2, 3),))


def test_no_number_ever_shrinks() -> None:
    script = ScriptedClock()
    clock = script.rank_clock()
    clock.begin(1_000)
    script.now_ns, script.among = 1_100, AmongRanks(0, 90, 90)
    assert (clock.report().compute_ns, clock.report().wait_ns) == (10, 90)
    # The call has ended, and a part of it was communication.
    script.among = AmongRanks(40, 50, 50)
    report = clock.report()
    assert (report.compute_ns, report.communicate_ns, report.wait_ns, report.bubble_ns) == (10, 40, 90, 90)


def spans_ns(timeline: Timeline, kind: str) -> int:
    return sum(span.end_ns - span.start_ns for step in timeline.steps for span in step.spans if span.kind == kind)


@pytest.mark.parametrize("mesh", [{"tensor": 1}, {"tensor": 2}, {"tensor": 1, "pipeline": 2}])
def test_counters_agree_with_a_trace_of_the_same_steps(tiny_model: Path, mesh: dict[str, int]) -> None:
    with closing(engine_for(tiny_model, mesh=mesh)) as engine:
        reports = Reports(engine)
        answer_all(engine, [prompt_of(5)], GREEDY)
        before = reports.next()
        engine.start_tracing()
        answer_all(engine, [prompt_of(50), prompt_of(9, first=4)], GREEDY)
        timelines = engine.stop_tracing()
        after = reports.next()
        assert [engine.rank_times.report(rank).compute_ns for rank in range(engine.mesh.size)] == [
            report.compute_ns for report in after
        ]
    for rank, timeline in enumerate(timelines):
        first, last = before[rank], after[rank]
        busy_ns = sum(step.end_ns - step.start_ns for step in timeline.steps)
        wait_ns, communicate_ns = spans_ns(timeline, "wait"), spans_ns(timeline, "communicate")
        assert last.wait_ns - first.wait_ns == wait_ns
        assert last.communicate_ns - first.communicate_ns == communicate_ns
        assert last.compute_ns - first.compute_ns == busy_ns - wait_ns - communicate_ns
        # Between operations Python runs, which a trace leaves out.
        assert last.compute_ns - first.compute_ns >= spans_ns(timeline, "compute") > 0
        total_ns = last.compute_ns + last.communicate_ns + last.wait_ns + last.idle_ns
        before_ns = first.compute_ns + first.communicate_ns + first.wait_ns + first.idle_ns
        assert total_ns - before_ns == last.clock_ns - first.clock_ns
        from_stage_before = sum(
            span.end_ns - span.start_ns
            for step in timeline.steps
            for span in step.spans
            if span.kind == "wait" and span.name.startswith("recv")
        )
        assert last.bubble_ns - first.bubble_ns == from_stage_before
        assert (from_stage_before > 0) == (mesh.get("pipeline") == 2 and rank == 1)
    check_links(after, mesh, 4 * engine.config.hidden_size)


def check_links(reports: list[RankReport], mesh: dict[str, int], row_bytes: int) -> None:
    if len(reports) == 1:
        assert reports[0].links == ()
        return
    (here,), (there,) = (report.links for report in reports)
    assert (here.peer, there.peer) == (1, 0)
    assert (here.sent_bytes, here.received_bytes) == (there.received_bytes, there.sent_bytes)
    assert here.sent_bytes > 0
    if mesh.get("pipeline") == 2:
        # Every token's activations go to the second stage as float32, once, and nothing comes back. The last token of
        # an answer is never computed.
        num_tokens = (5 + 11) + (50 + 11) + (9 + 11)
        assert (here.sent_bytes, here.received_bytes) == (num_tokens * row_bytes, 0)
