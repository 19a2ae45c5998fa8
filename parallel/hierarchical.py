"""A group spread over nodes: shared memory inside each node, and the nodes' leaders among themselves over TCP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinycluster.parallel.communicator import F32, I64, CollectiveError, Communicator


class HierarchicalCommunicator:
    """One rank of a group whose ranks `nodes[i]` live on node i; see Communicator for the contract.

    `node_group` is the communicator of this rank's node, ranked as in nodes[i]. `leaders`, with one rank per node in
    the order of `nodes`, is held by the first rank of each node and is None elsewhere. `send` and `recv` work inside a
    node. The communicator owns both and closes them.
    """

    def __init__(
        self, rank: int, nodes: Sequence[Sequence[int]], node_group: Communicator, leaders: Communicator | None
    ) -> None:
        self._rank, self._nodes = rank, tuple(tuple(ranks) for ranks in nodes)
        self._order = [r for ranks in self._nodes for r in ranks]
        if sorted(self._order) != list(range(len(self._order))) or not all(self._nodes):
            raise ValueError(f"nodes must hold every rank once and none may be empty, got {self._nodes}")
        self._node = next(node for node, ranks in enumerate(self._nodes) if rank in ranks)
        place = (self._nodes[self._node].index(rank), len(self._nodes[self._node]))
        if (node_group.rank, node_group.size) != place:
            raise ValueError(f"the node group of rank {rank} must be rank {place[0]} of {place[1]}")
        if (leaders is not None) != (place[0] == 0) or (leaders and leaders.size != len(self._nodes)):
            raise ValueError("the first rank of each node, and no other, has a communicator of all leaders")
        self._node_group, self._leaders = node_group, leaders

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return len(self._order)

    def all_reduce(self, x: F32 | I64) -> None:
        if x.dtype != np.int64:
            x[...] = self._sum_in_rank_order(x.reshape(-1)).reshape(x.shape)
            return
        with self._call():
            self._node_group.all_reduce(x)
            if self._leaders is not None:
                self._leaders.all_reduce(x)
            self._node_group.broadcast(x, root=0)

    def all_gather(self, x: NDArray[Any], counts: Sequence[int]) -> NDArray[Any]:
        by_node = [[counts[rank] for rank in ranks] for ranks in self._nodes]
        everything = np.empty(sum(counts), x.dtype)
        with self._call():
            gathered = self._node_group.all_gather(x, by_node[self._node])
            if self._leaders is not None:
                everything = self._leaders.all_gather(gathered, [sum(node) for node in by_node])
            self._node_group.broadcast(everything, root=0)
        ends = np.cumsum([counts[rank] for rank in self._order])[:-1]
        parts = dict(zip(self._order, np.split(everything, ends), strict=True))
        return np.concatenate([parts[rank] for rank in range(self.size)])

    def broadcast(self, x: NDArray[Any], root: int) -> None:
        root_node = next(node for node, ranks in enumerate(self._nodes) if root in ranks)
        with self._call():
            if self._node == root_node:
                self._node_group.broadcast(x, self._nodes[root_node].index(root))
            if self._leaders is not None:
                self._leaders.broadcast(x, root_node)
            if self._node != root_node:
                self._node_group.broadcast(x, root=0)

    def send(self, x: NDArray[Any], to: int) -> None:
        self._node_group.send(x, self._neighbour(to))

    def recv(self, x: NDArray[Any], source: int) -> None:
        self._node_group.recv(x, self._neighbour(source))

    def barrier(self) -> None:
        with self._call():
            self._node_group.barrier()
            if self._leaders is not None:
                self._leaders.barrier()
            self._node_group.barrier()

    def abort(self) -> None:
        self._node_group.abort()
        if self._leaders is not None:
            self._leaders.abort()

    def close(self) -> None:
        self._node_group.close()
        if self._leaders is not None:
            self._leaders.close()

    def native_table(self) -> None:
        return None

    def _sum_in_rank_order(self, flat: NDArray[Any]) -> NDArray[Any]:
        # A sum per node first would add floats in another order than the contract's.
        addends = np.split(self.all_gather(flat, [flat.size] * self.size), self.size)
        total = addends[0]
        for addend in addends[1:]:
            total += addend
        return total

    @contextmanager
    def _call(self) -> Iterator[None]:
        """A failure among the leaders must reach those who wait inside the nodes, and the other way round."""
        try:
            yield
        except CollectiveError:
            self.abort()
            raise

    def _neighbour(self, rank: int) -> int:
        if rank not in self._nodes[self._node]:
            raise ValueError(f"ranks {self.rank} and {rank} are on different nodes: give them a TcpCommunicator")
        return self._nodes[self._node].index(rank)
