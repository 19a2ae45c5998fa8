"""Strangers at the door, ranks of other groups, and frames that are not what the receiver expects."""

from __future__ import annotations

import gc
import os
import secrets
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinycluster.kernels import _collectives
from tinycluster.parallel.communicator import CollectiveError
from tinycluster.parallel.native import NativeCommunicator
from tinycluster.parallel.tcp import TcpCommunicator, TcpListener

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
        # Waited for to its end, and enough for a busy machine to start both before.
        connect(rank, listeners, timeout_s=4.0, **(change if rank else {}))

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


def raw_and_communicator(timeout_s: float = 5.0) -> tuple[socket.socket, NativeCommunicator]:
    """Rank 0 of two, and the socket that rank 1 would hold."""
    raw, end = socket.socketpair()
    with end:
        return raw, NativeCommunicator(_collectives.TcpGroup([-1, end.fileno()], 0, 7, timeout_s, 50.0))


SEND = 7
FIELDS = {"magic": b"tcfr", "call": SEND, "padding": 0, "sequence": 0, "epoch": 7, "payload_bytes": 12}


def frame(**changes: Any) -> bytes:
    """Three float32 zeros as the first message of epoch 7."""
    fields = FIELDS | changes
    fields["call"] |= fields.pop("padding") << 8
    return struct.pack("<4sIQQQ", *fields.values()) + bytes(12)


def receive(words: bytes, *, timeout_s: float = 5.0) -> None:
    raw, communicator = raw_and_communicator(timeout_s)
    with raw:
        raw.sendall(words)
        try:
            communicator.recv(np.empty(3, np.float32), 1)
        finally:
            communicator.close()


def test_the_expected_frame_is_taken() -> None:
    receive(frame())


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"magic": b"HTTP"}, "another magic number"),
        ({"call": 4}, "call all_gather instead of send"),
        ({"call": 99}, "call an unknown call instead of send"),
        ({"padding": 1}, "padding"),
        ({"sequence": 1}, "sequence 1 instead of 0"),
        ({"epoch": 6}, "epoch 6 instead of 7"),
        ({"payload_bytes": 8}, "payload bytes 8 instead of 12"),
        ({"payload_bytes": 2**63}, "payload bytes"),
    ],
)
def test_a_frame_with_one_wrong_field_is_refused_by_name(change: Any, difference: str) -> None:
    with pytest.raises(CollectiveError, match=f"rank 1 sent rank 0 a frame with {difference}"):
        receive(frame(**change))


def test_a_wrong_header_is_refused_before_its_payload_comes() -> None:
    with pytest.raises(CollectiveError, match="a frame with sequence"):
        receive(frame(sequence=3)[:32])


@given(st.binary(min_size=44, max_size=100))
def test_random_bytes_are_never_taken_for_a_frame(words: bytes) -> None:
    with pytest.raises(CollectiveError):
        receive(words)


def test_a_frame_may_come_byte_by_byte(in_threads: Any) -> None:
    raw, communicator = raw_and_communicator()
    x = np.arange(3, dtype=np.int64)

    def body(side: int) -> None:
        if side == 0:
            communicator.all_reduce(x)
            return
        fields = FIELDS | {"call": 2, "payload_bytes": 24}
        fields.pop("padding")
        for byte in struct.pack("<4sIQQQ", *fields.values()) + np.full(3, 10, np.int64).tobytes():
            raw.sendall(bytes([byte]))

    with raw:
        for future in in_threads(range(2), body):
            future.result()
        communicator.close()
    assert x.tolist() == [10, 11, 12]


def test_half_a_frame_ends_at_the_deadline() -> None:
    with pytest.raises(CollectiveError, match=r"rank 0 waited 0\.1 s in recv for rank 1"):
        receive(frame()[:40], timeout_s=0.1)


def test_a_peer_that_leaves_in_the_middle_of_a_frame_is_named() -> None:
    raw, communicator = raw_and_communicator()
    raw.sendall(frame()[:40])
    raw.close()
    with pytest.raises(CollectiveError, match="rank 1 left or died"):
        communicator.recv(np.empty(3, np.float32), 1)
    with pytest.raises(CollectiveError, match="rank 1 left or died"):
        communicator.all_reduce(np.zeros(3, np.int64))
    communicator.close()


def test_a_peer_that_does_not_read_ends_a_sum_at_the_deadline() -> None:
    raw, communicator = raw_and_communicator(timeout_s=0.2)
    with raw, pytest.raises(CollectiveError, match=r"rank 0 waited 0\.2 s in all_reduce for rank 1"):
        communicator.all_reduce(np.zeros(4_000_000, np.int64))
    communicator.close()


def test_a_message_to_oneself_is_refused() -> None:
    raw, communicator = raw_and_communicator()
    with raw, pytest.raises(ValueError, match="cannot send to itself"):
        communicator.send(np.zeros(3, np.int64), 0)
    communicator.close()


def test_a_rank_that_comes_late_is_waited_for(listeners: Any, in_threads: Any) -> None:
    """The sum begins long before rank 1 does: its values lie in the sockets, or in rank 0's hands, until then."""
    n = 1_500_017
    has_begun = threading.Event()

    def body(rank: int) -> None:
        communicator = connect(rank, listeners)
        x = np.arange(n, dtype=np.int64) * (rank + 1)
        if rank == 0:
            communicator.send(x, 1)
            has_begun.set()
        else:
            assert has_begun.wait(30.0)
            received = np.empty_like(x)
            communicator.recv(received, 0)
            np.testing.assert_array_equal(received, np.arange(n))
        communicator.all_reduce(x)
        np.testing.assert_array_equal(x, np.arange(n) * 3)
        communicator.close()

    for future in in_threads(range(2), body):
        future.result()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_closed_group_leaves_no_file_and_no_thread(in_threads: Any) -> None:
    def body(rank: int, listeners: list[TcpListener]) -> None:
        communicator = connect(rank, listeners)
        if rank == 0:  # more than the sockets take, so that a writer starts
            communicator.send(np.zeros(2_000_000, np.int64), 1)
        communicator.barrier() if rank else communicator.abort()

    files, threads = open_files(), threading.active_count()
    native_threads = len(os.listdir("/proc/self/task"))
    for _ in range(3):
        listeners = [TcpListener("127.0.0.1") for _ in range(2)]
        outcomes = in_threads(range(2), lambda rank, listeners=listeners: body(rank, listeners))
        assert isinstance(outcomes[1].exception(), CollectiveError)
        del outcomes
    gc.collect()
    assert (open_files(), threading.active_count()) == (files, threads)
    assert len(os.listdir("/proc/self/task")) <= native_threads
