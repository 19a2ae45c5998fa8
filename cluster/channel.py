"""Channels between the driver and its ranks: one typed, length-prefixed message after the other.

A socket is used inside a node too: a loopback round trip costs 0.02 ms against steps of several, the end of a process
is an immediate end of file, and no shared-memory segment can be left behind. In local mode a queue takes its place.
"""

from __future__ import annotations

import contextlib
import queue
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import Protocol

from tinycluster.cluster.messages import Message, ProtocolError, Stop, decode, encode

# magic, protocol version, kind, epoch, sequence number, payload bytes
_HEADER = struct.Struct("<4sHHIQI")
_MAGIC = b"tcCh"
PROTOCOL_VERSION = 1
MAX_PAYLOAD_BYTES = 2**28
_HALF_FRAME_TIMEOUT_S = 10


class ChannelClosedError(Exception):
    """The other side ended, was silent in the middle of a message, or does not speak our protocol."""


class Channel(Protocol):
    """One end of a connection. `send` may be called from several threads, `receive` from one."""

    def send(self, message: Message) -> None: ...

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """The next message, or None when none came in time. ChannelClosedError at the end."""
        ...

    def close(self) -> None: ...


class TcpChannel:
    """Messages over a connected socket. Every frame carries the epoch of its group and a sequence number."""

    def __init__(self, connection: socket.socket, *, epoch: int, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self._socket, self._epoch = connection, epoch
        self.max_payload_bytes = max_payload_bytes
        self._num_sent = self._num_received = 0
        self._send_lock = threading.Lock()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", _HALF_FRAME_TIMEOUT_S, 0))
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # A peer whose machine vanished acknowledges nothing: heartbeats then end the connection.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _HALF_FRAME_TIMEOUT_S * 1000)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def send(self, message: Message) -> None:
        self.send_encoded(*encode(message))

    def send_encoded(self, kind: int, payload: bytes) -> None:
        with self._send_lock:
            header = _HEADER.pack(_MAGIC, PROTOCOL_VERSION, kind, self._epoch, self._num_sent, len(payload))
            self._num_sent += 1
            try:
                self._socket.sendall(header + payload)
            except OSError as error:
                raise ChannelClosedError(f"the connection ended: {error}") from None

    def receive(self, timeout_s: float | None = None) -> Message | None:
        try:
            if not self._poll.poll(None if timeout_s is None else timeout_s * 1000):
                return None
            kind, num_bytes = self._check(_HEADER.unpack(self._read(_HEADER.size)))
            return decode(kind, memoryview(self._read(num_bytes)))
        except OSError as error:
            raise ChannelClosedError(f"the connection ended: {error}") from None
        except ProtocolError as error:
            raise ChannelClosedError(str(error)) from None

    def close(self) -> None:
        """Ends both directions; a thread that waits in `receive` wakes with ChannelClosedError."""
        with contextlib.suppress(OSError):  # the peer was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _check(self, header: tuple[bytes, int, int, int, int, int]) -> tuple[int, int]:
        magic, version, kind, epoch, sequence, num_bytes = header
        expected = (_MAGIC, PROTOCOL_VERSION, self._epoch, self._num_received)
        if (magic, version, epoch, sequence) != expected or num_bytes > self.max_payload_bytes:
            raise ProtocolError("a frame of another protocol, version, epoch or order arrived")
        self._num_received += 1
        return kind, num_bytes

    def _read(self, num_bytes: int) -> bytearray:
        content = bytearray(num_bytes)
        view = memoryview(content)
        while view:
            count = self._socket.recv_into(view)
            if count == 0:
                raise ChannelClosedError("the other side ended the connection")
            view = view[count:]
        return content


class LocalChannel:
    """A rank's end in local mode: what it sends goes to `deliver` in the rank's own thread."""

    def __init__(self, deliver: Callable[[Message], None]) -> None:
        self._deliver = deliver
        self._incoming: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def put(self, message: Message) -> None:
        """The driver's side: the message that `receive` returns next."""
        self._incoming.put(message)

    def send(self, message: Message) -> None:
        self._deliver(message)

    def receive(self, timeout_s: float | None = None) -> Message | None:
        try:
            return self._incoming.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        self._incoming.put(Stop())
