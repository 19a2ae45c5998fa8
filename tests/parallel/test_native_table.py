"""The calls that native code makes are those that Python makes: same results, same failures, same lifetime."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from tests.parallel.native_table import NativeTable
from tests.parallel.test_collectives import (
    check_all_gather,
    check_all_reduce,
    check_all_to_all,
    check_broadcast,
    check_reduce_scatter,
    check_ring,
)
from tinycluster.parallel.communicator import CollectiveError
from tinycluster.parallel.local import LocalGroup
from tinycluster.parallel.pipeline import PeerLink, StageCollectives

KINDS = ["local", "shared_memory", "tcp", "hierarchical"]
MESSENGERS = ["local", "shared_memory", "tcp"]


def table_of(communicator: Any) -> NativeTable:
    return NativeTable(communicator.native_table(), communicator.rank, communicator.size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_call_of_a_table_agrees_with_numpy(kind: str, size: int, groups: Any, in_threads: Any) -> None:
    def body(communicator: Any) -> None:
        table = table_of(communicator)
        for n in (0, 1, 576, 40_001):
            check_all_reduce(table, "int64", n)
            check_all_reduce(table, "float32", n)
            check_reduce_scatter(table, [n + 5 * rank for rank in range(size)])
            check_all_gather(table, [n + 3 * rank for rank in range(size)])
            check_all_to_all(table, [[n + 7 * rank + other for other in range(size)] for rank in range(size)])
            check_broadcast(table, n, root=size - 1)
            if size > 1 and kind in MESSENGERS:
                check_ring(table, min(n, 4093))

    for future in in_threads(groups.open(kind, size), body):
        future.result()


@pytest.mark.parametrize("kind", KINDS)
def test_calls_from_python_and_from_native_code_meet(kind: str, groups: Any, in_threads: Any) -> None:
    def body(communicator: Any) -> None:
        check_all_reduce(table_of(communicator) if communicator.rank == 0 else communicator, "int64", 576)

    for future in in_threads(groups.open(kind, 2), body):
        future.result()


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_call_says_why_and_leaves_the_group_broken(kind: str, groups: Any) -> None:
    first, second = groups.open(kind, 2)
    table = table_of(first)
    second.abort()
    # Another node only sees its connection end.
    reason = "rank 1 aborted the group" if kind in ("local", "shared_memory") else "rank 1 left or died"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=reason):
            table.all_reduce(np.zeros(3, np.int64))
    with pytest.raises(CollectiveError, match=reason):
        first.barrier()


@pytest.mark.parametrize("kind", MESSENGERS)
def test_time_spent_waiting_is_counted_and_time_without_waiting_is_not(kind: str, groups: Any) -> None:
    # Waited for to its end, and enough for a busy machine to open both before.
    first, second = groups.open(kind, 2, timeout_s=2.0)
    sender, receiver = table_of(first), table_of(second)
    before = sender.waited_ns, receiver.waited_ns
    sender.send(np.zeros(3, np.int64), 1)
    receiver.recv(np.zeros(3, np.int64), 0)
    assert (sender.waited_ns, receiver.waited_ns) == before
    with pytest.raises(RuntimeError, match="waited"):
        receiver.recv(np.zeros(3, np.int64), 0)
    assert receiver.waited_ns >= 2_000_000_000


def test_a_table_keeps_its_group_alive() -> None:
    tables = [table_of(LocalGroup(1).communicator(0)) for _ in range(3)]
    gc.collect()
    for table in tables:
        check_all_reduce(table, "int64", 576)


def test_a_stage_shows_the_tables_of_its_group_and_of_its_neighbours(groups: Any) -> None:
    world, group = groups.open("local", 3), groups.open("local", 1)[0]
    stage = StageCollectives(group, PeerLink(world[1], 0), PeerLink(world[1], 2))
    check_all_reduce(NativeTable(stage.tensor_table, 0, 1), "int64", 5)
    assert stage.previous_table is not None
    assert stage.next_table is not None
    assert (stage.previous_table[1], stage.next_table[1]) == (0, 2)
    world[0].send(np.arange(4), 1)
    received = np.empty(4, np.int64)
    NativeTable(stage.previous_table[0], 1, 3).recv(received, stage.previous_table[1])
    assert received.tolist() == [0, 1, 2, 3]


def test_the_first_and_the_last_stage_have_no_table_there(groups: Any) -> None:
    stage = StageCollectives(groups.open("local", 1)[0], None, None)
    assert (stage.previous_table, stage.next_table) == (None, None)
