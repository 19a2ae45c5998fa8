"""`tinycluster serve`: local or over Ray, until a signal."""

from __future__ import annotations

from tinycluster.cluster.config import Settings
from tinycluster.serve.console import own_stdout
from tinycluster.serve.local_server import serve_local
from tinycluster.serve.progress import Bars
from tinycluster.serve.signals import StopSignal, stop_on_signals


def run_server(settings: Settings) -> None:
    """Returns after SIGINT or SIGTERM. UnavailableError when a rank is lost, ConfigError and others before."""
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
