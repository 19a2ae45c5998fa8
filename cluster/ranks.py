"""The ranks of one model as the driver sees them, whether they are threads or Ray actors."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tinycluster.cluster.messages import Message, RankFailure
from tinycluster.cluster.rank_card import Place

_CAUSE_WAIT_S = 0.3


@dataclass(frozen=True)
class RankLost:
    """The end of a rank that could not say why: its process or its connection is gone."""

    sentence: str


@dataclass(frozen=True)
class RankEvent:
    """Something that one rank said, or that was noticed about it."""

    rank: int
    message: Message | RankLost


Inbox = queue.SimpleQueue[RankEvent | None]
"""The driver's events; None only wakes it."""
Deliver = Callable[[RankEvent], None]
"""Takes events from any thread; it never blocks."""


class Ranks(Protocol):
    """One message reaches every rank; what they answer arrives as events at the `Deliver` they were made with."""

    @property
    def size(self) -> int: ...

    @property
    def heartbeats(self) -> bool:
        """Whether silence means a fault: threads of this process send no heartbeats."""
        ...

    def send(self, message: Message) -> None:
        """Never raises: a rank that cannot be reached becomes a RankLost event."""
        ...

    def name(self, rank: int) -> str:
        """For people: "rank 1 on node 10.0.0.2"."""
        ...

    def place(self, rank: int) -> Place: ...

    def close(self) -> None:
        """End every rank, whatever it does, within a few seconds. May be called twice."""
        ...


@dataclass(frozen=True)
class Cause:
    """The rank that is to blame."""

    rank: int
    sentence: str


def cause_of(events: Sequence[RankEvent], inbox: Inbox) -> Cause:
    """Who is to blame when `events` hold the end of a rank.

    An end without a word comes before a failure of the rank's own, and that before the complaint about a neighbour. A
    complaint may be heard before the neighbour's end, so then the inbox is read for a moment longer.
    """
    causes = [_as_cause(event) for event in events]
    deadline_s = time.monotonic() + _CAUSE_WAIT_S
    while min(order for order, _ in causes) == _COMPLAINT and (wait_s := deadline_s - time.monotonic()) > 0:
        try:
            event = inbox.get(timeout=wait_s)
        except queue.Empty:
            break
        if event is not None:
            causes.append(_as_cause(event))
    return min(causes, key=lambda pair: pair[0])[1]


_COMPLAINT = 2


def _as_cause(event: RankEvent) -> tuple[int, Cause]:
    if isinstance(event.message, RankLost):
        return 0, Cause(event.rank, event.message.sentence)
    if isinstance(event.message, RankFailure):
        return _COMPLAINT if event.message.is_consequence else 1, Cause(event.rank, event.message.sentence)
    return 3, Cause(event.rank, "")
