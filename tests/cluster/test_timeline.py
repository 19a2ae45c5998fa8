"""What a rank writes down of its steps, its way to the driver, and the clocks of other machines."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cluster.engines import GREEDY, answer_all, engine_for, prompt_of
from tinycluster.cluster.messages import EncodedTimeline, ProtocolError
from tinycluster.cluster.rank_clock import RankClock
from tinycluster.cluster.timeline import StepRecorder, Timeline, TracedStep, decode_timeline, encode_timeline
from tinycluster.engine.request import Row, SamplingParams, StepPlan
from tinycluster.kernels.executor import AmongRanks, Span

SPANS = (
    Span("größer", "compute", 21, 24),
    Span("all_reduce", "wait", 24, 29),
    Span("all_reduce", "communicate", 29, 30),
)
STEPS = (TracedStep(2**40, 3, 7, 10, 20, 40, SPANS), TracedStep(2**40 + 1, 1, 1, 40, 41, 42, ()))


@pytest.mark.parametrize("timeline", [Timeline(50, STEPS), Timeline(-1, ())])
def test_a_timeline_survives_its_way(timeline: Timeline) -> None:
    assert decode_timeline(encode_timeline(timeline)) == timeline


def test_a_cut_or_longer_timeline_is_refused() -> None:
    payload = encode_timeline(Timeline(50, STEPS)).payload
    for damaged in (*(payload[:cut] for cut in range(len(payload))), payload + b"\0"):
        with pytest.raises(ProtocolError):
            decode_timeline(EncodedTimeline(damaged))


def test_damaged_bytes_are_a_timeline_or_a_protocol_error() -> None:
    payload, rng = encode_timeline(Timeline(50, STEPS)).payload, random.Random(0)
    num_refused = 0
    for position in range(len(payload)):
        damaged = bytearray(payload)
        damaged[position] ^= 1 << rng.randrange(8)
        try:
            decode_timeline(EncodedTimeline(bytes(damaged)))
        except ProtocolError:
            num_refused += 1
    assert num_refused > 0


@given(st.binary(max_size=200))
def test_random_bytes_are_a_timeline_or_a_protocol_error(payload: bytes) -> None:
    try:
        decode_timeline(EncodedTimeline(payload))
    except ProtocolError:
        return


def test_a_clock_of_this_machine_is_left_alone_and_another_one_is_moved() -> None:
    here = Timeline(5_000_000_000, STEPS)
    assert here.on_clock(5_020_000_000) is here
    moved = here.on_clock(2_000_000_000)
    assert moved.clock_ns == 2_000_000_000
    first = moved.steps[0]
    assert (first.wait_start_ns, first.start_ns, first.end_ns) == tuple(t - 3_000_000_000 for t in (10, 20, 40))
    assert first.spans[0] == Span("größer", "compute", 21 - 3_000_000_000, 24 - 3_000_000_000)
    assert [step.step_id for step in moved.steps] == [step.step_id for step in STEPS]


class ScriptedRunner:
    def __init__(self) -> None:
        self.is_on = False

    def set_tracing(self, on: bool) -> None:
        self.is_on = on

    def take_timeline(self) -> list[Span]:
        return [Span("op", "compute", 1, 2)]


def plan_of(step_id: int, *num_tokens: int) -> StepPlan:
    rows = [Row(id_, (1,) * count, 0, (0,), True, SamplingParams(), 0) for id_, count in enumerate(num_tokens)]
    return StepPlan(step_id, tuple(rows))


def test_only_steps_while_tracing_is_on_are_written_down_and_each_waits_from_the_end_of_the_one_before() -> None:
    runner = ScriptedRunner()
    recorder = StepRecorder(runner, RankClock(lambda: AmongRanks(0, 0, 0)))
    for step_id in (1, 2, 3, 4):
        if step_id == 2:
            recorder.start()
            assert runner.is_on
        with recorder.step(plan_of(step_id, 5, 1)):
            pass
        if step_id == 3:
            timeline = recorder.stop()
    assert not runner.is_on
    second, third = timeline.steps
    assert [(step.step_id, step.num_requests, step.num_tokens) for step in (second, third)] == [(2, 2, 6), (3, 2, 6)]
    assert second.wait_start_ns <= second.start_ns <= second.end_ns == third.wait_start_ns <= third.start_ns
    assert third.end_ns <= timeline.clock_ns
    assert second.spans == (Span("op", "compute", 1, 2),)


@pytest.mark.parametrize("mesh", [{"tensor": 2}, {"tensor": 1, "pipeline": 2}])
def test_tracing_changes_no_bit_and_covers_every_step_of_every_rank(tiny_model: Path, mesh: dict[str, int]) -> None:
    prompts = [prompt_of(5), prompt_of(9, first=4)]
    with closing(engine_for(tiny_model, mesh=mesh)) as engine:
        expected = answer_all(engine, prompts, GREEDY)
        engine.start_tracing()
        assert answer_all(engine, prompts, GREEDY) == expected
        timelines = engine.stop_tracing()
        assert answer_all(engine, prompts, GREEDY) == expected
        engine.start_tracing()
        assert [timeline.steps for timeline in engine.stop_tracing()] == [(), ()]
    first, second = timelines
    assert [step.step_id for step in first.steps] == [step.step_id for step in second.steps]
    assert sum(step.num_tokens for step in first.steps) == 5 + 9 + 2 * 11
    for timeline in timelines:
        for step in timeline.steps:
            times = [time for span in step.spans for time in (span.start_ns, span.end_ns)]
            assert times == sorted(times)
            assert step.start_ns <= times[0] <= times[-1] <= step.end_ns
            assert {"compute", "wait", "communicate"} >= {span.kind for span in step.spans}
        assert any(span.kind == "communicate" for step in timeline.steps for span in step.spans)
