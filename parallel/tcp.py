"""A group whose ranks may be on different nodes, over one TCP socket per pair of ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinycluster.parallel.communicator import F32, I64, CollectiveError
from tinycluster.parallel.tcp_connection import Connection, Kind
from tinycluster.parallel.tcp_handshake import Address, Identity, TcpListener, join

__all__ = ["Address", "TcpCommunicator", "TcpListener"]

_NOTHING = np.empty(0, np.uint8)
# From here on a sum of more than two ranks sends every element twice instead of size - 1 times.
_SCATTER_BYTES = 64 * 1024
# Elements per round of a sum: what the sockets buffer, so that nobody needs to copy a backlog.
_CHUNK = 32768


class TcpCommunicator:
    """One rank of a group over TCP; see Communicator for the contract.

    Every rank makes a TcpListener on its node's address, the caller tells all addresses (in rank order), the secret and
    the epoch to all ranks, and the constructor returns when every pair has a proven connection. A failed call breaks
    the group: the connections are cut, so that the other ranks raise at once too. Raises CollectiveError.
    """

    def __init__(
        self,
        rank: int,
        listener: TcpListener,
        addresses: Sequence[Address],
        *,
        secret: bytes,
        epoch: int,
        timeout_s: float,
    ) -> None:
        self._rank, self._size, self._timeout_s = rank, len(addresses), timeout_s
        peers = join(Identity(rank, len(addresses), epoch, secret), listener, addresses, timeout_s)
        self._peers = {peer.rank: Connection(peer.socket, rank=rank, peer=peer.rank, epoch=epoch) for peer in peers}

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._size

    def all_reduce(self, x: F32 | I64) -> None:
        if not x.flags.c_contiguous:
            raise ValueError("arrays must be C-contiguous")
        flat = x.reshape(-1)
        if flat.size == 0 or self.size == 1:
            return
        with self._call() as deadline:
            for start in range(0, flat.size, _CHUNK):
                self._reduce_chunk(flat[start : start + _CHUNK], deadline)

    def all_gather(self, x: NDArray[Any], counts: Sequence[int]) -> NDArray[Any]:
        if len(counts) != self.size or x.shape != (counts[self.rank],):
            raise ValueError(f"rank {self.rank} gathers an array of shape {x.shape} with counts {list(counts)}")
        out = np.empty(sum(counts), x.dtype)
        parts = np.split(out, np.cumsum(counts[:-1]))
        parts[self.rank][:] = x
        with self._call() as deadline:
            self._exchange(Kind.ALL_GATHER, [x] * self.size, parts, deadline)
        return out

    def broadcast(self, x: NDArray[Any], root: int) -> None:
        with self._call() as deadline:
            if self.rank == root:
                for peer in self._peers.values():
                    peer.send(Kind.BROADCAST, x, deadline)
            else:
                self._peers[root].recv(Kind.BROADCAST, x, deadline)

    def send(self, x: NDArray[Any], to: int) -> None:
        with self._call() as deadline:
            self._peers[to].send(Kind.MESSAGE, x, deadline)

    def recv(self, x: NDArray[Any], source: int) -> None:
        with self._call() as deadline:
            self._peers[source].recv(Kind.MESSAGE, x, deadline)

    def barrier(self) -> None:
        with self._call() as deadline:
            self._exchange(Kind.BARRIER, [_NOTHING] * self.size, [_NOTHING] * self.size, deadline)

    def abort(self) -> None:
        self._cut(f"rank {self.rank} aborted the group")

    def close(self) -> None:
        for peer in self._peers.values():
            peer.close()

    def native_table(self) -> None:
        return None

    def _reduce_chunk(self, x: NDArray[Any], deadline: float) -> None:
        if self.size == 2 or x.nbytes < _SCATTER_BYTES:
            x[:] = self._sum(x, [x] * self.size, deadline)
            return
        parts = np.array_split(x, self.size)
        mine = parts[self.rank]
        mine[:] = self._sum(mine, parts, deadline)
        self._exchange(Kind.ALL_REDUCE, [mine] * self.size, parts, deadline)

    def _sum(self, mine: NDArray[Any], outgoing: Sequence[NDArray[Any]], deadline: float) -> NDArray[Any]:
        """Send outgoing[r] to rank r; the sum of `mine` and what the others send for it, taken in rank order."""
        addends = [mine if rank == self.rank else np.empty_like(mine) for rank in range(self.size)]
        self._exchange(Kind.ALL_REDUCE, outgoing, addends, deadline)
        total = addends[0].copy()
        for addend in addends[1:]:
            total += addend
        return total

    def _exchange(
        self, kind: Kind, outgoing: Sequence[NDArray[Any]], incoming: Sequence[NDArray[Any]], deadline: float
    ) -> None:
        for rank, peer in self._peers.items():
            peer.send(kind, outgoing[rank], deadline)
        for rank, peer in self._peers.items():
            peer.recv(kind, incoming[rank], deadline)

    @contextmanager
    def _call(self) -> Iterator[float]:
        """The deadline of a call, which breaks the group if it fails."""
        try:
            yield time.monotonic() + self._timeout_s
        except CollectiveError as error:
            self._cut(str(error))
            raise

    def _cut(self, reason: str) -> None:
        for peer in self._peers.values():
            peer.fail(reason)
