"""Where a rank's time goes: kept while it runs, told once a second. rank_report.py has the definitions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tinycluster.cluster.rank_report import LinkBytes, RankReport
from tinycluster.kernels.executor import AmongRanks


class RankClock:
    """One thread calls `begin` and `end` around every step, any other one `report`."""

    def __init__(
        self,
        among_ranks: Callable[[], AmongRanks],
        links: Callable[[], Sequence[LinkBytes]] = tuple,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._among_ranks, self._links, self._clock_ns = among_ranks, links, clock_ns
        self._ready_ns = clock_ns()
        # One object, so that a reader sees both numbers of one moment.
        self._steps: tuple[int, int | None] = (0, None)
        self._told = RankReport(self._ready_ns, 0, 0, 0, 0, 0)

    def begin(self, now_ns: int) -> None:
        self._steps = (self._steps[0], now_ns)

    def end(self, now_ns: int) -> None:
        busy_ns, since_ns = self._steps
        assert since_ns is not None
        self._steps = (busy_ns + now_ns - since_ns, None)

    def report(self) -> RankReport:
        """Of this moment, also in the middle of a step. No number is smaller than in the report before: what is still
        under way may at first count as something else."""
        among, (busy_ns, since_ns), now_ns = self._among_ranks(), self._steps, self._clock_ns()
        busy_ns += 0 if since_ns is None else max(now_ns - since_ns, 0)
        told = self._told
        self._told = RankReport(
            clock_ns=now_ns,
            compute_ns=max(told.compute_ns, busy_ns - among.communicate_ns - among.wait_ns),
            communicate_ns=max(told.communicate_ns, among.communicate_ns),
            wait_ns=max(told.wait_ns, among.wait_ns),
            idle_ns=max(told.idle_ns, now_ns - self._ready_ns - busy_ns),
            bubble_ns=max(told.bubble_ns, among.bubble_ns),
            links=tuple(self._links()),
        )
        return self._told
