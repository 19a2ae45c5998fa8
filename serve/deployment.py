"""`tinycluster serve` over Ray: a Serve deployment whose replica holds the API, the drivers and, below it, the ranks.

front: direct   tinycluster serve ──actors──► ranks, ──handle──► replica on this node, which drives them
                clients ──HTTP──► replica's own port
front: proxy    tinycluster serve ──handle──► replicas, each with ──actors──► ranks in its placement group
                clients ──HTTP──► Serve's proxy ──► replica
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.request import urlopen

from fastapi import FastAPI

from tinycluster.cluster.config import Settings
from tinycluster.cluster.launch import NewProgress
from tinycluster.cluster.placement import missing, num_cpus_needed, place, replica_bundles
from tinycluster.cluster.quiet_ray import ray
from tinycluster.cluster.ray import PlacedRanks
from tinycluster.engine.errors import ConfigError, PlacementError, UnavailableError
from tinycluster.serve.access import ClosedDoor
from tinycluster.serve.app import create_app
from tinycluster.serve.controller import perhaps_gone
from tinycluster.serve.local_server import Failure
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.replica import LoadingLine, Replica, ReplicaState

# cluster/quiet_ray.py sets what Ray reads from the environment when it is imported, so it comes first.
from ray import serve  # isort: skip

log = logging.getLogger(__name__)

MAX_ONGOING_REQUESTS = 10_000
"""Admission is the scheduler's: Serve must not hold requests back (its default is 5)."""
POLL_S = 0.1
STATUS_PERIOD_S = 1.0
CALL_TIMEOUT_S = 5.0
PROXY_TIMEOUT_S = 10.0


def build_app() -> FastAPI:
    app = create_app(ModelRegistry())
    # Serve's proxy knows the routes before the replica has its settings.
    app.state.guard = ClosedDoor()
    return app


@serve.ingress(build_app)
class Ingress:
    """The deployment. Its methods are called by the command line, its routes by Serve's proxy."""

    def __init__(self, settings: Settings, placed: Mapping[str, PlacedRanks]) -> None:
        self._settings, self._placed = settings, placed
        # The decorator sets `self.app` right after this constructor, still before the loop's next turn.
        asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        replica_id = serve.get_replica_context().replica_id.unique_id
        self._replica = Replica(self._settings, self.app, replica_id, self._placed)  # type: ignore[attr-defined]

    async def state(self) -> ReplicaState:
        return self._replica.state

    async def failure(self) -> UnavailableError:
        """Returns when a rank is lost, or when the replica stops."""
        return await asyncio.to_thread(self._replica.wait_for_failure)

    async def stop(self) -> None:
        await asyncio.to_thread(self._replica.stop)

    def check_health(self) -> None:
        """One of several replicas that lost a rank is replaced by Serve; a single one ends the server instead."""
        if self._settings.server.replicas > 1 and self._replica.failure is not None:
            raise self._replica.failure


def deploy(settings: Settings, name: str, placed: Mapping[str, PlacedRanks]) -> Any:
    """The running application's handle. PlacementError after cluster.placement_timeout seconds."""
    is_direct = settings.server.front == "direct"
    deployment = serve.deployment(
        Ingress,
        name="tinycluster",
        num_replicas=settings.server.replicas,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=2,
        health_check_period_s=2,
        **(_on_this_node() if is_direct else _with_its_ranks(settings)),
    )
    target = serve.RunTarget(deployment.bind(settings, placed), name, None if is_direct else "/")
    (handle,) = serve.run_many([target], wait_for_applications_running=False)
    _wait_until_placed(settings, name, handle)
    return handle


def _on_this_node() -> dict[str, Any]:
    """A replica that listens itself must do so here."""
    return {
        "ray_actor_options": {
            "num_cpus": 0,
            "label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()},
        }
    }


def _with_its_ranks(settings: Settings) -> dict[str, Any]:
    is_spread = any(model.mesh.spread for model in settings.models)
    return {
        "ray_actor_options": {"num_cpus": 0},
        "placement_group_bundles": replica_bundles(settings),
        "placement_group_strategy": "SPREAD" if is_spread else "PACK",
    }


