"""What the ranks of an engine report of their time, for tests that wait for it."""

from __future__ import annotations

import queue

from tinycluster.cluster.driver import Engine
from tinycluster.cluster.rank_report import RankReport


class Reports:
    """Hears all reports of an engine from here on, as the engine does."""

    def __init__(self, engine: Engine) -> None:
        self._size, self._told = engine.mesh.size, queue.SimpleQueue[tuple[int, RankReport]]()
        take = engine.rank_times.take

        def take_and_tell(rank: int, report: RankReport, now_s: float) -> None:
            take(rank, report, now_s)
            self._told.put((rank, report))

        engine.rank_times.take = take_and_tell  # type: ignore[method-assign]

    def next(self) -> list[RankReport]:
        """Of every rank, one that was made after this call."""
        while not self._told.empty():
            self._told.get()
        found: dict[int, RankReport] = {}
        seen = dict.fromkeys(range(self._size), 0)
        while len(found) < self._size:
            rank, report = self._told.get(timeout=60)
            # The first one may have been made before.
            seen[rank] += 1
            if seen[rank] == 2:
                found[rank] = report
        return [found[rank] for rank in range(self._size)]
