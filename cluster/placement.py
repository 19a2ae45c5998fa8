"""Which resources a mesh asks of Ray, and what to say when the cluster lacks them. Pure: nodes are passed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinycluster.cluster.config import ModelSettings, Settings

Bundle = dict[str, float]


@dataclass(frozen=True)
class Placement:
    """A placement group's bundles, and the bundle of each rank. A bundle never spans nodes."""

    bundles: tuple[Bundle, ...]
    strategy: str
    bundle_of_rank: tuple[int, ...]


def place(model: ModelSettings) -> Placement:
    """One bundle per pipeline stage, which keeps its tensor ranks in one node; with `spread` one bundle per rank.

    PACK takes as few nodes as have the room, so one machine is enough; SPREAD takes as many as there are.
    """
    mesh = model.mesh
    if mesh.spread:
        return Placement(({"CPU": 1.0},) * mesh.size, "SPREAD", tuple(range(mesh.size)))
    stages = tuple(rank // mesh.tensor for rank in range(mesh.size))
    return Placement(({"CPU": float(mesh.tensor)},) * mesh.pipeline, "PACK", stages)


def replica_bundles(settings: Settings) -> list[Bundle]:
    """The bundles of a Serve replica that drives every model; the replica itself sits in the first one with 0 CPUs."""
    return [bundle for model in settings.models for bundle in place(model).bundles]


def first_bundle(settings: Settings, model: ModelSettings) -> int:
    """Where a model's bundles begin among `replica_bundles`."""
    index = [other.name for other in settings.models].index(model.name)
    return sum(len(place(other).bundles) for other in settings.models[:index])


def num_cpus_needed(settings: Settings) -> int:
    """CPUs of all replicas' ranks, for a Ray that is started for them."""
    return settings.server.replicas * sum(model.mesh.size for model in settings.models)


def missing(placement: Placement, cpus_of_nodes: Sequence[float]) -> str | None:
    """What the nodes lack even when idle, as a clause, or None when they have it all."""
    largest_bundle = max(bundle["CPU"] for bundle in placement.bundles)
    largest_node = max(cpus_of_nodes, default=0)
    if largest_node < largest_bundle:
        return f"the mesh needs {largest_bundle:g} CPUs in one node, the largest node has {largest_node:g}"
    num_places = sum(int(cpus // largest_bundle) for cpus in cpus_of_nodes)
    if num_places < len(placement.bundles):
        needed, total = len(placement.bundles) * largest_bundle, sum(cpus_of_nodes)
        return (
            f"the mesh needs {len(placement.bundles)} times {largest_bundle:g} CPUs in one node ({needed:g} in all), "
            f"the cluster has {total:g} in {len(cpus_of_nodes)} nodes"
        )
    return None
