"""Which places a mesh asks for, and who talks to whom over what."""

from __future__ import annotations

import pytest

from tinycluster.cluster.config import Settings
from tinycluster.cluster.cores import NodeCores
from tinycluster.cluster.placement import first_bundle, missing, num_cpus_needed, place, replica_bundles
from tinycluster.cluster.rendezvous import Introduction, LinkPlan, arrange
from tinycluster.parallel.mesh import Mesh


def settings_of(*meshes: dict[str, object], replicas: int = 1) -> Settings:
    models = [{"name": f"m{index}", "source": "x", "mesh": mesh} for index, mesh in enumerate(meshes)]
    return Settings.model_validate({"models": models, "server": {"replicas": replicas}})


def introduced(nodes: str) -> list[Introduction]:
    """One rank per letter, on the node of that name; every listening socket has an address of its own."""
    return [
        Introduction(
            rank,
            node,
            f"10.0.0.{node}",
            1,
            NodeCores(node, (0, 1)),
            "v",
            *[(f"10.0.0.{node}", 100 * rank + use) for use in range(3)],
        )
        for rank, node in enumerate(nodes)
    ]


def test_a_stage_is_one_bundle_so_that_its_ranks_share_a_node() -> None:
    placement = place(settings_of({"tensor": 3, "pipeline": 2}).models[0])
    assert placement.bundles == ({"CPU": 3.0}, {"CPU": 3.0})
    assert (placement.strategy, placement.bundle_of_rank) == ("PACK", (0, 0, 0, 1, 1, 1))


def test_spread_ranks_have_a_bundle_each() -> None:
    placement = place(settings_of({"tensor": 2, "pipeline": 2, "spread": True}).models[0])
    assert placement.bundles == ({"CPU": 1.0},) * 4
    assert (placement.strategy, placement.bundle_of_rank) == ("SPREAD", (0, 1, 2, 3))


def test_the_models_of_a_replica_share_its_bundles_in_order() -> None:
    settings = settings_of({"tensor": 2}, {"pipeline": 3}, {"tensor": 4}, replicas=2)
    assert replica_bundles(settings) == [{"CPU": 2.0}, *[{"CPU": 1.0}] * 3, {"CPU": 4.0}]
    assert [first_bundle(settings, model) for model in settings.models] == [0, 1, 4]
    assert num_cpus_needed(settings) == 18


@pytest.mark.parametrize(
    ("mesh", "cpus", "clause"),
    [
        ({"tensor": 4}, [2.0, 2.0], "the mesh needs 4 CPUs in one node, the largest node has 2"),
        ({"tensor": 4}, [], "the mesh needs 4 CPUs in one node, the largest node has 0"),
        ({"tensor": 2, "pipeline": 3}, [3.0, 3.0], "3 times 2 CPUs in one node (6 in all), the cluster has 6 in 2"),
        ({"tensor": 2, "pipeline": 3}, [4.0, 2.0], None),
        ({"tensor": 4, "spread": True}, [2.0, 2.0], None),
    ],
)
def test_what_is_missing_is_said(mesh: dict[str, object], cpus: list[float], clause: str | None) -> None:
    lack = missing(place(settings_of(mesh).models[0]), cpus)
    assert lack is None if clause is None else clause in (lack or "")


def test_ranks_of_one_node_share_memory() -> None:
    plans = arrange(introduced("AAAA"), Mesh(tensor=2, pipeline=2), "x")
    assert [plan.tensor.nodes for plan in plans] == [((0, 1),)] * 4
    assert [plan.tensor.name for plan in plans] == ["x-stage0", "x-stage0", "x-stage1", "x-stage1"]
    assert [plan.num_ranks_on_machine for plan in plans] == [4] * 4
    assert [(plan.previous, plan.next) for plan in plans] == [
        (None, LinkPlan("x-link0", ())),
        (None, LinkPlan("x-link1", ())),
        (LinkPlan("x-link0", ()), None),
        (LinkPlan("x-link1", ()), None),
    ]


def test_stages_on_different_nodes_are_linked_by_addresses() -> None:
    ranks = introduced("AB")
    first, second = arrange(ranks, Mesh(pipeline=2), "x")
    assert first.next == second.previous == LinkPlan("x-link0", (ranks[0].next, ranks[1].previous))
    assert first.tensor.nodes == second.tensor.nodes == ((0,),)


def test_tensor_ranks_on_several_nodes_have_a_leader_each() -> None:
    ranks = introduced("ABAB")
    plans = arrange(ranks, Mesh(tensor=4), "x")
    assert {plan.tensor.nodes for plan in plans} == {((0, 2), (1, 3))}
    assert {plan.tensor.leaders for plan in plans} == {(ranks[0].tensor, ranks[1].tensor)}


def test_nodes_are_told_apart_by_id_though_they_share_an_address() -> None:
    ranks = introduced("AB")
    same_host = [ranks[0], Introduction(**{**vars(ranks[1]), "host": ranks[0].host})]
    assert len(arrange(same_host, Mesh(tensor=2), "x")[0].tensor.nodes) == 2
