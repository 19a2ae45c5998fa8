"""`tinycluster serve`: local or over Ray, until a signal."""

from __future__ import annotations

from tinycluster.cluster.config import Settings
from tinycluster.engine.errors import ConfigError
from tinycluster.serve.console import own_stdout
from tinycluster.serve.local_server import serve_local
from tinycluster.serve.progress import Bars
from tinycluster.serve.signals import StopSignal, stop_on_signals


def run_server(settings: Settings) -> None:
    """Returns after SIGINT or SIGTERM. UnavailableError when a rank is lost, ConfigError and others before."""
    check_front(settings)
    with stop_on_signals():
        try:
            _serve(settings)
        except StopSignal:
            return


def _serve(settings: Settings) -> None:
    with own_stdout() as out, Bars() as bars:
        if settings.cluster.address == "local":
            serve_local(settings, bars, out)
        else:
            # Local mode must not import Ray.
            from tinycluster.serve.deployment import serve_on_ray

            serve_on_ray(settings, bars, out)


def check_front(settings: Settings) -> None:
    """ConfigError for a front that cannot serve these settings; local mode has only its own server."""
    front, replicas = settings.server.front, settings.server.replicas
    if settings.cluster.address == "local":
        if replicas > 1:
            raise ConfigError(f"server.replicas must be 1 in local mode, got {replicas}")
    elif front == "haproxy":
        raise ConfigError("server.front must be direct or proxy, got haproxy")
    elif front == "direct" and replicas > 1:
        raise ConfigError(f"server.front must be proxy for several replicas, got direct and {replicas} replicas")
