"""A group whose ranks may be on different nodes, over one TCP socket per pair of ranks."""

from __future__ import annotations

from collections.abc import Sequence

from tinycluster.kernels import _collectives
from tinycluster.parallel.native import NativeCommunicator, spin_us_of
from tinycluster.parallel.tcp_handshake import Address, Identity, TcpListener, join

__all__ = ["Address", "TcpCommunicator", "TcpListener"]


class TcpCommunicator(NativeCommunicator):
    """One rank of a group over TCP.

    Every rank makes a TcpListener on its node's address, the caller tells all addresses (in rank order), the secret and
    the epoch to all ranks, and the constructor returns when every pair has a proven connection. A failed call breaks
    the group: the connections are cut, so that the other ranks raise at once too. Raises CollectiveError.
    """

    group: _collectives.TcpGroup

    def __init__(
        self,
        rank: int,
        listener: TcpListener,
        addresses: Sequence[Address],
        *,
        secret: bytes,
        epoch: int,
        timeout_s: float,
        spin_us: float | None = None,
    ) -> None:
        size = len(addresses)
        peers = join(Identity(rank, size, epoch, secret), listener, addresses, timeout_s)
        fds = [-1] * size
        for peer in peers:
            fds[peer.rank] = peer.socket.fileno()
        spin_us = spin_us_of(size) if spin_us is None else spin_us
        try:
            super().__init__(_collectives.TcpGroup(fds, rank, epoch, timeout_s, spin_us))
        finally:
            for peer in peers:
                peer.socket.close()
