"""What happened lately, at the price of a few list operations per event. Pure: the time is passed in."""

from __future__ import annotations

from statistics import median

_SECONDS = 4


class Rate:
    """Events per second. One thread at a time may add, any may read."""

    __slots__ = ("_counts", "_seconds")

    def __init__(self) -> None:
        self._counts, self._seconds = [0] * _SECONDS, [-1] * _SECONDS

    def add(self, count: int, now_s: float) -> None:
        second = int(now_s)
        slot = second % _SECONDS
        if self._seconds[slot] != second:
            self._counts[slot], self._seconds[slot] = 0, second
        self._counts[slot] += count

    def per_second(self, now_s: float) -> int:
        """What was added in the last whole second of the clock."""
        second = int(now_s) - 1
        slot = second % _SECONDS
        return self._counts[slot] if self._seconds[slot] == second else 0


class LastValues:
    """The last `size` values. One thread at a time may add, any may read."""

    __slots__ = ("_count", "_values")

    def __init__(self, size: int) -> None:
        self._values = [0.0] * size
        self._count = 0

    def add(self, value: float) -> None:
        self._values[self._count % len(self._values)] = value
        self._count += 1

    def median(self) -> float | None:
        """None before the first value."""
        values = self._values[: self._count]
        return median(values) if values else None
