"""Native collectives. tinycluster.parallel.native wraps them; the contract is in tinycluster.parallel.communicator.

Every call releases the GIL while it waits and copies, and raises GroupError when the group broke.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

class GroupError(RuntimeError): ...

def region_bytes(size: int, slot_bytes: int, mailbox_bytes: int) -> int:
    """How much memory a group of `size` ranks needs."""

def format_region(memory: Buffer, size: int, slot_bytes: int, mailbox_bytes: int, epoch: int) -> None:
    """Write the header into zeroed memory; the magic number comes last."""

class _Calls:
    """Not a class of the module: what its groups have in common."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def native_table(self) -> object:
        """A capsule with the CollectiveTable of collective_table.h; it keeps the group alive."""

    def traffic(self) -> list[tuple[int, int]]:
        """Bytes sent to every rank and received from it so far; any thread may ask, at any time."""

    def all_reduce(self, x: NDArray[np.int64] | NDArray[np.float32]) -> None: ...
    def reduce_scatter(self, x: NDArray[np.int64], counts: Sequence[int]) -> None: ...
    def all_gather(self, x: NDArray[Any], bytes: Sequence[int], out: NDArray[Any]) -> None: ...
    def all_to_all(self, x: NDArray[Any], bytes: Sequence[int], out: NDArray[Any]) -> None: ...
    def broadcast(self, x: NDArray[Any], root: int) -> None: ...
    def send(self, x: NDArray[Any], to: int) -> None: ...
    def recv(self, x: NDArray[Any], source: int) -> None: ...
    def barrier(self) -> None: ...
    def abort(self, reason: str) -> None: ...
    def close(self) -> None: ...

class Group(_Calls):
    """One rank of a group whose region is `memory`.

    `fd` is the region's file, opened by this rank alone, or -1: a lock in it tells the other ranks that this one lives.
    """

    def __init__(
        self,
        memory: Buffer,
        size: int,
        rank: int,
        slot_bytes: int,
        mailbox_bytes: int,
        epoch: int,
        timeout_s: float,
        spin_us: float,
        fd: int,
    ) -> None: ...
    def attach(self) -> None: ...

class TcpGroup(_Calls):
    """One rank of a group over sockets: fds[r] is connected to rank r. The descriptors are duplicated."""

    def __init__(self, fds: Sequence[int], rank: int, epoch: int, timeout_s: float, spin_us: float) -> None: ...

class TieredGroup(_Calls):
    """One rank of a group over nodes; `leaders` is the first rank's of each node. Both groups are kept alive."""

    def __init__(
        self, rank: int, nodes: Sequence[Sequence[int]], node: Group, leaders: TcpGroup | None
    ) -> None: ...
