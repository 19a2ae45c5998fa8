"""One replica over Ray: engines, and with `front: direct` an HTTP server, in one process. Knows nothing of Ray."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import FastAPI

from tinycluster.cluster.config import Settings
from tinycluster.engine.errors import TinyclusterError, UnavailableError
from tinycluster.serve.configure import configure
from tinycluster.serve.listener import listen, url_of
from tinycluster.serve.local_server import Failure, start_engines, start_serving
from tinycluster.serve.registry import ModelRegistry

if TYPE_CHECKING:
    from tinycluster.serve.local_server import PlacedModels

log = logging.getLogger(__name__)


@dataclass
class LoadingLine:
    """engine/progress.py's Progress, kept for whoever asks how far the loading is."""

    label: str = ""
    total_bytes: int | None = None
    done_bytes: int = 0
    is_finished: bool = False

    def start(self, label: str, total_bytes: int | None) -> None:
        self.label, self.total_bytes = label, total_bytes

    def advance(self, num_bytes: int) -> None:
        self.done_bytes += num_bytes

    def finish(self) -> None:
        self.is_finished = True


@dataclass
class ReplicaState:
    """What the command line polls until `is_settled`: then either `error` is set or the replica answers requests."""

    replica_id: str
    lines: list[LoadingLine] = field(default_factory=list)
    url: str | None = None
    models: str = ""
    error: TinyclusterError | None = None
    is_settled: bool = False


class Replica:
    """Starts in a thread of its own: until it has settled, requests get 503."""

    def __init__(self, settings: Settings, app: FastAPI, replica_id: str, placed: PlacedModels) -> None:
        self.state = ReplicaState(replica_id)
        self._settings, self._app, self._placed = settings, app, placed
        self._running = ExitStack()
        self._failure = Failure()
        threading.Thread(target=self._start, name="start", daemon=True).start()

    def wait_for_failure(self) -> UnavailableError:
        return self._failure.wait()

    @property
    def failure(self) -> UnavailableError | None:
        return self._failure.error

    def stop(self) -> None:
        """End the HTTP server and the ranks; `wait_for_failure` returns."""
        self._running.close()
        self._failure.report(UnavailableError("the server is stopping"))

    def _start(self) -> None:
        try:
            self._start_everything()
        except TinyclusterError as error:
            self.state.error = error
        except Exception as error:
            log.exception("the replica did not start")
            self.state.error = UnavailableError(f"the replica did not start: {type(error).__name__}: {error}")
        self.state.is_settled = True

    def _start_everything(self) -> None:
        registry: ModelRegistry = self._app.state.registry
        server = self._settings.server
        with ExitStack() as running:
            running.enter_context(configure(self._app, self._settings))
            if server.front == "direct":
                listener = listen(server.host, server.port)
                start_serving(
                    running, listener, self._app, self._settings, self._new_line, self._failure.report, self._placed
                )
                self.state.url = url_of(listener, is_tls=server.tls is not None)
            else:
                running.enter_context(
                    start_engines(
                        self._settings, registry, self._new_line, self._failure.report, self._placed, has_logs=True
                    )
                )
            self.state.models = registry.words()
            self._running = running.pop_all()

    def _new_line(self) -> LoadingLine:
        line = LoadingLine()
        self.state.lines.append(line)
        return line
