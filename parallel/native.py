"""What all communicators have in common: their calls are native. region.py, tcp.py and hierarchical.py make them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinycluster.kernels import _collectives
from tinycluster.parallel.communicator import F32, I64, CollectiveError

SPIN_US = 50.0

Group = _collectives.Group | _collectives.TcpGroup | _collectives.TieredGroup


def spin_us_of(num_ranks: int) -> float:
    """How long a rank looks for its peers without letting others run: not at all if there are more ranks than cores."""
    return SPIN_US if num_ranks <= (os.cpu_count() or 1) else 0.0


class NativeCommunicator:
    """One rank of a native group; see Communicator for the contract.

    A rank that waits spins, then lets others run between looks, then sleeps. A failed call breaks the group: every rank
    of a node then raises the first failure's sentence, and ranks of other nodes that this one left.
    One thread at a time may call, except that `send` and `recv` may overlap, and `abort` and `close` always may.
    """

    def __init__(self, group: Group) -> None:
        self.group = group

    @property
    def rank(self) -> int:
        return self.group.rank

    @property
    def size(self) -> int:
        return self.group.size

    def all_reduce(self, x: F32 | I64) -> None:
        run(self.group.all_reduce, x)

    def reduce_scatter(self, x: I64, counts: Sequence[int]) -> I64:
        run(self.group.reduce_scatter, x, counts)
        start = sum(counts[: self.rank])
        return x[start : start + counts[self.rank]]

    def all_gather(self, x: NDArray[Any], counts: Sequence[int]) -> NDArray[Any]:
        out = np.empty(sum(counts), x.dtype)
        run(self.group.all_gather, x, [count * x.itemsize for count in counts], out)
        return out

    def all_to_all(self, x: NDArray[Any], counts: Sequence[Sequence[int]]) -> NDArray[Any]:
        out = np.empty(sum(row[self.rank] for row in counts), x.dtype)
        run(self.group.all_to_all, x, [count * x.itemsize for row in counts for count in row], out)
        return out

    def broadcast(self, x: NDArray[Any], root: int) -> None:
        run(self.group.broadcast, x, root)

    def send(self, x: NDArray[Any], to: int) -> None:
        run(self.group.send, x, to)

    def recv(self, x: NDArray[Any], source: int) -> None:
        run(self.group.recv, x, source)

    def barrier(self) -> None:
        run(self.group.barrier)

    def traffic(self) -> Sequence[tuple[int, int]]:
        return self.group.traffic()

    def abort(self) -> None:
        run(self.group.abort, f"rank {self.rank} aborted the group")

    def close(self) -> None:
        """Leave: a rank that still waits for this one raises at once."""
        run(self.group.close)

    def native_table(self) -> object:
        return self.group.native_table()


def run(operation: Callable[..., None], *arguments: Any) -> None:
    try:
        operation(*arguments)
    except _collectives.GroupError as error:
        raise CollectiveError(str(error)) from None
