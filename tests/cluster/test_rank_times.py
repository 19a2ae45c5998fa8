"""What ranks report of their time, its way to the driver, and the load that follows from two reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinycluster.cluster.messages import ProtocolError, decode, encode
from tinycluster.cluster.rank_report import LinkBytes, RankReport
from tinycluster.cluster.rank_times import Load, RankTimes

NUMBERS = st.integers(0, 2**63 - 1)
LINKS = st.lists(st.builds(LinkBytes, st.integers(0, 2**32 - 1), NUMBERS, NUMBERS), max_size=4).map(tuple)


@given(st.builds(RankReport, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, LINKS))
def test_a_report_survives_its_way(report: RankReport) -> None:
    kind, payload = encode(report)
    assert decode(kind, memoryview(payload)) == report


def test_a_cut_or_longer_report_is_refused() -> None:
    kind, payload = encode(RankReport(1, 2, 3, 4, 5, 6, (LinkBytes(1, 2, 3),)))
    for damaged in (*(payload[:cut] for cut in range(len(payload))), payload + b"\0"):
        with pytest.raises(ProtocolError):
            decode(kind, memoryview(damaged))


def test_the_load_is_the_part_of_the_time_between_the_last_two_reports() -> None:
    times = RankTimes(2, now_s=10.0)
    assert times.load(1) == Load(0.0, 0.0, 0.0)
    times.take(1, RankReport(5_000, 100, 20, 30, 7, 3), now_s=11.0)
    assert times.load(1) == Load(0.0, 0.0, 0.0)
    times.take(1, RankReport(6_000, 600, 120, 180, 257, 3), now_s=12.0)
    assert times.load(1) == Load(0.5, 0.1, 0.15)
    times.take(1, RankReport(7_000, 600, 120, 1_180, 257, 3), now_s=13.5)
    assert times.load(1) == Load(0.0, 0.0, 1.0)
    assert times.report(1).wait_ns == 1_180
    assert times.load(0) == Load(0.0, 0.0, 0.0)
    assert (times.age_s(1, 14.0), times.age_s(0, 14.0)) == (0.5, 4.0)
