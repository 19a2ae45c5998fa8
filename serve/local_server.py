"""`tinycluster serve --local`: engines and HTTP server in this process, ranks as its threads."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import TYPE_CHECKING, TextIO

from fastapi import FastAPI

from tinycluster.cluster.config import Settings
from tinycluster.cluster.launch import NewProgress, start_engine
from tinycluster.cluster.log_file import log_options
from tinycluster.engine.errors import UnavailableError
from tinycluster.serve.allocator import frozen_objects
from tinycluster.serve.app import create_app
from tinycluster.serve.configure import configure
from tinycluster.serve.http_server import HttpServer
from tinycluster.serve.listener import listen, url_of
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.tls import tls_context

if TYPE_CHECKING:
    from tinycluster.cluster.ray import PlacedRanks

    PlacedModels = Mapping[str, PlacedRanks]

NOT_PLACED: PlacedModels = MappingProxyType({})


class Failure:
    """The first engine failure; somebody waits for it."""

    def __init__(self) -> None:
        self._happened = threading.Event()
        self.error: UnavailableError | None = None

    def report(self, error: UnavailableError) -> None:
        self.error = self.error or error
        self._happened.set()

    def wait(self) -> UnavailableError:
        self._happened.wait()
        assert self.error is not None
        return self.error


def start_engines(
    settings: Settings,
    registry: ModelRegistry,
    progress: NewProgress,
    on_failure: Callable[[UnavailableError], None],
    placed: PlacedModels,
    *,
    has_logs: bool,
) -> ExitStack:
    """All models of the settings, added to the registry as they become ready. Closing the stack closes them.

    `placed` are ranks by model that Ray was asked for before. With `has_logs` ranks that start here write files.
    """
    with ExitStack() as engines:
        for model in settings.models:
            ranks = placed.get(model.name)
            logs = log_options(settings, model.name) if has_logs else None
            engine = start_engine(model, settings, progress=progress, on_failure=on_failure, placed=ranks, logs=logs)
            engines.callback(engine.close)
            registry.add(engine)
        return engines.pop_all()


def start_serving(
    running: ExitStack,
    listener: socket.socket,
    app: FastAPI,
    settings: Settings,
    progress: NewProgress,
    on_failure: Callable[[UnavailableError], None],
    placed: PlacedModels = NOT_PLACED,
) -> None:
    """Engines, then HTTP. `running` ends them in the order that lets every stream end well."""
    http = HttpServer(app, listener, tls=tls_context(settings.server.tls))
    running.callback(app.state.registry.clear)
    running.callback(http.stop)
    has_logs = app.state.log_file is not None
    running.enter_context(start_engines(settings, app.state.registry, progress, on_failure, placed, has_logs=has_logs))
    running.callback(http.drain)
    running.enter_context(frozen_objects())
    http.start()


def serve_local(settings: Settings, progress: NewProgress, out: TextIO) -> None:
    """Serve until a signal (StopSignal) or until a rank is lost (UnavailableError)."""
    started_s = time.monotonic()
    failure, registry = Failure(), ModelRegistry()
    with ExitStack() as running:
        # The port comes first: one that is taken is known before any model is loaded.
        listener = listen(settings.server.host, settings.server.port)
        app = create_app(registry)
        running.enter_context(configure(app, settings))
        start_serving(running, listener, app, settings, progress, failure.report)
        announce(
            url_of(listener, is_tls=settings.server.tls is not None),
            registry.words(),
            time.monotonic() - started_s,
            out,
        )
        raise failure.wait()


def announce(url: str, models: str, seconds: float, out: TextIO) -> None:
    """The one line on stdout."""
    print(f"ready: {url} ({models}, {seconds:.1f} s)", file=out, flush=True)
