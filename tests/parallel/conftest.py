"""Groups of every kind for the tests, with their ranks as threads of this process."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tinycluster.parallel.communicator import Communicator
from tinycluster.parallel.hierarchical import HierarchicalCommunicator
from tinycluster.parallel.local import LocalGroup
from tinycluster.parallel.shared_memory import SharedMemoryCommunicator
from tinycluster.parallel.tcp import TcpCommunicator, TcpListener

Body = Callable[[Any], Any]


def _in_threads(arguments: Sequence[Any], body: Body) -> list[Future[Any]]:
    with ThreadPoolExecutor(len(arguments)) as threads:
        return [threads.submit(body, argument) for argument in arguments]


def _nodes(size: int) -> list[list[int]]:
    """Even ranks on one node, odd ranks on another: the order of nodes is not the order of ranks."""
    return [ranks for ranks in (list(range(0, size, 2)), list(range(1, size, 2))) if ranks]


class Groups:
    """Opens groups and closes them after the test."""

    def __init__(self) -> None:
        self._open: list[Communicator] = []

    def open(self, kind: str, size: int, *, timeout_s: float = 60.0, **options: Any) -> list[Any]:
        communicators = getattr(self, f"_{kind}")(size, timeout_s, **options)
        self._open += communicators
        return communicators

    def close(self) -> None:
        for communicator in self._open:
            communicator.close()

    def _local(self, size: int, timeout_s: float, **options: Any) -> list[Communicator]:
        group = LocalGroup(size, timeout_s=timeout_s, **options)
        return [group.communicator(rank) for rank in range(size)]

    def _shared_memory(self, size: int, timeout_s: float, **options: Any) -> list[Communicator]:
        name = secrets.token_hex(8)

        def attach(rank: int) -> Communicator:
            return SharedMemoryCommunicator(name, rank, size, timeout_s=timeout_s, **options)

        return [future.result() for future in _in_threads(range(size), attach)]

    def _tcp(self, size: int, timeout_s: float) -> list[Communicator]:
        listeners = [TcpListener("127.0.0.1") for _ in range(size)]
        addresses = [listener.address for listener in listeners]
        secret = secrets.token_bytes(32)

        def connect(rank: int) -> Communicator:
            return TcpCommunicator(rank, listeners[rank], addresses, secret=secret, epoch=7, timeout_s=timeout_s)

        return [future.result() for future in _in_threads(range(size), connect)]

    def _hierarchical(self, size: int, timeout_s: float) -> list[Communicator]:
        nodes = _nodes(size)
        leaders = self._tcp(len(nodes), timeout_s)
        communicators: dict[int, Communicator] = {}
        for node, ranks in enumerate(nodes):
            for place, inner in enumerate(self._local(len(ranks), timeout_s)):
                leader = leaders[node] if place == 0 else None
                communicators[ranks[place]] = HierarchicalCommunicator(ranks[place], nodes, inner, leader)
        return [communicators[rank] for rank in range(size)]


@pytest.fixture
def groups() -> Iterator[Groups]:
    before = set(Path("/dev/shm").glob("tinycluster-*"))
    groups = Groups()
    yield groups
    groups.close()
    assert set(Path("/dev/shm").glob("tinycluster-*")) <= before


@pytest.fixture
def in_threads() -> Callable[[Sequence[Any], Body], list[Future[Any]]]:
    """Calls body(argument) for each argument, all at once, and returns the finished futures."""
    return _in_threads
