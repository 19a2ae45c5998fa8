"""Follows the ranks from their start until all are ready: one line of progress each, and an end to every wait."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable

from tinycluster.cluster.health import HEARTBEAT_PERIOD_S
from tinycluster.cluster.messages import LoadProgress, RankFailure, Ready
from tinycluster.cluster.ranks import Inbox, RankEvent, RankLost, Ranks, cause_of
from tinycluster.engine.errors import UnavailableError
from tinycluster.engine.progress import Progress

NewProgress = Callable[[], Progress]
"""Gives one line of progress: one for the download and one for every rank that loads."""
LOADING_SILENCE_S = 10.0
"""A rank that loads sends heartbeats too, but large copies may hold them up."""


def await_ready(ranks: Ranks, inbox: Inbox, new_progress: NewProgress) -> None:
    """Return when every rank is ready. UnavailableError when one fails, ends, or falls silent."""
    loading = _Loading(ranks, new_progress)
    try:
        while loading.heard_s:
            event = _next_event(inbox)
            if event is not None and isinstance(event.message, RankFailure | RankLost):
                cause = cause_of([event], inbox)
                raise UnavailableError(f"{ranks.name(cause.rank)} did not start: {cause.sentence}")
            if event is not None:
                loading.take(event)
            loading.check_silence()
    finally:
        loading.finish()


def _next_event(inbox: Inbox) -> RankEvent | None:
    try:
        return inbox.get(timeout=HEARTBEAT_PERIOD_S)
    except queue.Empty:
        return None


class _Loading:
    """`heard_s` says when each rank that is not ready was last heard."""

    def __init__(self, ranks: Ranks, new_progress: NewProgress) -> None:
        self._ranks, self._new_progress = ranks, new_progress
        self._lines: dict[int, Progress] = {}
        self._done_bytes = dict.fromkeys(range(ranks.size), 0)
        self.heard_s = dict.fromkeys(range(ranks.size), time.monotonic())

    def take(self, event: RankEvent) -> None:
        if isinstance(event.message, Ready):
            del self.heard_s[event.rank]
        elif event.rank in self.heard_s:
            self.heard_s[event.rank] = time.monotonic()
        if isinstance(event.message, LoadProgress):
            self._advance(event.rank, event.message)

    def check_silence(self) -> None:
        for rank, heard_s in self.heard_s.items() if self._ranks.heartbeats else ():
            silent_s = time.monotonic() - heard_s
            if silent_s > LOADING_SILENCE_S:
                raise UnavailableError(f"{self._ranks.name(rank)} did not start: it sent nothing for {silent_s:.0f} s")

    def finish(self) -> None:
        for line in self._lines.values():
            line.finish()

    def _advance(self, rank: int, message: LoadProgress) -> None:
        if rank not in self._lines:
            self._lines[rank] = self._new_progress()
            self._lines[rank].start(f"{self._ranks.name(rank)}: loading", message.total_bytes)
        self._lines[rank].advance(message.done_bytes - self._done_bytes[rank])
        self._done_bytes[rank] = message.done_bytes
