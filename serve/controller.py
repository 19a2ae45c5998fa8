"""Ray Serve itself: its controller, started before all else and shut down at the end.

Everything waits for the controller, whose process imports Serve for a second or two. So what starts it imports nothing
of ours that would hold it up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from tinycluster.cluster.config import Settings
from tinycluster.cluster.quiet_ray import ray

# cluster/quiet_ray.py sets what Ray reads from the environment when it is imported, so it comes first.
from ray import serve  # isort: skip

log = logging.getLogger(__name__)
_CONTROLLER = {"name": "SERVE_CONTROLLER_ACTOR", "namespace": "serve"}
_REGISTERED_POLL_S = 0.01


@contextmanager
def serve_running(settings: Settings) -> Iterator[None]:
    """Ray Serve with the proxy that `front` asks for. A Serve that was there before stays; ours is shut down."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    is_ours = not _is_registered()
    if settings.server.front == "direct":
        serve.start(proxy_location="Disabled")
    else:
        options = {"host": settings.server.host, "port": settings.server.port}
        serve.start(proxy_location="HeadOnly", http_options=options)
    try:
        yield
    finally:
        if is_ours:
            with perhaps_gone("Serve"):
                serve.shutdown()


def await_registered(starting: Future[Any]) -> None:
    """Wait until Ray knows of the controller, or `serve_running` has failed.

    A node starts no more processes at a time than it has cores, in the order in which they were asked for: the
    controller's must not wait for the ranks', which are ready long before it.
    """
    while not starting.done() and not _is_registered():
        time.sleep(_REGISTERED_POLL_S)


def _is_registered() -> bool:
    return _CONTROLLER in ray.util.list_named_actors(all_namespaces=True)


@contextmanager
def perhaps_gone(what: str) -> Iterator[None]:
    """At the end, what cannot be ended has ended before."""
    try:
        yield
    except Exception as error:
        log.debug("%s could not be ended", what, exc_info=error)
