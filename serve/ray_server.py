"""`tinycluster serve` over Ray, from the first of its processes to the end of all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, TextIO
from uuid import uuid4

from tinycluster.cluster.blueprint import Blueprint
from tinycluster.cluster.config import Settings
from tinycluster.cluster.log_file import log_options
from tinycluster.cluster.quiet_ray import ray
from tinycluster.cluster.ray import PlacedRanks, place_ranks
from tinycluster.serve.console import silence
from tinycluster.serve.controller import await_registered, serve_running
from tinycluster.serve.signals import raise_on_signals

if TYPE_CHECKING:
    from tinycluster.cluster.loading import NewProgress


def serve_on_ray(
    settings: Settings, blueprints: Mapping[str, Blueprint], progress: NewProgress, out: TextIO, started_s: float
) -> None:
    """Serve settings that `preflight.py` has checked until StopSignal, or UnavailableError when a rank is lost.

    This process is connected to Ray, and is disconnected at the end. Its garbage is collected once it serves.
    """
    with ExitStack() as quiet, ExitStack() as running:
        running.callback(ray.shutdown)
        # Ray has put a handler of its own in place that aborts the process on SIGTERM.
        raise_on_signals()
        # The ranks start and load, and this process imports what comes next, while Serve's controller starts.
        with ThreadPoolExecutor(1) as starter:
            starting = starter.submit(running.enter_context, serve_running(settings))
            await_registered(starting)
            placed = place_models(settings, blueprints, running)
            from tinycluster.serve import deployment
            from tinycluster.serve.local_server import announce

            starting.result()
        name = f"tinycluster-{uuid4().hex[:8]}"
        running.callback(deployment.delete, name)
        running.callback(quiet.enter_context, silence())
        handle = deployment.deploy(settings, name, placed)
        state = deployment.wait_until_ready(settings, handle, progress)
        url = state.url or deployment.await_proxy(settings)
        announce(url, state.models, time.monotonic() - started_s, out)
        gc.enable()
        raise deployment.watch(settings, handle)


def place_models(
    settings: Settings, blueprints: Mapping[str, Blueprint], running: ExitStack
) -> Mapping[str, PlacedRanks]:
    """With `front: direct` the ranks start before their replica does; else every replica of Serve's starts its own."""
    placed: dict[str, PlacedRanks] = {}
    for model in settings.models if settings.server.front == "direct" else ():
        placed[model.name] = place_ranks(blueprints[model.name], model, settings, log_options(settings, model.name))
        running.callback(placed[model.name].release)
    return placed
