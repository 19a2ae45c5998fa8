"""What steps take is learned from steps, and what follows from it is arithmetic."""

from __future__ import annotations

import pytest

from tinycluster.engine.speculation import best_num_drafts
from tinycluster.engine.step_times import MIN_CHUNK_TOKENS, StepTimes


def learned(base_s: float = 0.006, token_s: float = 0.001, num_decodes: int = 1) -> StepTimes:
    times = StepTimes()
    for _ in range(100):
        times.observe(num_decodes, 0, base_s)
        times.observe(num_decodes, 50, base_s + 50 * token_s)
    return times


def test_nothing_is_known_before_the_first_steps() -> None:
    times = StepTimes()
    assert times.decode_s(1) is None
    assert times.token_s is None
    assert times.tokens_within(1, 2.0) is None
    assert best_num_drafts(1.0, 8, times, 1) == 0


def test_steps_of_one_kind_are_learned_as_they_were() -> None:
    times = learned()
    assert times.decode_s(1) == pytest.approx(0.006)
    assert times.token_s == pytest.approx(0.001)


def test_a_number_of_rows_that_was_never_seen_takes_the_nearest() -> None:
    times = StepTimes()
    times.observe(1, 0, 0.006)
    times.observe(32, 0, 0.040)
    assert [times.decode_s(count) for count in (0, 1, 2, 20, 33, 100)] == [0.0, 0.006, 0.006, 0.040, 0.040, 0.040]


def test_a_change_is_followed() -> None:
    times = learned()
    for _ in range(60):
        times.observe(1, 0, 0.012)
    assert times.decode_s(1) == pytest.approx(0.012, rel=0.01)


def test_a_few_tokens_more_teach_nothing() -> None:
    times = StepTimes()
    times.observe(1, 0, 0.006)
    times.observe(1, 3, 1.0)
    assert times.token_s is None


def test_a_chunk_is_as_long_as_the_ratio_allows() -> None:
    # 2.5 times 6 ms leaves 9 ms for tokens of 1 ms.
    assert learned().tokens_within(1, 2.5) in (8, 9)
    assert learned().tokens_within(0, 2.5) is None, "nobody decodes, nobody waits"


def test_the_best_number_of_drafts_is_that_of_the_highest_rate() -> None:
    times = learned(base_s=0.006, token_s=0.001)

    def rate(acceptance: float, count: int) -> float:
        return sum(acceptance**index for index in range(count + 1)) / (0.006 + count * 0.001)

    for acceptance in (0.1, 0.3, 0.5, 0.8, 0.99):
        chosen = best_num_drafts(acceptance, 8, times, 1)
        assert rate(acceptance, chosen) >= max(rate(acceptance, count) for count in range(9)) / 1.05
    assert best_num_drafts(0.99, 8, times, 1) == 8
    assert best_num_drafts(0.1, 8, times, 1) == 0


def test_drafts_that_slow_many_others_are_not_made() -> None:
    times = StepTimes()
    for _ in range(100):
        times.observe(32, 0, 0.032)
        times.observe(32, 32, 0.064)
    assert best_num_drafts(0.9, 8, times, 32) == 0


def test_the_more_wait_for_their_first_token_the_larger_the_chunks() -> None:
    times = learned()
    lone = times.tokens_within(1, 2.5)
    assert times.chunk_tokens(1, 1, 2.5) == lone
    assert times.chunk_tokens(1, 1, 1.1) == MIN_CHUNK_TOKENS
    assert [times.chunk_tokens(1, count, 2.5) for count in (2, 4, 8)] == [4 * 8, 16 * 8, 64 * 8]
    assert times.chunk_tokens(0, 5, 2.5) is None
    assert StepTimes().chunk_tokens(1, 1, 2.5) is None
