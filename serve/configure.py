"""What the settings say about a server's application, put where its routes find it: in `app.state`."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack

from fastapi import FastAPI

from tinycluster.cluster.config import Settings
from tinycluster.cluster.log_file import log_options
from tinycluster.cluster.log_lines import logged_to
from tinycluster.cluster.nodes import ListNodes, this_machine
from tinycluster.engine.errors import ConfigError
from tinycluster.serve.access import OpenDoor
from tinycluster.serve.content_filter import ContentFilter
from tinycluster.serve.key_guard import KeyGuard
from tinycluster.serve.request_log import RequestLog
from tinycluster.serve.storage.database import IN_MEMORY, default_url
from tinycluster.serve.storage.keys import Keys
from tinycluster.serve.storage.servers import Presence, present
from tinycluster.serve.storage.storage import open_storage

log = logging.getLogger(__name__)


def configure(app: FastAPI, settings: Settings) -> ExitStack:
    """Before the first request. ConfigError for what cannot be had; closing the stack ends what was opened."""
    with ExitStack() as opened:
        _open_log(app, settings, opened)
        if settings.telemetry.otlp_endpoint is not None:
            _open_traces(app, settings.telemetry.otlp_endpoint, opened)
        app.state.allowed_hosts = settings.server.allowed_hosts
        app.state.cluster.view.list_nodes = _nodes_of(settings)
        app.state.cluster.view.expected = [model.name for model in settings.models]
        app.state.storage = open_storage(settings.storage.url or default_url())
        opened.callback(app.state.storage.close)
        opened.enter_context(present(Presence(app.state.storage.database, app.state.storage.server_id)))
        app.state.guard = _key_guard(app, settings) if settings.server.auth == "keys" else OpenDoor()
        wanted = settings.server.content_filter
        app.state.content_filter = ContentFilter(wanted) if wanted.patterns or wanted.url is not None else None
        return opened.pop_all()


def _key_guard(app: FastAPI, settings: Settings) -> KeyGuard:
    if settings.storage.url == IN_MEMORY:
        raise ConfigError("storage.url must name a database where server.auth is keys, or no key could be made")
    keys: Keys = app.state.storage.keys
    if asyncio.run(keys.count()) == 0:
        log.warning("there is no API key yet: make one with `tinycluster keys create NAME`")
    return KeyGuard(keys, app.state.registry)


def _open_log(app: FastAPI, settings: Settings, opened: ExitStack) -> None:
    options = log_options(settings)
    app.state.log_file = options.open("server.log")
    opened.enter_context(logged_to(app.state.log_file, is_json=options.is_json))
    app.state.exchange_ends.append(RequestLog(app.state.log_file, options.is_json))


def _open_traces(app: FastAPI, endpoint: str, opened: ExitStack) -> None:
    try:
        from tinycluster.serve.traces import traced_to
    except ImportError:
        raise ConfigError("telemetry.otlp_endpoint needs the extra otel: pip install 'tinycluster[otel]'") from None
    app.state.exchange_ends.append(opened.enter_context(traced_to(endpoint)))


def _nodes_of(settings: Settings) -> ListNodes:
    if settings.cluster.address == "local":
        return this_machine
    # Local mode must not import Ray.
    from tinycluster.cluster.ray_nodes import ray_nodes

    return ray_nodes
