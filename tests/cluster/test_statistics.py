"""The statistics of an engine against the definitions of vLLM's metrics, with every time given."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinycluster.cluster.statistics import EngineStatistics, Histogram, one_two_five


@pytest.fixture
def statistics() -> EngineStatistics:
    return EngineStatistics(max_model_len=100)


def observed(histogram: Histogram) -> tuple[int, float]:
    return sum(histogram.counts), histogram.total


def test_the_times_of_a_request_are_the_differences_of_its_moments(statistics: EngineStatistics) -> None:
    record = statistics.submitted(7, now_s=10.0)
    record.scheduled(10.5)
    for now_s in (12.0, 12.25, 13.0):
        record.emitted(1, now_s)
    record.finished("stop", 13.5)
    assert observed(statistics.queue_time_s) == (1, 0.5)
    assert observed(statistics.prefill_time_s) == (1, 1.5)
    assert observed(statistics.decode_time_s) == (1, 1.0)
    assert observed(statistics.time_to_first_token_s) == (1, 2.0)
    assert observed(statistics.inter_token_latency_s) == (2, 1.0)
    assert observed(statistics.time_per_output_token_s) == (1, 0.5)
    assert observed(statistics.e2e_latency_s) == (1, 3.5)
    assert observed(statistics.request_prompt_tokens) == (1, 7)
    assert observed(statistics.request_generation_tokens) == (1, 3)
    assert (statistics.num_prompt_tokens, statistics.num_generation_tokens) == (7, 3)
    assert statistics.num_finished("stop") == 1


def test_several_tokens_of_a_step_are_one_latency_and_all_are_counted(statistics: EngineStatistics) -> None:
    record = statistics.submitted(1, now_s=0.0)
    record.scheduled(0.0)
    record.emitted(1, 1.0)
    record.emitted(4, 2.0)
    record.finished("length", 2.0)
    assert observed(statistics.inter_token_latency_s) == (1, 1.0)
    assert observed(statistics.time_per_output_token_s) == (1, 0.25)
    assert statistics.num_generation_tokens == 5


def test_a_preempted_request_keeps_the_moment_it_was_first_scheduled(statistics: EngineStatistics) -> None:
    record = statistics.submitted(1, now_s=0.0)
    record.scheduled(1.0)
    record.scheduled(5.0)
    record.emitted(1, 6.0)
    record.finished("stop", 6.0)
    assert observed(statistics.queue_time_s) == (1, 1.0)
    assert observed(statistics.prefill_time_s) == (1, 5.0)


def test_one_token_has_no_time_per_output_token(statistics: EngineStatistics) -> None:
    record = statistics.submitted(1, now_s=0.0)
    record.scheduled(0.0)
    record.emitted(1, 1.0)
    record.finished("stop", 1.0)
    assert observed(statistics.time_per_output_token_s) == (0, 0.0)


def test_a_request_without_a_token_has_only_its_whole_time(statistics: EngineStatistics) -> None:
    statistics.submitted(1, now_s=0.0).finished("stop", 2.0)
    assert observed(statistics.e2e_latency_s) == (1, 2.0)
    assert observed(statistics.prefill_time_s) == observed(statistics.time_to_first_token_s) == (0, 0.0)


def test_a_request_that_is_ended_from_outside_is_counted_without_times(statistics: EngineStatistics) -> None:
    statistics.submitted(1, now_s=0.0)
    statistics.ended_early("abort")
    assert statistics.num_finished("abort") == 1
    assert observed(statistics.e2e_latency_s) == (0, 0.0)


def test_steps_lookups_drafts_and_rejections_are_counted(statistics: EngineStatistics) -> None:
    statistics.step(9)
    statistics.step(1)
    statistics.looked_up(40, 32)
    statistics.looked_up(8, 0)
    statistics.rejected()
    assert observed(statistics.step_tokens) == (2, 10)
    assert (statistics.num_prefix_queries, statistics.num_prefix_hits) == (48, 32)
    assert statistics.num_rejections == 1


VALUES = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 4.9, 5.0, 5.1, 100.0]) | st.floats(0, 200)


@given(st.lists(VALUES, max_size=20))
def test_a_bucket_holds_what_lies_above_the_last_bound_and_not_above_its_own(values: Sequence[float]) -> None:
    bounds = (1.0, 2.0, 5.0)
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    for index, bound in enumerate(bounds):
        assert sum(histogram.counts[: index + 1]) == sum(value <= bound for value in values)
    assert sum(histogram.counts) == len(values)


@pytest.mark.parametrize(
    ("largest", "bounds"),
    [
        (1, (1,)),
        (4, (1, 2)),
        (5, (1, 2, 5)),
        (100, (1, 2, 5, 10, 20, 50, 100)),
        (999, (1, 2, 5, 10, 20, 50, 100, 200, 500)),
    ],
)
def test_bounds_of_token_counts_end_at_the_context(largest: int, bounds: tuple[int, ...]) -> None:
    assert one_two_five(largest) == bounds
