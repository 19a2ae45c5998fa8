"""The channel between driver and rank: framing, the handshake, and strangers at the door."""

from __future__ import annotations

import queue
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tinycluster.cluster.channel import ChannelClosedError, LocalChannel, TcpChannel
from tinycluster.cluster.handshake import Credentials, Listener, connect
from tinycluster.cluster.messages import Heartbeat, Hello, LoadProgress, Stop, encode

CREDENTIALS = Credentials(b"s" * 32, 11, "tinycluster 0.1.0 on Python 3.11.7", "a" * 64)
Accepted = queue.SimpleQueue[tuple[int, TcpChannel]]


@pytest.fixture
def pair() -> Iterator[tuple[TcpChannel, TcpChannel]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    channels = (TcpChannel(near, epoch=11), TcpChannel(far, epoch=11))
    yield channels
    for channel in channels:
        channel.close()


@pytest.fixture
def door() -> Iterator[tuple[Listener, Accepted]]:
    accepted: Accepted = queue.SimpleQueue()
    listener = Listener("127.0.0.1", CREDENTIALS, 2, lambda rank, channel: accepted.put((rank, channel)))
    yield listener, accepted
    listener.close()
    while not accepted.empty():
        accepted.get()[1].close()


def raw(channel_or_address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(channel_or_address, timeout=60)


def frame(
    kind: int, payload: bytes, *, magic: bytes = b"tcCh", version: int = 1, epoch: int = 11, number: int = 0
) -> bytes:
    return struct.pack("<4sHHIQI", magic, version, kind, epoch, number, len(payload)) + payload


def test_messages_arrive_in_order_and_both_ways(pair: tuple[TcpChannel, TcpChannel]) -> None:
    near, far = pair
    for count in range(100):
        near.send(LoadProgress(count, 100))
        far.send(Heartbeat())
    assert [far.receive(10) for _ in range(100)] == [LoadProgress(count, 100) for count in range(100)]
    assert [near.receive(10) for _ in range(100)] == [Heartbeat()] * 100


def test_messages_of_several_threads_are_not_mixed(pair: tuple[TcpChannel, TcpChannel]) -> None:
    near, far = pair

    def send_many() -> None:
        for count in range(200):
            near.send(LoadProgress(count, count))

    threads = [threading.Thread(target=send_many) for _ in range(3)]
    for thread in threads:
        thread.start()
    received = [far.receive(10) for _ in range(600)]
    for thread in threads:
        thread.join()
    assert all(isinstance(message, LoadProgress) and message.done_bytes == message.total_bytes for message in received)


def test_silence_is_none_and_the_end_is_an_error(pair: tuple[TcpChannel, TcpChannel]) -> None:
    near, far = pair
    assert far.receive(0) is None
    near.close()
    with pytest.raises(ChannelClosedError):
        far.receive(10)


def test_closing_wakes_the_own_reader(pair: tuple[TcpChannel, TcpChannel]) -> None:
    near, _ = pair
    seen: queue.SimpleQueue[Exception] = queue.SimpleQueue()

    def read() -> None:
        try:
            near.receive()
        except ChannelClosedError as error:
            seen.put(error)

    reader = threading.Thread(target=read)
    reader.start()
    near.close()
    assert seen.get(timeout=60)
    reader.join()


@pytest.mark.parametrize(
    "content",
    [
        frame(6, b"", magic=b"HTTP"),
        frame(6, b"", version=2),
        frame(6, b"", epoch=12),
        frame(6, b"", number=1),
        frame(99, b""),
        frame(4, b"short"),
        struct.pack("<4sHHIQI", b"tcCh", 1, 6, 11, 0, 2**32 - 1),
        b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"\x80\x04\x95" * 20,
    ],
)
def test_a_frame_of_another_kind_ends_the_channel(content: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    channel = TcpChannel(far, epoch=11)
    with near:
        near.sendall(content)
        with pytest.raises(ChannelClosedError):
            channel.receive(10)
    channel.close()


def test_each_rank_is_believed_once(door: tuple[Listener, Accepted]) -> None:
    listener, accepted = door
    channels = [connect(listener.address, CREDENTIALS, rank, timeout_s=60) for rank in range(2)]
    sides = dict(accepted.get(timeout=60) for _ in range(2))
    channels[1].send(Heartbeat())
    assert sides[1].receive(10) == Heartbeat()
    for rank in (1, 2):
        with pytest.raises(ChannelClosedError):
            connect(listener.address, CREDENTIALS, rank, timeout_s=60)
    for channel in (*channels, *sides.values()):
        channel.close()


@pytest.mark.parametrize(
    "other",
    [
        replace(CREDENTIALS, secret=b"t" * 32),
        replace(CREDENTIALS, epoch=12),
        replace(CREDENTIALS, version="tinycluster 0.2.0 on Python 3.11.7"),
        replace(CREDENTIALS, digest="b" * 64),
    ],
)
def test_another_secret_epoch_version_or_model_is_refused(door: tuple[Listener, Accepted], other: Credentials) -> None:
    listener, accepted = door
    with pytest.raises(ChannelClosedError):
        connect(listener.address, other, 0, timeout_s=60)
    assert accepted.empty()


def test_strangers_do_not_keep_the_ranks_out(door: tuple[Listener, Accepted]) -> None:
    listener, accepted = door
    silent, noisy = raw(listener.address), raw(listener.address)
    noisy.sendall(frame(*encode(Hello(0, b"n" * 5000, b""))))
    channel = connect(listener.address, CREDENTIALS, 0, timeout_s=60)
    rank, accepted_channel = accepted.get(timeout=60)
    assert rank == 0
    while noisy.recv(4096):  # the challenge, then the end
        pass
    for connection in (silent, noisy, channel, accepted_channel):
        connection.close()


def test_a_rank_refuses_a_driver_that_cannot_prove_itself() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        impostor = threading.Thread(target=_play_driver, args=(server,))
        impostor.start()
        with pytest.raises(ChannelClosedError, match="prove"):
            connect(server.getsockname(), CREDENTIALS, 0, timeout_s=60)
        impostor.join()


def _play_driver(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(frame(1, b"\x04\0\0\0abcd"))
        connection.recv(4096)
        connection.sendall(frame(3, b"\x20\0\0\0" + b"x" * 32, number=1))
        connection.recv(4096)


def test_a_local_channel_passes_messages_as_they_are() -> None:
    delivered: list[object] = []
    channel = LocalChannel(delivered.append)
    message = LoadProgress(1, 2)
    channel.put(message)
    assert channel.receive(0) is message
    assert channel.receive(0) is None
    channel.send(message)
    channel.close()
    assert (delivered, channel.receive(0)) == ([message], Stop())
