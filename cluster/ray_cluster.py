"""Joining or starting Ray, and reserving a mesh's places in it."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinycluster.cluster.config import ModelSettings, Settings
from tinycluster.cluster.cores import num_cores
from tinycluster.cluster.placement import Placement, first_bundle, missing, num_cpus_needed, place, replica_bundles
from tinycluster.cluster.quiet_ray import ray
from tinycluster.engine.errors import ConfigError, PlacementError

log = logging.getLogger(__name__)
OBJECT_STORE_BYTES = 200 * 10**6
"""Almost nothing goes through Ray's object store."""


_ANSWER_TIMEOUT_S = 5.0
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def join_or_start(settings: Settings) -> None:
    """Connect to Ray. `auto` joins RAY_ADDRESS or what `ray start` left running here, else starts one for this process.

    A Ray that another process started for itself is left alone: it ends with that process. ConfigError when nothing
    answers at an address that was given.
    """
    if ray.is_initialized():
        return
    given = settings.cluster.address if settings.cluster.address != "auto" else os.environ.get("RAY_ADDRESS")
    if given:
        _join(given)
    elif (here := _address_of_ray_start()) is not None and answers(here):
        # Without an address Ray finds the same one, and takes the token of ~/.ray where there is one.
        ray.init(**_QUIET)
    else:
        ray.init(
            address="local",
            num_cpus=max(num_cores(), num_cpus_needed(settings)),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **_QUIET,
        )


def _join(address: str) -> None:
    if not answers(address):
        raise ConfigError(f"cluster.address: no Ray answers at {address}")
    try:
        ray.init(address=address, **_QUIET)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"cluster.address: cannot join the Ray at {address}: {str(error).splitlines()[0]}; versions must be equal, "
            "and a Ray with tokens needs RAY_AUTH_MODE=token and the head's ~/.ray/auth_token"
        ) from None


def answers(address: str) -> bool:
    """Whether something listens at host:port. Ray itself would ask for ten minutes and longer."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _address_of_ray_start() -> str | None:
    """`ray start` notes the head's address in the folder of Ray's sessions; `ray stop` removes the note."""
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    try:
        return (folder / "ray" / "ray_current_cluster").read_text().strip() or None
    except OSError:
        return None


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
            try:
                ray.util.remove_placement_group(self.group)
            except Exception as error:
                log.debug("a placement group was not removed, Ray may be gone already: %s", error)


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
