"""How a rank's connection is made and believed: both sides prove, over fresh nonces, that they hold the group's secret.

The driver listens on its node's cluster address only, and only until every rank has come. The secret travels through
Ray; what a stranger sends before it proved itself is cut at 4 KiB and five seconds.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from tinycluster.cluster.channel import MAX_PAYLOAD_BYTES, ChannelClosedError, TcpChannel
from tinycluster.cluster.messages import Challenge, Hello, Welcome

_STRANGER_PAYLOAD_BYTES = 4096
_STRANGER_TIMEOUT_S = 5.0
_MAX_STRANGERS = 64


@dataclass(frozen=True)
class Credentials:
    """What the ranks of one group share: a secret of 32 random bytes, the group's epoch, the model's digest."""

    secret: bytes
    epoch: int
    version: str
    digest: str

    def proof(self, side: str, rank: int, nonces: bytes) -> bytes:
        text = f"{side}/{rank}/{self.epoch}/{self.version}/{self.digest}/".encode()
        return hmac.new(self.secret, text + nonces, sha256).digest()


class Listener:
    """Accepts each rank once and calls `accept(rank, channel)` in a thread of its own."""

    def __init__(
        self, host: str, credentials: Credentials, num_ranks: int, accept: Callable[[int, TcpChannel], None]
    ) -> None:
        self._credentials, self._accept = credentials, accept
        self._expected = set(range(num_ranks))
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(_MAX_STRANGERS)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family, backlog=num_ranks + 8)
        threading.Thread(target=self._listen, name="listener", daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._socket.getsockname()[:2]
        return host, port

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed: every rank has come, or the group ended
            self._room.acquire()
            threading.Thread(target=self._greet, args=(connection,), name="channel", daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        channel = TcpChannel(connection, epoch=self._credentials.epoch, max_payload_bytes=_STRANGER_PAYLOAD_BYTES)
        try:
            rank = self._believe(channel)
        except ChannelClosedError:
            channel.close()
            return
        finally:
            self._room.release()
        self._accept(rank, channel)

    def _believe(self, channel: TcpChannel) -> int:
        nonce = secrets.token_bytes(32)
        channel.send(Challenge(nonce))
        hello = channel.receive(_STRANGER_TIMEOUT_S)
        if not isinstance(hello, Hello):
            raise ChannelClosedError("no greeting came")
        proof = self._credentials.proof("rank", hello.rank, nonce + hello.nonce)
        if not hmac.compare_digest(proof, hello.proof):
            raise ChannelClosedError("the greeting does not prove the secret, version and model")
        with self._lock:
            if hello.rank not in self._expected:
                raise ChannelClosedError(f"rank {hello.rank} is not expected")
            self._expected.remove(hello.rank)
        channel.max_payload_bytes = MAX_PAYLOAD_BYTES
        channel.send(Welcome(self._credentials.proof("driver", hello.rank, hello.nonce + nonce)))
        return hello.rank


def connect(address: tuple[str, int], credentials: Credentials, rank: int, *, timeout_s: float) -> TcpChannel:
    """A rank's channel to its driver. ChannelClosedError when the driver is gone or cannot prove itself."""
    try:
        connection = socket.create_connection(address, timeout=timeout_s)
    except OSError as error:
        raise ChannelClosedError(f"no connection to the driver at {address[0]}:{address[1]}: {error}") from None
    connection.settimeout(None)
    channel = TcpChannel(connection, epoch=credentials.epoch)
    try:
        _prove(channel, credentials, rank, timeout_s)
    except ChannelClosedError:
        channel.close()
        raise
    return channel


def _prove(channel: TcpChannel, credentials: Credentials, rank: int, timeout_s: float) -> None:
    challenge = channel.receive(timeout_s)
    if not isinstance(challenge, Challenge):
        raise ChannelClosedError("the driver sent no challenge")
    nonce = secrets.token_bytes(32)
    channel.send(Hello(rank, nonce, credentials.proof("rank", rank, challenge.nonce + nonce)))
    welcome = channel.receive(timeout_s)
    expected = credentials.proof("driver", rank, nonce + challenge.nonce)
    if not isinstance(welcome, Welcome) or not hmac.compare_digest(expected, welcome.proof):
        raise ChannelClosedError("the driver does not prove the secret, version and model")
