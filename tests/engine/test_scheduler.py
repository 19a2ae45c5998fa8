"""What the scheduler does in single situations; test_scheduler_simulation.py covers all of them mixed."""

from __future__ import annotations

from typing import Any

import pytest

from tinycluster.engine.block_pool import BlockPool
from tinycluster.engine.errors import ContextLengthError, QueueFullError, RequestError
from tinycluster.engine.request import (
    PENDING,
    PromptProgress,
    RequestOutput,
    Row,
    SampledToken,
    SamplingParams,
    StepPlan,
    StepResult,
)
from tinycluster.engine.scheduler import Scheduler, SchedulerLimits

EOS = 2


def scheduler_of(num_blocks: int = 64, block_tokens: int = 4, micro_batches: int = 1, **limits: Any) -> Scheduler:
    limits = {"max_model_len": 100, "max_pending": 0, **limits}
    pool = BlockPool(num_blocks, block_tokens)
    return Scheduler(pool=pool, limits=SchedulerLimits(**limits), eos_token_ids=(EOS,), micro_batches=micro_batches)


def prompt_of(length: int) -> list[int]:
    return list(range(10, 10 + length))


def planned(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.plan()
    scheduler.check()
    assert plan is not None
    return plan


def shape_of(plan: StepPlan) -> list[tuple[int, int, int, int]]:
    """(request, position, number of tokens, number of samples) of every row."""
    return [(row.request_id, row.position, len(row.tokens), row.num_samples) for row in plan.rows]


def finish(scheduler: Scheduler, plan: StepPlan, token: int = 7) -> tuple[RequestOutput, ...]:
    samples = tuple(SampledToken(row.request_id, token) for row in plan.rows if row.num_samples)
    outputs = scheduler.update(StepResult(plan.step_id, samples))
    scheduler.check()
    return outputs


def test_a_long_prompt_is_computed_in_chunks_beside_the_decodes() -> None:
    scheduler = scheduler_of(step_tokens=8)
    scheduler.add(0, prompt_of(3), SamplingParams(), seed=1)
    plan = planned(scheduler)
    assert shape_of(plan) == [(0, 0, 3, True)]
    finish(scheduler, plan)
    scheduler.add(1, prompt_of(17), SamplingParams(), seed=1)
    for expected in ([(0, 3, 1, True), (1, 0, 7, False)], [(0, 4, 1, True), (1, 7, 7, False)]):
        plan = planned(scheduler)
        assert shape_of(plan) == expected
        finish(scheduler, plan)
    assert shape_of(planned(scheduler)) == [(0, 5, 1, True), (1, 14, 3, True)]


def test_a_row_carries_the_tokens_blocks_sampling_and_seed_of_its_request() -> None:
    scheduler = scheduler_of(block_tokens=4)
    sampling = SamplingParams(temperature=0.5)
    scheduler.add(3, prompt_of(4), sampling, seed=11)
    finish(scheduler, plan := planned(scheduler), token=99)
    (row,) = plan.rows
    assert (row.tokens, row.sampling, row.seed, len(row.blocks)) == ((10, 11, 12, 13), sampling, 11, 1)
    (row,) = planned(scheduler).rows
    assert (row.tokens, row.position, len(row.blocks)) == ((99,), 4, 2)


def test_a_token_that_is_not_known_yet_is_planned_as_pending() -> None:
    scheduler = scheduler_of(max_pending=1)
    scheduler.add(0, prompt_of(2), SamplingParams(), seed=1)
    first, second = planned(scheduler), planned(scheduler)
    assert second.rows[0].tokens == (PENDING,)
    assert scheduler.plan() is None, "the step directly before the third does not sample the first pending token"
    assert finish(scheduler, first, token=50)[0].token_ids == (50,)
    assert planned(scheduler).rows[0].tokens == (PENDING,)
    assert finish(scheduler, second, token=51)[0].token_ids == (51,)


def test_a_pending_token_is_used_only_by_the_step_directly_after() -> None:
    scheduler = scheduler_of(max_pending=1, num_blocks=5, block_tokens=2, max_model_len=11)
    scheduler.add(0, prompt_of(6), SamplingParams(), seed=1)
    scheduler.add(1, prompt_of(2), SamplingParams(), seed=1)
    first, second = planned(scheduler), planned(scheduler)
    assert [row.request_id for row in second.rows] == [0], "the newest request waits for a block"
    scheduler.abort(0)
    assert scheduler.plan() is None, "request 1 has a block, but its token is of the step before the last"
    finish(scheduler, first, 60)
    assert planned(scheduler).rows[0].tokens == (60,)
    assert finish(scheduler, second) == ()


def test_without_pending_tokens_a_request_waits_for_its_own_token() -> None:
    scheduler = scheduler_of(max_pending=0)
    scheduler.add(0, prompt_of(2), SamplingParams(), seed=1)
    plan = planned(scheduler)
    assert scheduler.plan() is None
    finish(scheduler, plan)
    assert planned(scheduler).rows[0].tokens == (7,)


def test_a_request_that_ends_with_its_pending_token_is_not_planned_again() -> None:
    scheduler = scheduler_of(max_pending=1)
    scheduler.add(0, prompt_of(2), SamplingParams(max_tokens=1), seed=1)
    plan = planned(scheduler)
    assert scheduler.plan() is None
    assert finish(scheduler, plan) == (RequestOutput(0, (7,), "length", progress=PromptProgress(2, 0, 2)),)


@pytest.mark.parametrize(
    ("sampling", "token", "reasons"),
    [
        (SamplingParams(), EOS, ("stop", None)),
        (SamplingParams(ignore_eos=True), EOS, (None, None)),
        (SamplingParams(stop_token_ids=(9,)), 9, ("stop", 9)),
        (SamplingParams(stop_token_ids=(9,), ignore_eos=True), 9, ("stop", 9)),
        (SamplingParams(stop_token_ids=(EOS,)), EOS, ("stop", None)),
        (SamplingParams(max_tokens=1), 7, ("length", None)),
        (SamplingParams(max_tokens=1), EOS, ("stop", None)),
        (SamplingParams(max_tokens=2), 7, (None, None)),
    ],
)
def test_why_a_request_ends(sampling: SamplingParams, token: int, reasons: tuple[str | None, int | None]) -> None:
    scheduler = scheduler_of()
    scheduler.add(0, prompt_of(2), sampling, seed=1)
    (output,) = finish(scheduler, planned(scheduler), token)
    assert (output.finish_reason, output.stop_reason) == reasons
    assert scheduler.num_running == (reasons[0] is None)


def test_without_max_tokens_the_answer_fills_the_context() -> None:
    scheduler = scheduler_of(max_model_len=6)
    scheduler.add(0, prompt_of(3), SamplingParams(), seed=1)
    outputs = [finish(scheduler, planned(scheduler))[0] for _ in range(3)]
    assert [output.finish_reason for output in outputs] == [None, None, "length"]


def test_the_token_that_was_in_flight_at_the_end_is_dropped() -> None:
    scheduler = scheduler_of(max_pending=1)
    scheduler.add(0, prompt_of(2), SamplingParams(), seed=1)
    first, second = planned(scheduler), planned(scheduler)
    assert finish(scheduler, first, EOS)[0].finish_reason == "stop"
    assert finish(scheduler, second) == ()


def test_an_aborted_request_frees_its_blocks_at_once_and_says_no_more() -> None:
    scheduler = scheduler_of(num_blocks=2, max_model_len=9)
    scheduler.add(0, prompt_of(8), SamplingParams(max_tokens=1), seed=1)
    scheduler.add(1, prompt_of(8), SamplingParams(max_tokens=1), seed=1)
    first = planned(scheduler)
    scheduler.abort(0)
    second = planned(scheduler)
    assert [row.request_id for row in second.rows] == [1]
    assert finish(scheduler, first) == ()
    scheduler.abort(1)
    scheduler.abort(1)
    scheduler.add(1, prompt_of(2), SamplingParams(), seed=1)
    assert finish(scheduler, second) == (), "the token belongs to the request that had this id before"
    scheduler.abort(1)
    assert scheduler.plan() is None
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)


