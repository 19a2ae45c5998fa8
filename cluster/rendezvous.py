"""Who talks to whom over what: shared memory inside a node, TCP between nodes.

Every rank introduces itself with its node and three listening sockets; the driver arranges the groups in pure code and
tells each rank its part; then all ranks connect, in an order in which nobody can wait for somebody who waits for him.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from tinycluster.cluster.cores import NodeCores
from tinycluster.cluster.worker import Neighbours
from tinycluster.parallel.communicator import Communicator
from tinycluster.parallel.hierarchical import HierarchicalCommunicator
from tinycluster.parallel.local import LocalGroup
from tinycluster.parallel.mesh import Mesh
from tinycluster.parallel.native import spin_us_of
from tinycluster.parallel.pipeline import Link, PeerLink
from tinycluster.parallel.region import RegionCommunicator
from tinycluster.parallel.shared_memory import SharedMemoryCommunicator
from tinycluster.parallel.tcp import Address, TcpCommunicator, TcpListener

_LINK_MAILBOX_BYTES = 2**20


@dataclass(frozen=True)
class Introduction:
    """What a rank tells of itself. Nodes are told apart by Ray's id: several may share an address."""

    rank: int
    node_id: str
    host: str
    pid: int
    cores: NodeCores
    versions: str
    tensor: Address
    """Where its tensor group, the stage before it and the stage after it may connect to it."""
    previous: Address
    next: Address


@dataclass(frozen=True)
class TensorPlan:
    """`nodes`: the tensor ranks of each node; `leaders`: where the first rank of each listens, if there are several."""

    name: str
    nodes: tuple[tuple[int, ...], ...]
    leaders: tuple[Address, ...]


@dataclass(frozen=True)
class LinkPlan:
    """A pair of ranks, the one of the earlier stage first. No addresses: both are in one node."""

    name: str
    addresses: tuple[Address, ...]


@dataclass(frozen=True)
class RankPlan:
    tensor_rank: int
    tensor: TensorPlan
    previous: LinkPlan | None
    next: LinkPlan | None
    num_ranks_on_machine: int


@dataclass(frozen=True)
class Meeting:
    """What all groups of one start share: a random name, a secret, the epoch, and the bound on every wait."""

    name: str
    secret: bytes
    epoch: int
    timeout_s: float

    def secret_of(self, group: str) -> bytes:
        """A secret of the group's own: a connection meant for one group can't end in another."""
        return sha256(self.secret + group.encode()).digest()


def arrange(introductions: Sequence[Introduction], mesh: Mesh, name: str) -> tuple[RankPlan, ...]:
    """Every rank's part, in rank order; `introductions` are in rank order."""
    cores_of = [introduction.cores for introduction in introductions]
    plans = []
    for rank in range(mesh.size):
        stage, tensor_rank = mesh.stage_of(rank), mesh.tensor_rank_of(rank)
        members = introductions[stage * mesh.tensor : (stage + 1) * mesh.tensor]
        plans.append(
            RankPlan(
                tensor_rank,
                _tensor_plan(members, f"{name}-stage{stage}"),
                _link_plan(introductions, mesh, rank - mesh.tensor, name) if stage > 0 else None,
                _link_plan(introductions, mesh, rank, name) if stage < mesh.pipeline - 1 else None,
                cores_of.count(cores_of[rank]),
            )
        )
    return tuple(plans)


def _tensor_plan(members: Sequence[Introduction], name: str) -> TensorPlan:
    nodes: dict[str, list[int]] = {}
    for tensor_rank, member in enumerate(members):
        nodes.setdefault(member.node_id, []).append(tensor_rank)
    groups = tuple(map(tuple, nodes.values()))
    leaders = tuple(members[group[0]].tensor for group in groups) if len(groups) > 1 else ()
    return TensorPlan(name, groups, leaders)


