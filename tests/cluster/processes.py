"""Waiting for the end of processes that are not our children, without polling."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tinycluster.cluster.driver import Engine
from tinycluster.cluster.ray import RayRanks

WAIT_S = 60.0
"""Far more than the two seconds that are promised: a busy machine must not fail a test."""


def rank_pids(engine: Engine) -> list[int]:
    ranks = engine._ranks
    assert isinstance(ranks, RayRanks)
    return [introduction.pid for introduction in ranks._introductions]


@contextmanager
def watched(pids: Iterable[int]) -> Iterator[ProcessWatch]:
    watch = ProcessWatch([os.pidfd_open(pid) for pid in pids])
    try:
        yield watch
    finally:
        watch.close()


class ProcessWatch:
    def __init__(self, fds: list[int]) -> None:
        self._fds = fds

    def all_ended(self) -> bool:
        """Whether every process ends within WAIT_S."""
        return all(select.select([fd], [], [], WAIT_S)[0] for fd in self._fds)

    def send(self, index: int, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self._fds[index], number)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


def shared_memory_files() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("tinycluster-*")}
