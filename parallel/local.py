"""A group whose ranks are threads of one process."""

from __future__ import annotations

import mmap

from tinycluster.parallel.region import RegionCommunicator, RegionShape


class LocalGroup:
    """Hands every rank its communicator; the memory lives as long as one of them.

    `mailbox_bytes` is what `send` may run ahead of `recv`, per pair of ranks; memory is taken as it is used.
    """

    def __init__(
        self, size: int, *, timeout_s: float = 30.0, slot_bytes: int = 128 * 1024, mailbox_bytes: int = 16 * 2**20
    ) -> None:
        self._shape = RegionShape(size, slot_bytes, mailbox_bytes)
        self._timeout_s = timeout_s
        self._memory = mmap.mmap(-1, self._shape.num_bytes)
        self._shape.format(self._memory, epoch=0)

    def communicator(self, rank: int) -> RegionCommunicator:
        """The communicator of one rank, to be used by one thread; each rank may be asked for once."""
        return RegionCommunicator(self._memory, self._shape, rank, timeout_s=self._timeout_s)
