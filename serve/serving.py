"""`tinycluster serve`: local or over Ray, until a signal."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

from tinycluster.cluster.config import Settings
from tinycluster.serve.console import own_stdout
from tinycluster.serve.local_server import serve_local
from tinycluster.serve.preflight import check_front, check_models, with_free_port
from tinycluster.serve.progress import Bars
from tinycluster.serve.signals import StopSignal, stop_on_signals


def run_server(settings: Settings) -> None:
    """Returns after SIGINT or SIGTERM. UnavailableError when a rank is lost, ConfigError and others before."""
    check_front(settings)
    with stop_on_signals():
        try:
            _serve(settings)
        except (StopSignal, SystemExit):
            # While Ray starts, SIGTERM is its own handler's, which exits.
            return


def _serve(settings: Settings) -> None:
    started_s = time.monotonic()
    with own_stdout() as out, Bars() as bars:
        if settings.cluster.address == "local":
            serve_local(settings, bars, out)
            return
        settings = with_free_port(settings)
        blueprints = check_models(settings, bars)
        # Local mode must not import Ray.
        from tinycluster.cluster.ray_cluster import join_or_start

        # Ray's start mostly waits for its own processes: time enough to import Serve, which takes a second.
        with ThreadPoolExecutor(1) as importer:
            importer.submit(import_module, "tinycluster.serve.deployment")
            join_or_start(settings)
        from tinycluster.serve.deployment import serve_on_ray

        serve_on_ray(settings, blueprints, bars, out, started_s)
