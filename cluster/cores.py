"""Which cores a node has for its ranks, and how they are dealt: every rank its own, unless there are too few."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class NodeCores:
    """`ids` are those that this process may run on; a quota of the container may allow less time than that."""

    ids: tuple[int, ...]
    quota: float | None = None
    """Cores' worth of time, where the container has a limit."""

    @property
    def num_usable(self) -> int:
        return len(self.ids) if self.quota is None else max(1, min(len(self.ids), int(self.quota)))

    @property
    def are_own(self) -> bool:
        """Under a quota the cores are shared with other containers, and nobody knows which are free."""
        return self.num_usable == len(self.ids)


@dataclass(frozen=True)
class RankThreads:
    """How many threads one rank has; `cores` are where they may run, anywhere if there are none."""

    num_threads: int
    cores: tuple[int, ...] = ()

    def pin(self) -> None:
        """Bind the calling thread, and those that it starts, to the rank's cores. Where Linux refuses, nothing is lost
        but speed."""
        if self.cores and hasattr(os, "sched_setaffinity"):
            try:
                os.sched_setaffinity(0, self.cores)
            except OSError:
                return


def deal(node: NodeCores, num_ranks: int, place: int, *, threads: int | None, pin: bool) -> RankThreads:
    """The threads of rank number `place` of the `num_ranks` on a node; `threads` None shares the cores equally.

    Ranks are bound to cores only where each thread has one of its own: a rank that waits for a core that another holds
    keeps all its peers waiting.
    """
    num_threads = threads or max(1, node.num_usable // num_ranks)
    if not (pin and node.are_own and num_threads * num_ranks <= len(node.ids)):
        return RankThreads(num_threads)
    return RankThreads(num_threads, node.ids[place * num_threads : (place + 1) * num_threads])


DealThreads = Callable[[NodeCores, int, int], RankThreads]
"""`deal` with the model's settings filled in: (node, ranks on it, place of the rank among them)."""


def node_cores() -> NodeCores:
    """Of the node that this process runs on."""
    has_affinity = hasattr(os, "sched_getaffinity")
    ids = sorted(os.sched_getaffinity(0)) if has_affinity else range(os.cpu_count() or 1)
    return NodeCores(tuple(ids), container_quota(_CGROUPS))


def num_cores() -> int:
    """Cores that this process may use."""
    return node_cores().num_usable


def container_quota(cgroups: Path) -> float | None:
    """The smallest CPU quota in cores that cgroups state: cpu.max (version 2) or cpu.cfs_quota_us (version 1)."""
    quotas = [quota / period for quota, period in _quotas(cgroups) if quota > 0 and period > 0]
    return min(quotas, default=None)


def _quotas(cgroups: Path) -> Iterator[tuple[float, float]]:
    for pair in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((cgroups / name).read_text() for name in pair).split()
            yield float(quota), float(period)
        except (OSError, ValueError):
            continue  # not this version, or "max": no limit
