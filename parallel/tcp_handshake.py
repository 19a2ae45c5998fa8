"""How the ranks of a TCP group find and believe each other: every pair of ranks has one socket.

Each rank listens on its node's address. A rank connects to all lower ranks and is connected to by all higher ones:

    connecting rank                         listening rank
    hello: magic, version, epoch, size,
           ranks, nonce             ──►
                                    ◄──     nonce, HMAC("listener", hello, nonce)
    HMAC("connector", hello, nonce) ──►

Both sides prove that they hold the secret (HMAC-SHA256, RFC 2104) before anything else is read. Connections that say
something else, or nothing, are dropped after five seconds and harm nobody. Traffic afterwards is not encrypted.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import queue
import secrets
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tinycluster.parallel.communicator import CollectiveError

Address = tuple[str, int]

_HELLO = struct.Struct("<8sIQIII32s")  # magic, version, epoch, size, connecting rank, listening rank, nonce
_MAGIC = b"tinyclus"
_VERSION = 1
_NONCE_BYTES = 32
_PROOF_BYTES = 32
_STRANGER_S = 5.0
_MAX_STRANGERS = 64


class TcpListener:
    """A rank's listening socket, bound to a free port of its node's cluster address and no other interface."""

    def __init__(self, host: str) -> None:
        if not host or (_is_ip(host) and ipaddress.ip_address(host).is_unspecified):
            raise ValueError(f"a rank listens on its node's own address only, got {host!r}")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.create_server((host, 0), family=family, backlog=128)

    @property
    def address(self) -> Address:
        """What the other ranks need to be told."""
        host, port = self.socket.getsockname()[:2]
        return host, port

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            # Wakes a thread that sleeps in accept().
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


@dataclass(frozen=True)
class Identity:
    """What a rank claims, and the secret with which it proves it."""

    rank: int
    size: int
    epoch: int
    secret: bytes

    def __post_init__(self) -> None:
        if len(self.secret) < 16:
            raise ValueError("the secret of a TCP group must have at least 16 bytes")

    def proof(self, side: bytes, hello: bytes, nonce: bytes) -> bytes:
        return hmac.digest(self.secret, side + hello + nonce, "sha256")


def join(identity: Identity, listener: TcpListener, addresses: Sequence[Address], timeout_s: float) -> list[Peer]:
    """One proven socket to every other rank, in rank order; closes the listener. Raises CollectiveError."""
    deadline = time.monotonic() + timeout_s
    greeter = _Greeter(identity, listener)
    peers: list[Peer] = []
    try:
        for rank in range(identity.rank):
            peers.append(Peer(rank, _connect(identity, rank, addresses[rank], deadline)))
        peers += greeter.wait_for(range(identity.rank + 1, identity.size), deadline)
    except BaseException:
        for peer in peers:
            peer.socket.close()
        raise
    finally:
        greeter.close()
    for peer in peers:
        peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peers


@dataclass(frozen=True)
class Peer:
    rank: int
    socket: socket.socket


class _Greeter:
    """Believes or drops whoever connects; each connection has its own thread, so that none holds up the others."""

    def __init__(self, identity: Identity, listener: TcpListener) -> None:
        self._identity, self._listener = identity, listener
        self._believed: queue.Queue[Peer] = queue.Queue()
        self._room = threading.BoundedSemaphore(_MAX_STRANGERS)
        self._thread = threading.Thread(target=self._accept, name="tcp-accept", daemon=True)
        self._thread.start()

    def wait_for(self, ranks: range, deadline: float) -> list[Peer]:
        peers: dict[int, Peer] = {}
        while len(peers) < len(ranks):
            try:
                peer = self._believed.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                for peer in peers.values():
                    peer.socket.close()
                missing = ", ".join(str(rank) for rank in ranks if rank not in peers)
                raise CollectiveError(
                    f"rank {self._identity.rank} waited for rank {missing} to connect to {self._listener.address}"
                ) from None
            if peers.setdefault(peer.rank, peer) is not peer:
                peer.socket.close()
        return [peers[rank] for rank in ranks]

    def close(self) -> None:
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.socket.accept()
            except OSError:
                return  # closed: all ranks have come, or the group gave up
            self._room.acquire()
            threading.Thread(target=self._greet, args=(connection,), name="tcp-greet", daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        try:
            rank = _believe(self._identity, connection)
            self._believed.put(Peer(rank, connection))
        except (OSError, _StrangerError):
            connection.close()
        finally:
            self._room.release()


class _StrangerError(Exception):
    """The other side is not a rank of this group."""


def _connect(identity: Identity, rank: int, address: Address, deadline: float) -> socket.socket:
    try:
        connection = socket.create_connection(address, timeout=max(0.001, deadline - time.monotonic()))
    except OSError as error:
        raise CollectiveError(f"rank {identity.rank} cannot connect to rank {rank} at {address}: {error}") from None
    try:
        _prove(identity, rank, connection, deadline)
    except (OSError, _StrangerError):
        connection.close()
        raise CollectiveError(
            f"rank {rank} at {address} and rank {identity.rank} do not share version, epoch, size and secret"
        ) from None
    return connection


def _prove(identity: Identity, rank: int, connection: socket.socket, deadline: float) -> None:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    hello = _HELLO.pack(_MAGIC, _VERSION, identity.epoch, identity.size, identity.rank, rank, nonce)
    connection.sendall(hello)
    answer = _receive(connection, _NONCE_BYTES + _PROOF_BYTES, deadline)
    their_nonce, their_proof = answer[:_NONCE_BYTES], answer[_NONCE_BYTES:]
    if not hmac.compare_digest(their_proof, identity.proof(b"listener", hello, their_nonce)):
        raise _StrangerError
    connection.sendall(identity.proof(b"connector", hello, their_nonce))


def _believe(identity: Identity, connection: socket.socket) -> int:
    deadline = time.monotonic() + _STRANGER_S
    hello = _receive(connection, _HELLO.size, deadline)
    magic, version, epoch, size, rank, me, _ = _HELLO.unpack(hello)
    expected = (_MAGIC, _VERSION, identity.epoch, identity.size, identity.rank)
    if (magic, version, epoch, size, me) != expected or not identity.rank < rank < size:
        raise _StrangerError
    nonce = secrets.token_bytes(_NONCE_BYTES)
    connection.sendall(nonce + identity.proof(b"listener", hello, nonce))
    proof = _receive(connection, _PROOF_BYTES, deadline)
    if not hmac.compare_digest(proof, identity.proof(b"connector", hello, nonce)):
        raise _StrangerError
    return int(rank)


def _receive(connection: socket.socket, num_bytes: int, deadline: float) -> bytes:
    received = b""
    while len(received) < num_bytes:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        piece = connection.recv(num_bytes - len(received))
        if not piece or time.monotonic() > deadline:
            raise _StrangerError
        received += piece
    return received


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
