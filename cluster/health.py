"""When a rank counts as lost. Pure: the time is passed in.

A dead process is seen at once, because its connection ends. Two faults show only by their silence: a process that is
stopped or a machine that vanished sends no heartbeat, and a step that hangs never ends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

HEARTBEAT_PERIOD_S = 1.0
SILENCE_LIMIT_S = 5.0
"""A rank that sends nothing for this long is lost: five missed heartbeats."""
READY_WINDOW_S = 10.0
"""A forward pass within this window is the proof of readiness."""


@dataclass(frozen=True)
class SilentRank:
    rank: int
    silent_s: float


@dataclass(frozen=True)
class LateStep:
    step_id: int
    late_s: float


@dataclass
class Watch:
    """Follows heartbeats and steps of one group of ranks."""

    num_ranks: int
    step_timeout_s: float
    has_heartbeats: bool
    now_s: float
    last_pass_s: float | None = None
    """When a step last came back from all ranks."""
    _heard_s: list[float] = field(init=False)
    _steps: deque[int] = field(init=False, default_factory=deque)
    _step_began_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._heard_s = [self.now_s] * self.num_ranks
        self._step_began_s = self.now_s

    def heard(self, rank: int, now_s: float) -> None:
        self._heard_s[rank] = now_s

    def step_sent(self, step_id: int, now_s: float) -> None:
        if not self._steps:
            self._step_began_s = now_s
        self._steps.append(step_id)

    def step_done(self, now_s: float) -> None:
        """The oldest step came back; the ranks turn to the next one."""
        self._steps.popleft()
        self._step_began_s = self.last_pass_s = now_s

    def check(self, now_s: float) -> SilentRank | LateStep | None:
        """The fault to report, if any. Call it at least every heartbeat period.

        A gap between two checks means that the driver itself stood still: then nothing is held against the ranks.
        """
        gap_s, self.now_s = now_s - self.now_s, now_s
        if gap_s > 2 * HEARTBEAT_PERIOD_S:
            self._heard_s = [heard_s + gap_s for heard_s in self._heard_s]
            self._step_began_s += gap_s
        if self.has_heartbeats:
            rank = min(range(self.num_ranks), key=self._heard_s.__getitem__)
            silent_s = now_s - self._heard_s[rank]
            if silent_s > SILENCE_LIMIT_S:
                return SilentRank(rank, silent_s)
        if self._steps and now_s - self._step_began_s > self.step_timeout_s:
            return LateStep(self._steps[0], now_s - self._step_began_s)
        return None

    def is_fresh(self, now_s: float) -> bool:
        return self.last_pass_s is not None and now_s - self.last_pass_s <= READY_WINDOW_S
