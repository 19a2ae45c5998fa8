"""Rates and medians of what happened lately, against a count of all events."""

from __future__ import annotations

from statistics import median

from hypothesis import given
from hypothesis import strategies as st

from tinycluster.cluster.recent import LastValues, Rate


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 50)), max_size=40), st.floats(0, 6))
def test_a_rate_is_what_the_last_whole_second_brought(events: list[tuple[float, int]], later_s: float) -> None:
    rate, now_s, told = Rate(), 100.0, list[tuple[float, int]]()
    for gap_s, count in events:
        now_s += gap_s
        rate.add(count, now_s)
        told.append((now_s, count))
    now_s += later_s
    assert rate.per_second(now_s) == sum(count for at_s, count in told if int(at_s) == int(now_s) - 1)


@given(st.lists(st.floats(0, 1e6), max_size=30))
def test_the_median_is_that_of_the_last_values(values: list[float]) -> None:
    last = LastValues(8)
    for value in values:
        last.add(value)
    assert last.median() == (median(values[-8:]) if values else None)
