"""What the scheduler does for prompts that begin alike, for choices of one prompt, and for those who share its time."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.test_scheduler import EOS, finish, planned, prompt_of, scheduler_of, shape_of
from tinycluster.engine.block_pool import BlockPool
from tinycluster.engine.errors import QueueFullError
from tinycluster.engine.request import (
    NO_TOKEN,
    PromptLogprobs,
    RequestOptions,
    RequestOutput,
    SampledToken,
    SamplingParams,
    StepResult,
    TokenLogprobs,
)
from tinycluster.engine.scheduler import Scheduler, SchedulerLimits


def caching_scheduler(num_blocks: int = 64, **limits: Any) -> Scheduler:
    limits = {"max_model_len": 100, "max_pending": 0, **limits}
    pool = BlockPool(num_blocks, block_tokens=4)
    return Scheduler(pool=pool, limits=SchedulerLimits(**limits), eos_token_ids=(EOS,), model_digest="model")


def complete(scheduler: Scheduler, request_id: int, prompt: list[int], options: RequestOptions) -> RequestOutput:
    """The first output of a request that is alone and has one token to give."""
    scheduler.add(request_id, prompt, SamplingParams(max_tokens=1), seed=1, options=options)
    (output,) = finish(scheduler, planned(scheduler))
    return output


def num_cached(output: RequestOutput) -> int:
    assert output.progress is not None
    return output.progress.num_cached


def test_a_repeated_prompt_is_computed_from_its_last_full_block_on() -> None:
    scheduler, prompt = caching_scheduler(), prompt_of(10)
    assert num_cached(complete(scheduler, 0, prompt, RequestOptions())) == 0
    assert num_cached(complete(scheduler, 1, prompt, RequestOptions())) == 8
    assert num_cached(complete(scheduler, 2, prompt[:8], RequestOptions())) == 4, "the last token is computed anew"
    assert num_cached(complete(scheduler, 3, [*prompt[:5], 99, *prompt[6:]], RequestOptions())) == 4


def test_those_with_different_salts_share_nothing() -> None:
    scheduler, prompt = caching_scheduler(), prompt_of(10)
    complete(scheduler, 0, prompt, RequestOptions(cache_salt="mine"))
    assert num_cached(complete(scheduler, 1, prompt, RequestOptions(cache_salt="theirs"))) == 0
    assert num_cached(complete(scheduler, 2, prompt, RequestOptions())) == 0
    assert num_cached(complete(scheduler, 3, prompt, RequestOptions(cache_salt="mine"))) == 8


def test_what_an_answer_added_is_cached_for_the_next_turn() -> None:
    scheduler, prompt = caching_scheduler(), prompt_of(6)
    scheduler.add(0, prompt, SamplingParams(max_tokens=4), seed=1)
    for token in (50, 51, 52, 53):
        finish(scheduler, planned(scheduler), token)
    # Of ten tokens the last is never computed.
    assert num_cached(complete(scheduler, 1, [*prompt, 50, 51, 52, 53, 60, 61], RequestOptions())) == 8


def test_choices_of_a_prompt_wait_for_it_share_its_full_blocks_and_copy_the_begun_one() -> None:
    scheduler = caching_scheduler(max_pending=1)
    prompt = prompt_of(10)
    scheduler.add(0, prompt, SamplingParams(max_tokens=3), seed=1)
    for request_id in (1, 2):
        scheduler.add(request_id, prompt, SamplingParams(max_tokens=3), seed=2, parent_id=0)
    first = planned(scheduler)
    assert shape_of(first) == [(0, 0, 10, 1)]
    second = planned(scheduler)
    assert shape_of(second) == [(0, 10, 1, 1), (1, 9, 1, 1), (2, 9, 1, 1)]
    parent, *children = (row.blocks for row in second.rows)
    assert all(child[:2] == parent[:2] for child in children)
    assert len({parent[2], children[0][2], children[1][2]}) == 3
    assert second.copies == ((parent[2], children[0][2]), (parent[2], children[1][2]))
    assert scheduler.pool.num_used == 5


def test_choices_go_on_alone_when_the_first_is_aborted() -> None:
    scheduler = caching_scheduler(step_tokens=4)
    scheduler.add(0, prompt_of(10), SamplingParams(max_tokens=3), seed=1)
    scheduler.add(1, prompt_of(10), SamplingParams(max_tokens=3), seed=2, parent_id=0)
    finish(scheduler, planned(scheduler))
    scheduler.abort(0)
    assert shape_of(plan := planned(scheduler)) == [(1, 4, 4, 0)], "one block was computed before"
    assert plan.ended == (0,)


def decoding_scheduler() -> Scheduler:
    """With a request that decodes in 20 ms, and a millisecond per token of a prompt."""
    scheduler = caching_scheduler(num_blocks=600, max_model_len=1000, step_tokens=512, max_step_ratio=2.0)
    scheduler.add(0, prompt_of(60), SamplingParams(), seed=1)
    plan = planned(scheduler)
    scheduler.update(StepResult(plan.step_id, (SampledToken(0, 7),)), seconds=0.06)
    for _ in range(3):
        plan = planned(scheduler)
        scheduler.update(StepResult(plan.step_id, (SampledToken(0, 7),)), seconds=0.02)
    return scheduler


def test_a_long_prompt_takes_no_more_time_of_a_step_than_those_who_decode_may_wait() -> None:
    scheduler = decoding_scheduler()
    scheduler.add(1, [3] * 600, SamplingParams(), seed=1)
    # Twenty tokens double the decoding step.
    assert shape_of(planned(scheduler)) == [(0, 63, 1, 1), (1, 0, 20, 0)]


def test_a_prompt_that_stops_others_for_a_moment_only_is_not_cut() -> None:
    scheduler = decoding_scheduler()
    scheduler.add(1, [3] * 240, SamplingParams(), seed=1)
    assert shape_of(planned(scheduler)) == [(0, 63, 1, 1), (1, 0, 240, 1)]


def test_a_short_prompt_does_not_wait_for_the_long_ones_before_it() -> None:
    scheduler = decoding_scheduler()
    scheduler.add(1, [3] * 600, SamplingParams(), seed=1)
    scheduler.add(2, [4] * 600, SamplingParams(), seed=1)
    scheduler.add(3, [5] * 100, SamplingParams(), seed=1)
    # Three wait for their first token: 3 × 3 × 8 tokens of long prompts are more than twenty.
    rows = shape_of(planned(scheduler))
    assert rows == [(0, 63, 1, 1), (1, 0, 72, 0), (2, 0, 1, 0), (3, 0, 100, 1)]


def test_the_end_of_a_long_prompt_is_cut_like_its_beginning() -> None:
    scheduler = decoding_scheduler()
    scheduler.add(1, [3] * 600, SamplingParams(), seed=1)
    while True:
        plan = planned(scheduler)
        others = plan.num_tokens - 1
        assert others <= 20
        samples = [SampledToken(row.request_id, 7) for row in plan.rows if row.num_samples]
        scheduler.update(StepResult(plan.step_id, tuple(samples)), seconds=0.02 + 0.001 * others)
        if len(samples) == 2:
            break


def test_a_prompt_alone_takes_the_whole_step() -> None:
    scheduler = caching_scheduler(num_blocks=300, max_model_len=1000, step_tokens=512)
    scheduler.add(0, [3] * 600, SamplingParams(), seed=1)
    assert shape_of(planned(scheduler)) == [(0, 0, 512, 0)]


def test_log_probabilities_of_a_prompt_come_in_small_chunks_and_without_the_cache() -> None:
    scheduler = caching_scheduler(num_blocks=300, max_model_len=1000)
    prompt = [3 + number % 50 for number in range(150)]
    complete(scheduler, 0, prompt, RequestOptions())
    scheduler.add(1, prompt, SamplingParams(prompt_logprobs=0, max_tokens=1), seed=1)
    plan = planned(scheduler)
    assert shape_of(plan) == [(1, 0, 64, 0)]
    assert plan.rows[0].next_token == prompt[64]
    logprobs = PromptLogprobs(1, 1, tuple(TokenLogprobs(-1.0, rank) for rank in range(64)))
    (output,) = scheduler.update(StepResult(plan.step_id, (), (logprobs,)))
    assert (output.token_ids, output.prompt_logprobs) == ((), logprobs.tokens)


def test_a_queue_is_bounded_in_tokens_and_one_long_prompt_is_still_taken() -> None:
    scheduler = scheduler_of(max_running=1, max_waiting_tokens=30)
    scheduler.add(0, prompt_of(3), SamplingParams(), seed=1)
    planned(scheduler)
    scheduler.add(1, prompt_of(60), SamplingParams(), seed=1)
    with pytest.raises(QueueFullError, match="limit of 30 waiting tokens"):
        scheduler.add(2, prompt_of(3), SamplingParams(), seed=1)


def test_who_would_wait_too_long_is_told_when_to_come_back() -> None:
    scheduler = scheduler_of(max_running=1, max_ttft_s=1.0)
    scheduler.add(0, prompt_of(50), SamplingParams(), seed=1)
    plan = planned(scheduler)
    scheduler.update(StepResult(plan.step_id, (SampledToken(0, 7),)), seconds=5.0)
    scheduler.add(1, prompt_of(60), SamplingParams(), seed=1)
    # 0.1 s for each of 100 tokens.
    with pytest.raises(QueueFullError, match="would take 10 s") as refused:
        scheduler.add(2, prompt_of(40), SamplingParams(), seed=1)
    assert refused.value.retry_after_s == 5


def test_a_window_gives_back_the_blocks_that_no_query_reaches() -> None:
    pool = BlockPool(num_blocks=64, block_tokens=4)
    limits = SchedulerLimits(max_model_len=250, max_pending=0)
    scheduler = Scheduler(pool=pool, limits=limits, eos_token_ids=(EOS,), window=8)
    scheduler.add(0, [5] * 135, SamplingParams(), seed=1)
    finish(scheduler, planned(scheduler))
    # The next query is at 135 and sees from 128 on.
    row = planned(scheduler).rows[0]
    assert (row.position, len(row.blocks)) == (135, 34)
    assert pool.num_used == 2


def test_a_request_whose_rules_leave_no_token_ends() -> None:
    scheduler = scheduler_of()
    scheduler.add(0, prompt_of(3), SamplingParams(), seed=1)
    (output,) = finish(scheduler, planned(scheduler), NO_TOKEN)
    assert (output.token_ids, output.finish_reason, output.stop_reason) == ((), "stop", None)
    assert scheduler.num_running == 0


def test_now_and_then_a_step_is_for_those_who_decode_alone() -> None:
    scheduler = decoding_scheduler()
    scheduler.add(1, [3] * 600, SamplingParams(), seed=1)
    sizes = []
    for _ in range(18):
        sizes.append((plan := planned(scheduler)).num_tokens)
        finish(scheduler, plan)
    assert sizes == [*[21] * 8, 1, *[21] * 8, 1]
