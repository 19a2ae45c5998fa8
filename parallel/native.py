"""A communicator over shared memory, whoever made the memory. local.py and shared_memory.py do."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinycluster.kernels import _collectives
from tinycluster.parallel.communicator import F32, I64, CollectiveError

SPIN_US = 50.0


@dataclass(frozen=True)
class RegionShape:
    """The memory of a group. Larger calls go in chunks; `send` returns at once while the mailbox has room."""

    size: int
    slot_bytes: int = 128 * 1024
    mailbox_bytes: int = 64 * 1024

    def __post_init__(self) -> None:
        for name in ("size", "slot_bytes", "mailbox_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a group must be positive, got {getattr(self, name)}")

    @property
    def num_bytes(self) -> int:
        return _collectives.region_bytes(self.size, self.slot_bytes, self.mailbox_bytes)

    def format(self, memory: mmap.mmap, epoch: int) -> None:
        _collectives.format_region(memory, self.size, self.slot_bytes, self.mailbox_bytes, epoch)


class NativeCommunicator:
    """One rank of a group in shared memory; see Communicator for the contract.

    A rank that waits spins for `spin_us`, then lets others run between looks, then sleeps; by default it does not spin
    if the group has more ranks than the machine has cores. A failed call breaks the group: every rank then raises the
    first failure's sentence.
    One thread at a time may call, except that `send` and `recv` may overlap, and `abort` and `close` always may.
    """

    def __init__(
        self,
        memory: mmap.mmap,
        shape: RegionShape,
        rank: int,
        *,
        timeout_s: float,
        epoch: int = 0,
        spin_us: float | None = None,
        fd: int = -1,
    ) -> None:
        if spin_us is None:
            spin_us = SPIN_US if shape.size <= (os.cpu_count() or 1) else 0.0
        try:
            self._group = _collectives.Group(
                memory, shape.size, rank, shape.slot_bytes, shape.mailbox_bytes, epoch, timeout_s, spin_us, fd
            )
        except _collectives.GroupError as error:
            raise CollectiveError(str(error)) from None

    @property
    def rank(self) -> int:
        return self._group.rank

    @property
    def size(self) -> int:
        return self._group.size

    def attach(self) -> None:
        """Wait until every rank has attached."""
        _run(self._group.attach)

    def all_reduce(self, x: F32 | I64) -> None:
        _run(self._group.all_reduce, x)

    def all_gather(self, x: NDArray[Any], counts: Sequence[int]) -> NDArray[Any]:
        out = np.empty(sum(counts), x.dtype)
        _run(self._group.all_gather, x, [count * x.itemsize for count in counts], out)
        return out

    def broadcast(self, x: NDArray[Any], root: int) -> None:
        _run(self._group.broadcast, x, root)

    def send(self, x: NDArray[Any], to: int) -> None:
        _run(self._group.send, x, to)

    def recv(self, x: NDArray[Any], source: int) -> None:
        _run(self._group.recv, x, source)

    def barrier(self) -> None:
        _run(self._group.barrier)

    def abort(self) -> None:
        _run(self._group.abort, f"rank {self.rank} aborted the group")

    def close(self) -> None:
        """Leave: a rank that still waits for this one raises at once."""
        _run(self._group.close)

    def native_table(self) -> object:
        return self._group.native_table()


def _run(operation: Callable[..., None], *arguments: Any) -> None:
    try:
        operation(*arguments)
    except _collectives.GroupError as error:
        raise CollectiveError(str(error)) from None
