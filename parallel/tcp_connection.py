"""One socket between two ranks of a TCP group: typed frames, checked against what the receiver expects.

    magic 4s | kind u8 | dtype u8 | zero u16 | sequence u64 | epoch u64 | payload bytes u64 | payload     little-endian

The receiver knows all fields beforehand, so a frame is right if its header's 32 bytes are the expected ones.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinycluster.parallel.communicator import CollectiveError

MAX_PAYLOAD_BYTES = 2**30
MAX_BACKLOG_BYTES = 256 * 2**20

_HEADER = struct.Struct("<4sBBHQQQ")
_MAGIC = b"tcfr"
_DTYPES = (np.int64, np.float32, np.int32, np.uint32, np.int16, np.uint16, np.int8, np.uint8, np.float16, np.float64)
_DTYPE_CODES = {np.dtype(scalar): code for code, scalar in enumerate(_DTYPES)}
_LINGER_S = 1.0


class Kind(enum.IntEnum):
    ALL_REDUCE = 1
    ALL_GATHER = 2
    BROADCAST = 3
    BARRIER = 4
    MESSAGE = 5


class Connection:
    """Frames to and from rank `peer`.

    `send` writes what the socket takes at once; a thread, started when first needed, writes the rest while the caller
    goes on. So two ranks may send to each other before either receives. One thread may send while another receives.
    """

    def __init__(self, connection: socket.socket, *, rank: int, peer: int, epoch: int) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._rank, self._peer, self._epoch = rank, peer, epoch
        self._sent = self._received = 0
        self._failure: str | None = None
        self._backlog: collections.deque[memoryview] = collections.deque()
        self._backlog_bytes = 0
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)

    def send(self, kind: Kind, x: NDArray[Any], deadline: float) -> None:
        """Raises CollectiveError if the backlog of a peer that does not read stays full until the deadline."""
        payload = _bytes_of(x)
        with self._changed:
            self._raise_failure()
            header = self._header(kind, x.dtype, self._sent, len(payload))
            self._sent += 1
            rest = [memoryview(header), payload] if self._backlog else self._write([memoryview(header), payload])
            if rest:
                self._queue(rest, deadline)

    def recv(self, kind: Kind, x: NDArray[Any], deadline: float) -> None:
        """Fill x. After an error its content is undefined and the connection of no more use."""
        payload = _bytes_of(x)
        expected = self._header(kind, x.dtype, self._received, len(payload))
        self._received += 1
        header = bytearray(_HEADER.size)
        views = [memoryview(header), payload]
        missing = _HEADER.size + len(payload)
        while missing:
            count = self._read(views, deadline)
            views = _advance(views, count)
            missing -= count
            if missing <= len(payload) and header != expected:
                raise CollectiveError(self._mismatch(header, expected))

    def fail(self, reason: str) -> None:
        """End every wait on this connection, here and at the peer, from any thread."""
        with self._changed:
            self._failure = self._failure or reason
            self._changed.notify_all()
        with contextlib.suppress(OSError):  # the peer was faster
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the backlog a second to reach the peer, then leave."""
        with self._changed:
            self._changed.wait_for(lambda: not self._backlog or self._failure is not None, _LINGER_S)
        self.fail(f"rank {self._rank} has closed its communicator")
        if self._writer is not None:
            self._writer.join()
        self._socket.close()

    def _header(self, kind: Kind, dtype: np.dtype[Any], sequence: int, length: int) -> bytes:
        if length > MAX_PAYLOAD_BYTES:
            raise ValueError(f"an array of {length} bytes is larger than a frame may be, {MAX_PAYLOAD_BYTES}")
        if dtype not in _DTYPE_CODES:
            raise TypeError(f"arrays of {dtype} are not sent")
        return _HEADER.pack(_MAGIC, kind, _DTYPE_CODES[dtype], 0, sequence, self._epoch, length)

    def _write(self, views: list[memoryview]) -> list[memoryview]:
        """Write what the socket takes without waiting; return what is left. The lock is held."""
        while views:
            try:
                views = _advance(views, self._socket.sendmsg(views))
            except BlockingIOError:
                break
            except OSError:
                self._lose()
        return views

    def _queue(self, views: list[memoryview], deadline: float) -> None:
        # The caller may overwrite its array after the call, so what is left is copied.
        rest = memoryview(b"".join(views))
        has_room = self._changed.wait_for(
            lambda: not self._backlog or self._failure or self._backlog_bytes + len(rest) <= MAX_BACKLOG_BYTES,
            deadline - time.monotonic(),
        )
        self._raise_failure()
        if not has_room:
            raise CollectiveError(f"rank {self._peer} does not read what rank {self._rank} sends")
        self._backlog.append(rest)
        self._backlog_bytes += len(rest)
        self._changed.notify_all()
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_backlog, name=f"tcp-to-{self._peer}", daemon=True)
            self._writer.start()

    def _write_backlog(self) -> None:
        writable = select.poll()
        writable.register(self._socket, select.POLLOUT)
        while self._failure is None:
            with self._changed:
                self._changed.wait_for(lambda: self._backlog or self._failure)
                try:
                    self._write_first()
                except CollectiveError:
                    return  # kept in self._failure for the next caller
                waits_for_room = bool(self._backlog)
            if waits_for_room:
                writable.poll(100)

    def _write_first(self) -> None:
        while self._backlog and self._failure is None:
            first = self._backlog[0]
            rest = self._write([first])
            self._backlog_bytes -= len(first) - sum(map(len, rest))
            if rest:
                self._backlog[0] = rest[0]
                return
            self._backlog.popleft()
            self._changed.notify_all()

    def _read(self, views: Sequence[memoryview], deadline: float) -> int:
        while True:
            try:
                count = self._socket.recvmsg_into(views)[0]
            except BlockingIOError:
                self._wait_readable(deadline)
            except OSError:
                self._lose()
            else:
                if count == 0:
                    self._lose()
                return count

    def _wait_readable(self, deadline: float) -> None:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise CollectiveError(f"rank {self._rank} waited for rank {self._peer} until the deadline")
        self._readable.poll(remaining_s * 1000)

    def _lose(self) -> None:
        """Raise for a broken socket: our own failure if we ended it, the peer's otherwise."""
        self._failure = self._failure or f"rank {self._peer} left or died: rank {self._rank} lost its connection"
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise CollectiveError(self._failure)

    def _mismatch(self, header: bytearray, expected: bytes) -> str:
        fields = ("magic", "kind", "dtype", "zero", "sequence", "epoch", "payload bytes")
        pairs = zip(fields, _HEADER.unpack(header), _HEADER.unpack(expected), strict=True)
        wrong = [f"{field} {got!r} instead of {want!r}" for field, got, want in pairs if got != want]
        return f"rank {self._peer} sent rank {self._rank} a frame with {', '.join(wrong)}"


def _bytes_of(x: NDArray[Any]) -> memoryview:
    if not x.flags.c_contiguous:
        raise ValueError("arrays must be C-contiguous")
    return x.reshape(-1).data.cast("B") if x.size else memoryview(bytearray())


def _advance(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """The views without their first `count` bytes."""
    for index, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[index + 1 :]]
        count -= len(view)
    return []
