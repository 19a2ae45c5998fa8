"""What an executor sees of its neighbours: the tensor ranks of its stage, and the same rank of the stages around it.

Every tensor rank of a stage holds the same activations, so tensor rank t of a stage sends to tensor rank t of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinycluster.parallel.communicator import F32, I64, Communicator


class Link(Protocol):
    """One end of a connection to one rank. `send` does not wait for the peer's `recv` while there is buffer left.

    Both ends agree on shapes and dtypes. A peer that is late or gone raises CollectiveError.
    """

    def send(self, x: NDArray[Any]) -> None: ...
    def recv(self, x: NDArray[Any]) -> None:
        """Fill x."""
        ...

    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received so far."""
        ...

    def native_table(self) -> tuple[object, int]:
        """The table of the communicator (see Communicator.native_table) and the peer's rank in it."""
        ...


class PeerLink:
    """The link to rank `peer` of a communicator's group."""

    def __init__(self, communicator: Communicator, peer: int) -> None:
        if not 0 <= peer < communicator.size or peer == communicator.rank:
            raise ValueError(f"rank {communicator.rank} of {communicator.size} cannot have a link to rank {peer}")
        self._communicator = communicator
        self._peer = peer

    def send(self, x: NDArray[Any]) -> None:
        self._communicator.send(x, self._peer)

    def recv(self, x: NDArray[Any]) -> None:
        self._communicator.recv(x, self._peer)

    def traffic(self) -> tuple[int, int]:
        return self._communicator.traffic()[self._peer]

    def native_table(self) -> tuple[object, int]:
        return self._communicator.native_table(), self._peer


class StageCollectives:
    """kernels.program.Collectives of one rank. The first stage has no `previous`, the last no `next`."""

    def __init__(self, tensor_group: Communicator, previous: Link | None, next: Link | None) -> None:
        self._tensor_group = tensor_group
        self._previous = previous
        self._next = next

    @property
    def tensor_table(self) -> object:
        """For native code: the calls of the stage's tensor ranks."""
        return self._tensor_group.native_table()

    @property
    def previous_table(self) -> tuple[object, int] | None:
        """For native code: the calls of the link to the stage before, and the peer to name in them."""
        return None if self._previous is None else self._previous.native_table()

    @property
    def next_table(self) -> tuple[object, int] | None:
        return None if self._next is None else self._next.native_table()

    def all_reduce(self, x: F32 | I64) -> None:
        """x becomes the sum over the stage's tensor ranks, in place."""
        if self._tensor_group.size > 1:
            self._tensor_group.all_reduce(x)

    def all_gather_columns(self, x: F32, widths: Sequence[int]) -> F32:
        """x (O, widths[rank]) of every tensor rank, side by side in rank order: (O, sum of widths)."""
        if self._tensor_group.size == 1:
            return x
        num_rows = x.shape[0]
        flat = self._tensor_group.all_gather(x.reshape(-1), [num_rows * width for width in widths])
        ends = np.cumsum([num_rows * width for width in widths[:-1]])
        parts = [part.reshape(num_rows, width) for part, width in zip(np.split(flat, ends), widths, strict=True)]
        return np.concatenate(parts, axis=1)

    def send_next(self, x: F32) -> None:
        if self._next is None:
            raise ValueError("the last stage has no next stage to send to")
        self._next.send(x)

    def recv_previous(self, out: F32) -> None:
        if self._previous is None:
            raise ValueError("the first stage has no previous stage to receive from")
        self._previous.recv(out)
