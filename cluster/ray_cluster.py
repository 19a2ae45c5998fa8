"""Joining or starting Ray, and reserving a mesh's places in it."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from typing import Any

from tinycluster.cluster.config import ModelSettings, Settings
from tinycluster.cluster.local import num_cores
from tinycluster.cluster.placement import Placement, first_bundle, missing, num_cpus_needed, place, replica_bundles
from tinycluster.cluster.quiet_ray import ray
from tinycluster.engine.errors import ConfigError, PlacementError

log = logging.getLogger(__name__)
OBJECT_STORE_BYTES = 200 * 10**6
"""Almost nothing goes through Ray's object store."""


def join_or_start(settings: Settings) -> None:
    """Connect to Ray: `auto` joins the one that runs here (or RAY_ADDRESS), else starts one for this process."""
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = settings.cluster.address
    try:
        ray.init(address=address, **quiet)
    except ConnectionError as error:
        if address != "auto" or os.environ.get("RAY_ADDRESS"):
            where = os.environ.get("RAY_ADDRESS") or address
            raise ConfigError(f"cluster.address: no Ray answers at {where}; {error}") from None
        ray.init(
            address="local",
            num_cpus=max(num_cores(), num_cpus_needed(settings)),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **quiet,
        )


@dataclass(frozen=True)
class Reservation:
    """The places of one model's ranks in a placement group, which this process made or found itself in."""

    group: Any
    bundle_of_rank: tuple[int, ...]
    is_own: bool

    def strategy(self, rank: int) -> Any:
        return ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
            self.group,
            placement_group_bundle_index=self.bundle_of_rank[rank],
            placement_group_capture_child_tasks=True,
        )

    def release(self) -> None:
        if self.is_own:
            with contextlib.suppress(Exception):  # Ray may be gone already
                ray.util.remove_placement_group(self.group)


def reserve(model: ModelSettings, settings: Settings) -> Reservation:
    """The model's bundles of a Serve replica's own placement group, or a new group.

    PlacementError after `placement_timeout` seconds, saying what the cluster lacks.
    """
    placement = place(model)
    current = ray.util.get_current_placement_group()
    if current is not None and current.bundle_specs == replica_bundles(settings):
        first = first_bundle(settings, model)
        return Reservation(current, tuple(first + bundle for bundle in placement.bundle_of_rank), is_own=False)
    group = ray.util.placement_group(list(placement.bundles), strategy=placement.strategy)
    reservation = Reservation(group, placement.bundle_of_rank, is_own=True)
    timeout_s = settings.cluster.placement_timeout_s
    if (lack := missing(placement, _cpus_of_nodes())) is not None:
        log.warning("%s: %s; waiting %g s for nodes to join", model.name, lack, timeout_s)
    if not group.wait(timeout_s):
        reservation.release()
        raise PlacementError(f"{model.name}: {_lack(placement)}; waited {timeout_s:g} s")
    return reservation


def _cpus_of_nodes() -> list[float]:
    return [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]


def _lack(placement: Placement) -> str:
    needed = sum(bundle["CPU"] for bundle in placement.bundles)
    free = ray.available_resources().get("CPU", 0.0)
    return missing(placement, _cpus_of_nodes()) or f"the mesh needs {needed:g} CPUs and {free:g} are free"
