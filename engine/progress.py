"""How long-running loading reports what it has done; serve/ turns it into bars on the terminal."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """One bar at a time: start, any number of advances from one thread at a time, finish."""

    def start(self, label: str, total_bytes: int | None) -> None:
        """`total_bytes` is None where the size is not known beforehand."""

    def advance(self, num_bytes: int) -> None: ...

    def finish(self) -> None:
        """Also called when the work failed."""


class NoProgress:
    """Reports nothing."""

    def start(self, label: str, total_bytes: int | None) -> None:
        pass

    def advance(self, num_bytes: int) -> None:
        pass

    def finish(self) -> None:
        pass
