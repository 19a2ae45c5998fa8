"""A server for TLS whose connections count from the moment that they are accepted, as those of plain HTTP do.

asyncio's own tells of a connection when its handshake is over. Until then nobody could close it to make room, and
clients that say nothing would hold any number of them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tinycluster.serve.connection import Connection, ConnectionLimits, make_room

log = logging.getLogger(__name__)

BACKLOG = 2048
"""uvicorn's."""
SETTLED_S = 0.05
"""An end that comes before the loop has begun to read could be lost."""
ACCEPT_AGAIN_S = 1.0
"""As asyncio waits where nothing can be accepted: too many files are open."""


class TlsServer:
    """Accepts from its making until `close`, on the running loop. `uvicorns` is what uvicorn gives a protocol."""

    def __init__(
        self, listener: socket.socket, tls: ssl.SSLContext, limits: ConnectionLimits, uvicorns: dict[str, Any]
    ) -> None:
        self.tls, self.limits, self.uvicorns = tls, limits, uvicorns
        self.connections: set[Any] = uvicorns["server_state"].connections
        self._listener, self._is_closed = listener, False
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._loop = asyncio.get_running_loop()
        self._begin()

    def _begin(self) -> None:
        if not self._is_closed:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # it has left already
            return
        except OSError as error:
            log.warning("no connection can be accepted: %s", error.strerror)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(ACCEPT_AGAIN_S, self._begin)
            return
        client.setblocking(False)
        Handshake(client, self)

    def close(self) -> None:
        self._is_closed = True
        self._loop.remove_reader(self._listener)

    async def wait_closed(self) -> None:
        """Everything that must end is among uvicorn's connections."""


class Handshake:
    """Stands among uvicorn's connections until a `Connection` takes its place. It has as long as a header has."""

    def __init__(self, client: socket.socket, server: TlsServer) -> None:
        self._client, self._server = client, server
        self._is_settled = self._is_over = False
        loop = asyncio.get_running_loop()
        self.waits_since_s = loop.time()
        self._shaking = loop.create_task(self._shake())
        self._shaking.add_done_callback(lambda _: self.leave())
        server.connections.add(self)
        if len(server.connections) > server.limits.max_connections:
            make_room(server.connections, self)

    async def _shake(self) -> None:
        if self._is_over:
            self._client.close()
            return
        loop = asyncio.get_running_loop()
        loop.call_later(SETTLED_S, self._settle)
        limits = self._server.limits
        try:
            await loop.connect_accepted_socket(
                lambda: _Encrypted(self.leave, limits=limits, **self._server.uvicorns),
                self._client,
                ssl=self._server.tls,
                ssl_handshake_timeout=limits.header_timeout_s,
            )
        except OSError:  # strangers may send anything
            return

    def leave(self) -> None:
        self._server.connections.discard(self)

    def give_way(self) -> None:
        self.leave()
        self._is_over = True
        if self._is_settled:
            self._settle()

    def _settle(self) -> None:
        self._is_settled = True
        if self._is_over:
            # The handshake fails, which closes the connection.
            with suppress(OSError):
                self._client.shutdown(socket.SHUT_RDWR)

    def shutdown(self) -> None:
        """The server ends."""
        self.give_way()


class _Encrypted(Connection):
    """A connection whose handshake is told right before it begins."""

    def __init__(self, begins: Callable[[], None], **given: Any) -> None:
        super().__init__(**given)
        self._begins = begins

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._begins()
        super().connection_made(transport)
