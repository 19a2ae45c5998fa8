"""The ranks of one model as the driver sees them, whether they are threads or Ray actors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tinycluster.cluster.messages import Message


@dataclass(frozen=True)
class RankLost:
    """The end of a rank that could not say why: its process or its connection is gone."""

    sentence: str


@dataclass(frozen=True)
class RankEvent:
    """Something that one rank said, or that was noticed about it."""

    rank: int
    message: Message | RankLost


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

    def close(self) -> None:
        """End every rank, whatever it does, within a few seconds. May be called twice."""
        ...