def _link_plan(introductions: Sequence[Introduction], mesh: Mesh, rank: int, name: str) -> LinkPlan:
    """The link from `rank` to its counterpart in the next stage."""
    near, far = introductions[rank], introductions[rank + mesh.tensor]
    addresses = () if near.node_id == far.node_id else (near.next, far.previous)
    return LinkPlan(f"{name}-link{rank}", addresses)


class Listeners:
    """A rank's three listening sockets on its node's address; those that no group takes are closed."""

    def __init__(self, host: str) -> None:
        self.tensor, self.previous, self.next = TcpListener(host), TcpListener(host), TcpListener(host)

    def close(self) -> None:
        for listener in (self.tensor, self.previous, self.next):
            listener.close()


def meet(plan: RankPlan, meeting: Meeting, listeners: Listeners) -> Neighbours:
    """Connect to all neighbours. CollectiveError when one does not come within `timeout_s`.

    The order is the tensor group, then the link to the stage before, then the one after: stage 0 waits for nobody but
    its group, and every other stage's first link is the second of the stage before it.
    """
    communicators: list[Communicator] = []
    try:
        tensor_group = _tensor_group(plan, meeting, listeners, communicators)
        spin_us = spin_us_of(plan.num_ranks_on_machine)
        previous = _link(plan.previous, 1, meeting, listeners.previous, communicators, spin_us)
        next_link = _link(plan.next, 0, meeting, listeners.next, communicators, spin_us)
    except BaseException:
        _abort(communicators)
        raise
    finally:
        listeners.close()
    return Neighbours(tensor_group, previous, next_link, lambda: _abort(communicators))


def _abort(communicators: list[Communicator]) -> None:
    for communicator in communicators:
        communicator.abort()


def _tensor_group(
    plan: RankPlan, meeting: Meeting, listeners: Listeners, communicators: list[Communicator]
) -> Communicator:
    tensor = plan.tensor
    index = next(index for index, group in enumerate(tensor.nodes) if plan.tensor_rank in group)
    group = tensor.nodes[index]
    place = group.index(plan.tensor_rank)
    spin_us = spin_us_of(plan.num_ranks_on_machine)
    if len(group) == 1:
        node_group: RegionCommunicator = LocalGroup(1).communicator(0)
    else:
        node_group = _shared_memory(f"{tensor.name}-node{index}", place, len(group), meeting, spin_us)
    communicators.append(node_group)
    if len(tensor.nodes) == 1:
        return node_group
    leaders = _tcp(tensor.name, index, tensor.leaders, meeting, listeners.tensor, spin_us) if place == 0 else None
    whole = HierarchicalCommunicator(plan.tensor_rank, tensor.nodes, node_group, leaders)
    communicators[:] = [whole]
    return whole


def _link(
    plan: LinkPlan | None,
    side: int,
    meeting: Meeting,
    listener: TcpListener,
    communicators: list[Communicator],
    spin_us: float,
) -> Link | None:
    if plan is None:
        return None
    if plan.addresses:
        pair: Communicator = _tcp(plan.name, side, plan.addresses, meeting, listener, spin_us)
    else:
        pair = _shared_memory(plan.name, side, 2, meeting, spin_us, mailbox_bytes=_LINK_MAILBOX_BYTES)
    communicators.append(pair)
    return PeerLink(pair, 1 - side)


def _shared_memory(
    name: str, rank: int, size: int, meeting: Meeting, spin_us: float, **sizes: int
) -> SharedMemoryCommunicator:
    return SharedMemoryCommunicator(
        name, rank, size, timeout_s=meeting.timeout_s, epoch=meeting.epoch, spin_us=spin_us, **sizes
    )


def _tcp(
    name: str, rank: int, addresses: tuple[Address, ...], meeting: Meeting, listener: TcpListener, spin_us: float
) -> TcpCommunicator:
    return TcpCommunicator(
        rank,
        listener,
        addresses,
        secret=meeting.secret_of(name),
        epoch=meeting.epoch,
        timeout_s=meeting.timeout_s,
        spin_us=spin_us,
    )
