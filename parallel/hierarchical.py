"""A group spread over nodes: shared memory inside each node, and the nodes' leaders among themselves over TCP."""

from __future__ import annotations

from collections.abc import Sequence

from tinycluster.kernels import _collectives
from tinycluster.parallel.native import NativeCommunicator
from tinycluster.parallel.region import RegionCommunicator
from tinycluster.parallel.tcp import TcpCommunicator


class HierarchicalCommunicator(NativeCommunicator):
    """One rank of a group whose ranks `nodes[i]` live on node i.

    `node_group` is the communicator of this rank's node, ranked as in nodes[i]. `leaders`, with one rank per node in
    the order of `nodes`, is held by the first rank of each node and is None elsewhere. `send` and `recv` work inside a
    node. The communicator owns both and closes them.
    """

    def __init__(
        self,
        rank: int,
        nodes: Sequence[Sequence[int]],
        node_group: RegionCommunicator,
        leaders: TcpCommunicator | None,
    ) -> None:
        order = [r for ranks in nodes for r in ranks]
        if sorted(order) != list(range(len(order))) or not all(nodes):
            raise ValueError(f"nodes must hold every rank once and none may be empty, got {nodes}")
        mine = next(ranks for ranks in nodes if rank in ranks)
        place = (mine.index(rank), len(mine))
        if (node_group.rank, node_group.size) != place:
            raise ValueError(f"the node group of rank {rank} must be rank {place[0]} of {place[1]}")
        if (leaders is not None) != (place[0] == 0) or (leaders and leaders.size != len(nodes)):
            raise ValueError("the first rank of each node, and no other, has a communicator of all leaders")
        leader_group = leaders.group if leaders else None
        super().__init__(
            _collectives.TieredGroup(rank, [list(ranks) for ranks in nodes], node_group.group, leader_group)
        )
