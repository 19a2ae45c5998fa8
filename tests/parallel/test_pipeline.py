from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinycluster.kernels.program import Collectives
from tinycluster.parallel.hierarchical import HierarchicalCommunicator
from tinycluster.parallel.mesh import Mesh
from tinycluster.parallel.pipeline import PeerLink, StageCollectives

# Shape legend: T = tokens, D = hidden size, O = output rows, V = vocabulary.


@pytest.mark.parametrize("kind", ["local", "shared_memory", "tcp", "hierarchical"])
def test_logits_are_gathered_in_vocabulary_order(kind: str, groups: Any, in_threads: Any) -> None:
    widths = (64, 0, 37)
    logits_OV = np.arange(5 * 101, dtype=np.float32).reshape(5, 101)
    columns = np.split(logits_OV, np.cumsum(widths)[:-1], axis=1)

    def body(communicator: Any) -> None:
        collectives: Collectives = StageCollectives(communicator, None, None)
        for num_rows in (0, 1, 5):
            gathered = collectives.all_gather_columns(columns[communicator.rank][:num_rows], widths)
            assert gathered.flags.c_contiguous
            np.testing.assert_array_equal(gathered, logits_OV[:num_rows])

    for future in in_threads(groups.open(kind, 3), body):
        future.result()


@pytest.mark.parametrize("kind", ["local", "shared_memory", "tcp"])
def test_activations_go_through_the_stages_and_sums_stay_inside_them(kind: str, groups: Any, in_threads: Any) -> None:
    """Each stage adds 1 on every tensor rank and sums over its tensor ranks: x becomes 2 * (x + 1) per stage."""
    mesh = Mesh(tensor=2, pipeline=3)
    world = groups.open(kind, mesh.size)
    tensor_groups = [groups.open(kind, mesh.tensor) for _ in range(mesh.pipeline)]

    def body(rank: int) -> list[Any]:
        stage, tensor_rank = mesh.stage_of(rank), mesh.tensor_rank_of(rank)
        previous = PeerLink(world[rank], mesh.rank_of(stage - 1, tensor_rank)) if stage > 0 else None
        next = PeerLink(world[rank], mesh.rank_of(stage + 1, tensor_rank)) if stage < mesh.pipeline - 1 else None
        collectives = StageCollectives(tensor_groups[stage][tensor_rank], previous, next)
        outputs = []
        for micro_batch in range(4):
            x_TD = np.full((micro_batch + 1, 576), micro_batch, np.float32)
            if previous:
                collectives.recv_previous(x_TD)
            x_TD += 1
            collectives.all_reduce(x_TD)
            if next:
                collectives.send_next(x_TD)
            outputs.append(x_TD)
        return outputs

    outcomes = in_threads(range(mesh.size), body)
    for future in outcomes[-mesh.tensor :]:
        for micro_batch, x_TD in enumerate(future.result()):
            expected = 8 * micro_batch + 14
            np.testing.assert_array_equal(x_TD, np.full((micro_batch + 1, 576), expected))


@pytest.mark.parametrize("kind", ["local", "tcp"])
def test_a_stage_runs_ahead_of_the_next_by_two_of_the_largest_micro_batches(kind: str, groups: Any) -> None:
    first, second = groups.open(kind, 2)
    sender = StageCollectives(first, None, PeerLink(first, 1))
    receiver = StageCollectives(second, PeerLink(second, 0), None)
    micro_batches = [np.full((512, 2048), number, np.float32) for number in range(2)]
    for x_TD in micro_batches:
        sender.send_next(x_TD)
    for x_TD in micro_batches:
        received = np.empty_like(x_TD)
        receiver.recv_previous(received)
        np.testing.assert_array_equal(received, x_TD)


def test_the_first_and_the_last_stage_have_no_neighbour_there(groups: Any) -> None:
    collectives = StageCollectives(groups.open("local", 1)[0], None, None)
    with pytest.raises(ValueError, match="no next stage"):
        collectives.send_next(np.zeros((1, 1), np.float32))
    with pytest.raises(ValueError, match="no previous stage"):
        collectives.recv_previous(np.zeros((1, 1), np.float32))


@pytest.mark.parametrize("peer", [-1, 0, 2])
def test_a_link_to_oneself_or_to_nobody_is_refused(peer: int, groups: Any) -> None:
    with pytest.raises(ValueError, match=f"rank 0 of 2 cannot have a link to rank {peer}"):
        PeerLink(groups.open("local", 2)[0], peer)


@pytest.mark.parametrize("nodes", [[[0, 1]], [[0], []], [[0], [0, 1]], [[0], [2]]])
def test_a_hierarchy_that_does_not_place_every_rank_once_is_refused(nodes: Any, groups: Any) -> None:
    with pytest.raises(ValueError):
        HierarchicalCommunicator(0, nodes, groups.open("local", 1)[0], None)
