"""What the driver keeps of a request while it runs, and when requests run out of time."""

from __future__ import annotations

import heapq
from typing import NamedTuple

from tinycluster.cluster.generation import Generation, TextAssembler
from tinycluster.cluster.statistics import RequestRecord


class LiveRequest(NamedTuple):
    generation: Generation
    assembler: TextAssembler
    record: RequestRecord

    def scheduled(self, now_s: float) -> None:
        """Planned for a step; only the first call counts."""
        self.record.scheduled(now_s)
        if self.generation.scheduled_s is None:
            self.generation.scheduled_s = now_s


class Deadlines:
    """Which requests must have ended by when, on the caller's clock. Ids of requests that ended before stay in it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []

    def add(self, request_id: int, deadline_s: float) -> None:
        heapq.heappush(self._heap, (deadline_s, request_id))

    def wait_s(self, now_s: float, most_s: float) -> float:
        """Until the next one, at most `most_s`."""
        return min(max(self._heap[0][0] - now_s, 0.0), most_s) if self._heap else most_s

    def expired(self, now_s: float) -> list[int]:
        """Those that are over, each once."""
        ids = []
        while self._heap and self._heap[0][0] <= now_s:
            ids.append(heapq.heappop(self._heap)[1])
        return ids
