"""The memory that the ranks of one node share, and a communicator over it. local.py and shared_memory.py make it."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

from tinycluster.kernels import _collectives
from tinycluster.parallel.communicator import CollectiveError
from tinycluster.parallel.native import NativeCommunicator, run, spin_us_of


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


class RegionCommunicator(NativeCommunicator):
    """One rank of a group in shared memory."""

    group: _collectives.Group

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
        spin_us = spin_us_of(shape.size) if spin_us is None else spin_us
        try:
            group = _collectives.Group(
                memory, shape.size, rank, shape.slot_bytes, shape.mailbox_bytes, epoch, timeout_s, spin_us, fd
            )
        except _collectives.GroupError as error:
            raise CollectiveError(str(error)) from None
        super().__init__(group)

    def attach(self) -> None:
        """Wait until every rank has attached."""
        run(self.group.attach)
