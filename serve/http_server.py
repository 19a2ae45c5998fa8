"""uvicorn on a thread and an event loop of its own, so that the main thread waits for signals and for the ranks."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from tinycluster.engine.errors import UnavailableError
from tinycluster.serve.connection import USUAL, Connection, ConnectionLimits, Connections
from tinycluster.serve.tls_server import TlsServer

DRAIN_S = 1.0
"""Answers that are still running get so long when the server stops; then their engines end them."""
STOP_S = 4
"""After the drain and this time, what still runs is cancelled."""
TICK_S = 1.0
"""The Date header is renewed this often. uvicorn itself ticks ten times as often, which an idle server should not."""

WANTED_FILES, RESERVED_FILES = 2**15, 128
"""A connection is an open file, and systems allow a process no more than 1024 unless it asks for more."""


class HttpServer:
    """Serves `app` on `listener` from `start` until `stop`, which also closes the listener. With `tls` by https."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        limits: ConnectionLimits = USUAL,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        num_files = _raise_file_limit()
        limits = replace(limits, max_connections=min(limits.max_connections, num_files - RESERVED_FILES))
        config = uvicorn.Config(
            app,
            http=cast(type[asyncio.Protocol], partial(Connection, limits=limits)),
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="auto",
            server_header=False,
            # Who asks is who is connected: anybody may write X-Forwarded-For.
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=STOP_S,
        )
        self._listener = listener
        self._server = _Server(config, limits, tls)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="http", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._server.has_started.wait()
        if not self._server.started:
            raise UnavailableError("the HTTP server did not start; the log has the reason")

    def drain(self) -> None:
        """No new connections; running answers get DRAIN_S to end by themselves."""
        self._server.leave()
        self._thread.join(DRAIN_S)

    def stop(self) -> None:
        """The end. Close the engines between `drain` and `stop`: every stream then ends with an error of its own."""
        self._server.leave()
        if self._thread.ident is not None:
            self._thread.join(STOP_S + 1)
        self._listener.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, limits: ConnectionLimits, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self.server_state: Connections = Connections()
        self._limits, self._tls = limits, tls
        self.has_started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_leaving = asyncio.Event()

    def leave(self) -> None:
        """End the loop. Any thread may call it, at any time."""
        self.should_exit = True
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._is_leaving.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await super().startup(sockets if self._tls is None else [])
            if self._tls is not None and self.started:
                of_protocols = {
                    "config": self.config,
                    "server_state": self.server_state,
                    "app_state": self.lifespan.state,
                }
                listeners = sockets or ()
                servers: list[Any] = [TlsServer(each, self._tls, self._limits, of_protocols) for each in listeners]
                self.servers = servers
        finally:
            self.has_started.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_leaving.wait(), TICK_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.server_state.is_leaving = True
        await super().shutdown(sockets)
        # Whoever still does not read what is sent: the loop must not end before its connections.
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _raise_file_limit() -> int:
    """How many files this process may hold open, after asking for WANTED_FILES."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # less than the limit that is asked for may be the system's
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED_FILES if soft == resource.RLIM_INFINITY else soft
