"""Which cores a machine has for its ranks, and how they are dealt: every rank its own, unless there are too few."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class NodeCores:
    """`ids` are those that a process may run on; a quota of its container may allow less time than that.

    Ranks with equal ones share them: two nodes of Ray may be one machine.
    """

    machine: str
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
        """Bind the calling thread, and those that it starts, to the first of the rank's cores; the executor's other
        threads have the rest. Where Linux refuses, nothing is lost but speed."""
        if self.cores and hasattr(os, "sched_setaffinity"):
            try:
                os.sched_setaffinity(0, self.cores[:1])
            except OSError:
                return


def deal(cores: Sequence[NodeCores], *, threads: int | None, pin: bool) -> tuple[RankThreads, ...]:
    """The threads of every rank, given where each runs; `threads` None shares a machine's cores equally."""
    dealt = []
    for rank, own in enumerate(cores):
        place, num_ranks = cores[:rank].count(own), cores.count(own)
        dealt.append(_deal_one(own, num_ranks, place, threads=threads, pin=pin))
    return tuple(dealt)


def _deal_one(cores: NodeCores, num_ranks: int, place: int, *, threads: int | None, pin: bool) -> RankThreads:
    """A rank is bound only where the ranks fill the machine: each thread has a core of its own, or each core the same
    number of ranks.

    A rank that waits for a core that more ranks hold than others keeps its peers waiting; and where cores are left
    over, somebody else may have been meant to use them, and nobody knows which.
    """
    num_cores = cores.num_usable
    num_threads = threads or max(1, num_cores // num_ranks)
    is_full = num_threads == num_cores // num_ranks or (num_threads == 1 and num_ranks % num_cores == 0)
    if not (pin and cores.are_own and is_full):
        return RankThreads(num_threads)
    first = place * num_threads % num_cores
    return RankThreads(num_threads, cores.ids[first : first + num_threads])


DealThreads = Callable[[Sequence[NodeCores]], tuple[RankThreads, ...]]
"""`deal` with the model's settings filled in."""


def node_cores() -> NodeCores:
    """Of the node that this process runs on."""
    has_affinity = hasattr(os, "sched_getaffinity")
    ids = sorted(os.sched_getaffinity(0)) if has_affinity else range(os.cpu_count() or 1)
    # A name would not do: containers have their own, and machines may share one.
    machine = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else platform.node()
    return NodeCores(machine, tuple(ids), container_quota(_CGROUPS))


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
