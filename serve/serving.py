"""`tinycluster serve`: local or over Ray, until a signal."""

from __future__ import annotations

import gc
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TextIO

from tinycluster.cluster.config import Settings
from tinycluster.serve.console import own_stdout
from tinycluster.serve.preflight import check_exposure, check_front, check_models, check_tls, with_free_port
from tinycluster.serve.progress import Bars
from tinycluster.serve.signals import StopSignal, stop_on_signals


def run_server(settings: Settings) -> None:
    """Returns after SIGINT or SIGTERM. UnavailableError when a rank is lost, ConfigError and others before."""
    check_front(settings)
    check_exposure(settings)
    check_tls(settings)
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
            from tinycluster.serve.local_server import serve_local

            serve_local(settings, bars, out)
            return
        # What is imported stays: searching it for cycles again and again takes a sixth of the start.
        gc.disable()
        try:
            _join_and_serve(with_free_port(settings), bars, out, started_s)
        finally:
            gc.enable()


def _join_and_serve(settings: Settings, bars: Bars, out: TextIO, started_s: float) -> None:
    blueprints = check_models(settings, bars)
    # Local mode must not import Ray.
    from tinycluster.cluster.ray_cluster import join_or_start

    # Ray's start mostly waits for its own processes: time enough to import Serve, which takes a second.
    with ThreadPoolExecutor(1) as importer:
        importer.submit(import_module, "tinycluster.serve.controller")
        join_or_start(settings)
    from tinycluster.serve.ray_server import serve_on_ray

    serve_on_ray(settings, blueprints, bars, out, started_s)