def test_a_preempted_request_resumes_with_the_same_tokens() -> None:
    scheduler = scheduler_of(num_blocks=5, block_tokens=2)
    for request_id in (0, 1):
        scheduler.add(request_id, prompt_of(3), SamplingParams(max_tokens=5), seed=1)
    rows: list[Row] = []
    while scheduler.num_running + scheduler.num_waiting:
        plan = planned(scheduler)
        rows += plan.rows
        finish(scheduler, plan, token=50 + len(rows))
    assert scheduler.num_preemptions == 1
    newest = [(row.position, row.tokens) for row in rows if row.request_id == 1]
    assert newest[0] == (0, (10, 11, 12))
    assert [position for position, _ in newest] == [0, 3, 0, 5, 6]
    assert newest[2][1] == (10, 11, 12, newest[1][1][0], newest[2][1][4]), "prompt and answer are computed again"


def test_a_preempted_request_is_not_admitted_while_its_token_is_in_flight() -> None:
    scheduler = scheduler_of(num_blocks=5, block_tokens=2, max_model_len=11, max_pending=1)
    scheduler.add(0, prompt_of(5), SamplingParams(), seed=1)
    scheduler.add(1, prompt_of(2), SamplingParams(), seed=1)
    first, second = planned(scheduler), planned(scheduler)
    finish(scheduler, first, 60)
    third = planned(scheduler)
    assert scheduler.num_preemptions == 1
    assert shape_of(third) == [(0, 6, 1, True)]
    scheduler.abort(0)
    assert scheduler.plan() is None
    assert [output.request_id for output in finish(scheduler, second, 61)] == [1]
    assert planned(scheduler).rows[0].tokens == (10, 11, 60, 61)