def _wait_until_placed(settings: Settings, name: str, handle: Any) -> None:
    """A replica's constructor returns at once, so one that does not answer yet waits for its places."""
    deadline_s = time.monotonic() + settings.cluster.placement_timeout_s
    first = handle.state.remote()
    while not (_has_answer(first) and settings.server.replicas == 1):
        status = serve.status().applications[name]
        if status.status == "RUNNING":
            return
        if status.status == "DEPLOY_FAILED":
            raise UnavailableError(f"Ray Serve could not start the server: {status.message.splitlines()[-1]}")
        if time.monotonic() > deadline_s:
            raise PlacementError(f"{_lack(settings)}; waited {settings.cluster.placement_timeout_s:g} s")
        time.sleep(POLL_S)


def _has_answer(response: Any) -> bool:
    # Serve's status, asked ten times a second, would take a good part of the core that the replica starts on.
    try:
        response.result(timeout_s=STATUS_PERIOD_S)
    except TimeoutError:
        return False
    except Exception as error:
        log.debug("the status of the application has the reason", exc_info=error)
        return False
    return True


def _lack(settings: Settings) -> str:
    cpus = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    for model in settings.models:
        if (lack := missing(place(model), cpus)) is not None:
            return f"{model.name}: {lack}"
    free = ray.available_resources().get("CPU", 0.0)
    return f"the models need {num_cpus_needed(settings)} CPUs and {free:g} are free"


def wait_until_ready(settings: Settings, handle: Any, progress: NewProgress) -> ReplicaState:
    """Show every replica's loading until all have settled; raise the error of one that failed."""
    settled: dict[str, ReplicaState] = {}
    shown: dict[tuple[str, int], tuple[LoadingLine, Any]] = {}
    while len(settled) < settings.server.replicas:
        state: ReplicaState = _call(handle.state)
        for index, line in enumerate(state.lines):
            _show(shown, (state.replica_id, index), line, progress)
        if state.error is not None:
            raise state.error
        if state.is_settled:
            settled[state.replica_id] = state
        else:
            time.sleep(POLL_S)
    return next(iter(settled.values()))


def _show(shown: dict[Any, Any], key: tuple[str, int], line: LoadingLine, progress: NewProgress) -> None:
    if not line.label:
        return
    if key not in shown:
        shown[key] = (LoadingLine(), progress())
        shown[key][1].start(line.label, line.total_bytes)
    seen, bar = shown[key]
    bar.advance(line.done_bytes - seen.done_bytes)
    if line.is_finished and not seen.is_finished:
        bar.finish()
    shown[key] = (line, bar)


def await_proxy(settings: Settings) -> str:
    """The URL of Serve's proxy once it knows our routes. ConfigError where a Serve that was there has another one."""
    url = f"http://{settings.server.host}:{settings.server.port}"
    deadline_s = time.monotonic() + PROXY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            with urlopen(f"{url}/health", timeout=1):
                return url
        except OSError:
            time.sleep(POLL_S)
    raise ConfigError(f"Ray Serve does not answer at {url}: one that ran here before keeps the address it started with")


def watch(settings: Settings, handle: Any) -> UnavailableError:
    """Wait for the end of a single replica; of several, Serve replaces the one that fails."""
    failure = Failure()

    def ask() -> None:
        try:
            failure.report(handle.failure.remote().result())
        except Exception as error:
            log.debug("the replica cannot be asked any more", exc_info=error)
            failure.report(UnavailableError("the replica's process ended; restart the server"))

    if settings.server.replicas == 1:
        threading.Thread(target=ask, name="watch", daemon=True).start()
    return failure.wait()


def delete(name: str) -> None:
    """Stop the replica, then delete the application."""
    with perhaps_gone("the replica"):
        _call(serve.get_app_handle(name).stop)
    with perhaps_gone("the application"):
        serve.delete(name)


def _call(method: Any) -> Any:
    try:
        return method.remote().result(timeout_s=CALL_TIMEOUT_S)
    except (ray.exceptions.RayError, TimeoutError):
        raise UnavailableError("the replica does not answer; it may have run out of memory") from None
