"""What the driver last heard of its ranks' time and traffic. Pure: the time is passed in."""

from __future__ import annotations

from dataclasses import dataclass

from tinycluster.cluster.rank_report import RankReport

NOTHING = RankReport(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Load:
    """Parts of the time between a rank's last two reports, about a second; what is missing to 1 it was idle."""

    compute: float = 0.0
    communicate: float = 0.0
    wait: float = 0.0


class RankTimes:
    """One thread calls `take`; any thread may read."""

    def __init__(self, num_ranks: int, now_s: float) -> None:
        self._last: list[tuple[RankReport, RankReport]] = [(NOTHING, NOTHING)] * num_ranks
        self._heard_s = [now_s] * num_ranks

    def take(self, rank: int, report: RankReport, now_s: float) -> None:
        self._last[rank], self._heard_s[rank] = (self._last[rank][1], report), now_s

    def age_s(self, rank: int, now_s: float) -> float:
        """Of the last report, or of this object before the first."""
        return max(0.0, now_s - self._heard_s[rank])

    def report(self, rank: int) -> RankReport:
        """The last one; all zeros before the first."""
        return self._last[rank][1]

    def load(self, rank: int) -> Load:
        """Nothing before the second report."""
        before, report = self._last[rank]
        span_ns = report.clock_ns - before.clock_ns
        if before is NOTHING or span_ns <= 0:
            return Load()
        return Load(
            _part(report.compute_ns - before.compute_ns, span_ns),
            _part(report.communicate_ns - before.communicate_ns, span_ns),
            _part(report.wait_ns - before.wait_ns, span_ns),
        )


def _part(time_ns: int, span_ns: int) -> float:
    return min(max(time_ns / span_ns, 0.0), 1.0)
