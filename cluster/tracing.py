"""A trace of every rank, from a start to a stop."""

from __future__ import annotations

import queue

from tinycluster.cluster.messages import EncodedTimeline, SetTracing
from tinycluster.cluster.ranks import Ranks
from tinycluster.cluster.timeline import Timeline, decode_timeline

TIMEOUT_S = 30.0


class Tracing:
    """`start` and `stop` are called by one thread, `take` by the one that hears the ranks."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._arrived: queue.SimpleQueue[tuple[int, Timeline]] = queue.SimpleQueue()

    def start(self) -> None:
        self._ranks.send(SetTracing(True))

    def stop(self) -> list[Timeline] | None:
        """By rank, the steps since the start; None where a rank sends nothing for TIMEOUT_S."""
        self._ranks.send(SetTracing(False))
        timelines: dict[int, Timeline] = {}
        while len(timelines) < self._ranks.size:
            try:
                rank, timeline = self._arrived.get(timeout=TIMEOUT_S)
            except queue.Empty:
                return None
            timelines[rank] = timeline
        return [timelines[rank] for rank in range(self._ranks.size)]

    def take(self, rank: int, message: EncodedTimeline, now_ns: int) -> None:
        """A rank's timeline, put on this process's clock."""
        self._arrived.put((rank, decode_timeline(message).on_clock(now_ns)))