def test_the_queue_is_bounded() -> None:
    scheduler = scheduler_of(max_running=1, max_waiting=2, retry_after_s=3)
    for request_id in range(3):
        scheduler.add(request_id, prompt_of(2), SamplingParams(), seed=1)
    with pytest.raises(QueueFullError) as refused:
        scheduler.add(3, prompt_of(2), SamplingParams(), seed=1)
    assert refused.value.retry_after_s == 3
    scheduler.abort(1)
    scheduler.add(3, prompt_of(2), SamplingParams(), seed=1)


def test_a_prompt_without_room_for_an_answer_is_refused_with_both_numbers() -> None:
    scheduler = scheduler_of(max_model_len=10)
    scheduler.add(0, prompt_of(9), SamplingParams(max_tokens=50), seed=1)
    with pytest.raises(ContextLengthError, match="maximum context length is 10 tokens, but 11 were requested") as error:
        scheduler.add(1, prompt_of(10), SamplingParams(), seed=1)
    assert error.value.code == "context_length_exceeded"


def test_a_request_that_can_never_fit_the_cache_is_refused() -> None:
    scheduler = scheduler_of(num_blocks=2, block_tokens=4)
    scheduler.add(0, prompt_of(4), SamplingParams(max_tokens=5), seed=1)
    with pytest.raises(RequestError, match="the whole cache holds 8") as error:
        scheduler.add(1, prompt_of(4), SamplingParams(max_tokens=6), seed=1)
    assert error.value.param == "max_tokens"
    with pytest.raises(RequestError, match="the whole cache holds 8") as error:
        scheduler.add(1, prompt_of(9), SamplingParams(), seed=1)
    assert error.value.param == "prompt"
    with pytest.raises(RequestError, match="at least one token"):
        scheduler.add(1, [], SamplingParams(), seed=1)


