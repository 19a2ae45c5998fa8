"""Strangers at the door, ranks of other groups, and frames that are not what the receiver expects."""

from __future__ import annotations

import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinycluster.parallel.communicator import CollectiveError
from tinycluster.parallel.tcp import TcpCommunicator, TcpListener
from tinycluster.parallel.tcp_connection import Connection, Kind

SECRET = secrets.token_bytes(32)


def connect(rank: int, listeners: list[TcpListener], **changes: Any) -> TcpCommunicator:
    options = {"secret": SECRET, "epoch": 7, "timeout_s": 30.0} | changes
    return TcpCommunicator(rank, listeners[rank], [listener.address for listener in listeners], **options)


@pytest.fixture
def listeners() -> Iterator[list[TcpListener]]:
    listeners = [TcpListener("127.0.0.1") for _ in range(2)]
    yield listeners
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.1\r\n\r\n", b"tinyclus", secrets.token_bytes(4096)])
def test_strangers_are_dropped_and_the_group_forms(words: bytes, listeners: Any, in_threads: Any) -> None:
    strangers = [socket.create_connection(listeners[0].address) for _ in range(5)]
    for stranger in strangers:
        stranger.sendall(words)

    def body(rank: int) -> None:
        communicator = connect(rank, listeners)
        x = np.full(3, rank + 1, np.int64)
        communicator.all_reduce(x)
        assert x.tolist() == [3, 3, 3]
        communicator.close()

    for future in in_threads(range(2), body):
        future.result()
    for stranger in strangers:
        stranger.close()


@pytest.mark.parametrize("change", [{"secret": secrets.token_bytes(32)}, {"epoch": 8}])
def test_a_rank_without_the_secret_or_of_another_epoch_is_refused(change: Any, listeners: Any, in_threads: Any) -> None:
    def body(rank: int) -> None:
        connect(rank, listeners, timeout_s=1.0, **(change if rank else {}))

    host, guest = in_threads(range(2), body)
    with pytest.raises(CollectiveError, match="rank 0 waited for rank 1 to connect"):
        host.result()
    with pytest.raises(CollectiveError, match="do not share version, epoch, size and secret"):
        guest.result()


def test_a_listener_that_cannot_prove_the_secret_is_not_believed(listeners: Any) -> None:
    """The impostor plays the listener and sends back what it was sent."""

    def echo() -> None:
        connection, _ = listeners[0].socket.accept()
        with connection:
            connection.sendall(connection.recv(4096)[:64])

    impostor = threading.Thread(target=echo)
    impostor.start()
    with pytest.raises(CollectiveError, match=r"rank 0 at .* and rank 1 do not share"):
        connect(1, listeners, timeout_s=5.0)
    impostor.join()


def test_a_rank_that_nobody_listens_for_is_named(listeners: Any) -> None:
    addresses = [listeners[0].address, listeners[1].address]
    listeners[0].close()
    with pytest.raises(CollectiveError, match="rank 1 cannot connect to rank 0"):
        TcpCommunicator(1, listeners[1], addresses, secret=SECRET, epoch=7, timeout_s=5.0)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_a_rank_does_not_listen_on_every_interface(host: str) -> None:
    with pytest.raises(ValueError, match="own address only"):
        TcpListener(host)


def test_a_short_secret_is_refused(listeners: Any) -> None:
    with pytest.raises(ValueError, match="at least 16 bytes"):
        connect(0, listeners, secret=b"short")


def raw_and_connection() -> tuple[socket.socket, Connection]:
    raw, end = socket.socketpair()
    return raw, Connection(end, rank=0, peer=1, epoch=7)


FIELDS = {"magic": b"tcfr", "kind": 5, "dtype": 1, "zero": 0, "sequence": 0, "epoch": 7, "payload_bytes": 12}


def frame(**changes: Any) -> bytes:
    """Three float32 zeros as the first message of epoch 7."""
    return struct.pack("<4sBBHQQQ", *(FIELDS | changes).values()) + bytes(12)


def receive(words: bytes, *, timeout_s: float = 5.0) -> None:
    raw, connection = raw_and_connection()
    with raw:
        raw.sendall(words)
        try:
            connection.recv(Kind.MESSAGE, np.empty(3, np.float32), time.monotonic() + timeout_s)
        finally:
            connection.close()


def test_the_expected_frame_is_taken() -> None:
    receive(frame())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"magic": b"HTTP"}, "magic"),
        ({"kind": 1}, "kind"),
        ({"dtype": 0}, "dtype"),
        ({"zero": 1}, "zero"),
        ({"sequence": 1}, "sequence"),
        ({"epoch": 6}, "epoch"),
        ({"payload_bytes": 8}, "payload bytes 8 instead of 12"),
        ({"payload_bytes": 2**63}, "payload bytes"),
    ],
)
def test_a_frame_with_one_wrong_field_is_refused_by_name(change: Any, field: str) -> None:
    with pytest.raises(CollectiveError, match=f"rank 1 sent rank 0 a frame with {field}"):
        receive(frame(**change))


def test_a_wrong_header_is_refused_before_its_payload_comes() -> None:
    with pytest.raises(CollectiveError, match="a frame with sequence"):
        receive(frame(sequence=3)[:32])


@given(st.binary(min_size=44, max_size=100))
def test_random_bytes_are_never_taken_for_a_frame(words: bytes) -> None:
    with pytest.raises(CollectiveError):
        receive(words)


def test_half_a_frame_ends_at_the_deadline() -> None:
    with pytest.raises(CollectiveError, match="waited for rank 1"):
        receive(frame()[:40], timeout_s=0.1)


def test_a_peer_that_leaves_in_the_middle_of_a_frame_is_named() -> None:
    raw, connection = raw_and_connection()
    raw.sendall(frame()[:40])
    raw.close()
    with pytest.raises(CollectiveError, match="rank 1 left or died"):
        connection.recv(Kind.MESSAGE, np.empty(3, np.float32), time.monotonic() + 5.0)
    connection.close()


def test_arrays_that_cannot_be_framed_are_refused() -> None:
    raw, connection = raw_and_connection()
    with pytest.raises(TypeError, match="arrays of complex128 are not sent"):
        connection.send(Kind.MESSAGE, np.zeros(1, np.complex128), time.monotonic() + 5.0)
    with pytest.raises(ValueError, match="C-contiguous"):
        connection.send(Kind.MESSAGE, np.zeros((4, 4), np.float32)[:, 1:], time.monotonic() + 5.0)
    connection.close()
    raw.close()