def test_a_request_that_fills_the_whole_cache_ends() -> None:
    scheduler = scheduler_of(num_blocks=2, block_tokens=4, step_tokens=3)
    scheduler.add(0, prompt_of(5), SamplingParams(), seed=1)
    num_tokens = 0
    while scheduler.num_running + scheduler.num_waiting:
        num_tokens += len(finish(scheduler, planned(scheduler)))
    assert num_tokens == 4


def test_every_running_request_decodes_in_every_step() -> None:
    scheduler = scheduler_of(step_tokens=4, max_running=9)
    for request_id in range(9):
        scheduler.add(request_id, prompt_of(3), SamplingParams(max_tokens=50), seed=1)
    for _ in range(12):
        finish(scheduler, planned(scheduler))
    assert scheduler.num_running == 4, "no more requests than the step has tokens"
    assert [(row.request_id, len(row.tokens)) for row in planned(scheduler).rows] == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_micro_batches_share_the_decodes() -> None:
    scheduler = scheduler_of(micro_batches=3)
    for request_id in range(7):
        scheduler.add(request_id, prompt_of(2), SamplingParams(), seed=1)
    finish(scheduler, planned(scheduler))
    in_flight = [planned(scheduler) for _ in range(3)]
    assert [[row.request_id for row in plan.rows] for plan in in_flight] == [[0, 1, 2], [3, 4, 5], [6]]
    assert scheduler.plan() is None
    finish(scheduler, in_flight[0])
    assert [row.request_id for row in planned(scheduler).rows] == [0, 1, 2]


def test_micro_batches_cut_a_prompt_into_equal_parts() -> None:
    scheduler = scheduler_of(micro_batches=2, max_model_len=240)
    scheduler.add(0, prompt_of(200), SamplingParams(), seed=1)
    assert [shape_of(planned(scheduler)) for _ in range(2)] == [[(0, 0, 100, False)], [(0, 100, 100, True)]]


def test_micro_batches_take_turns_when_only_one_step_is_in_flight() -> None:
    scheduler = scheduler_of(micro_batches=2)
    for request_id in range(4):
        scheduler.add(request_id, prompt_of(2), SamplingParams(), seed=1)
    finish(scheduler, planned(scheduler))
    turns = []
    for _ in range(4):
        plan = planned(scheduler)
        turns.append([row.request_id for row in plan.rows])
        finish(scheduler, plan)
    assert turns == [[0, 1], [2, 3], [0, 1], [2, 3]]


def test_a_result_must_belong_to_the_oldest_step_in_flight() -> None:
    scheduler = scheduler_of(max_pending=1)
    with pytest.raises(ValueError, match="result of step 0"):
        scheduler.update(StepResult(0, ()))
    scheduler.add(0, prompt_of(2), SamplingParams(), seed=1)
    first, second = planned(scheduler), planned(scheduler)
    with pytest.raises(ValueError, match="result of step 1"):
        finish(scheduler, second)
    with pytest.raises(ValueError, match="must sample for requests"):
        scheduler.update(StepResult(first.step_id, ()))
    assert len(finish(scheduler, first)) == len(finish(scheduler, second)) == 1


def test_logits_come_back_with_their_token() -> None:
    scheduler = scheduler_of()
    scheduler.add(0, prompt_of(2), SamplingParams(return_logits_digest=True), seed=1)
    plan = planned(scheduler)
    (output,) = scheduler.update(StepResult(plan.step_id, (SampledToken(0, 7, b"logits"),)))
    assert output.logits == (b"logits",)


def test_two_requests_cannot_have_one_id() -> None:
    scheduler = scheduler_of()
    scheduler.add(0, prompt_of(2), SamplingParams(), seed=1)
    with pytest.raises(ValueError, match="already here"):
        scheduler.add(0, prompt_of(2), SamplingParams(), seed=1)


@pytest.mark.parametrize(
    "limits", [{"max_model_len": 0}, {"max_running": 0}, {"step_tokens": 0}, {"max_waiting": -1}, {"max_pending": 2}]
)
def test_limits_without_meaning_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        scheduler_of(**limits)
