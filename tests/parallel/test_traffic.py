"""Bytes per link, against who needs what from whom."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

KINDS = ["local", "shared_memory", "tcp", "hierarchical"]
SIZES = [1, 2, 3, 5]
Matrix = list[list[int]]
"""bytes[s][r] went from rank s to rank r."""


def sent(communicators: list[Any]) -> Matrix:
    """What the ranks say they sent, which must be what the others say they received."""
    tables = [communicator.traffic() for communicator in communicators]
    size = len(communicators)
    from_senders = [[tables[s][r][0] for r in range(size)] for s in range(size)]
    from_receivers = [[tables[r][s][1] for r in range(size)] for s in range(size)]
    assert from_senders == from_receivers
    return from_senders


def between_others(size: int, num_bytes: Any) -> Matrix:
    return [[num_bytes(s, r) if s != r else 0 for r in range(size)] for s in range(size)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["local", "shared_memory", "tcp"])
def test_every_rank_gets_what_it_lacks_and_nothing_else(groups: Any, in_threads: Any, kind: str, size: int) -> None:
    group = groups.open(kind, size)
    counts = [7 * rank + 3 for rank in range(size)]
    cells = [[5 * s + r for r in range(size)] for s in range(size)]

    def body(communicator: Any) -> None:
        rank = communicator.rank
        communicator.all_gather(np.zeros(counts[rank], np.float32), counts)
        communicator.reduce_scatter(np.zeros(sum(counts), np.int64), counts)
        communicator.all_to_all(np.zeros(sum(cells[rank]), np.int32), cells)
        communicator.broadcast(np.zeros(11, np.int64), size - 1)
        communicator.barrier()
        if rank == 0 and size > 1:
            communicator.send(np.zeros(13, np.float32), 1)
        if rank == 1:
            communicator.recv(np.zeros(13, np.float32), 0)

    for future in in_threads(group, body):
        future.result()
    expected = between_others(
        size,
        lambda s, r: 4 * counts[s] + 8 * counts[r] + 4 * cells[s][r] + 88 * (s == size - 1) + 52 * ((s, r) == (0, 1)),
    )
    assert sent(group) == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["local", "shared_memory", "tcp"])
@pytest.mark.parametrize("n", [0, 1, 100, 50_021])
def test_a_sum_is_sent_whole_while_short_and_in_parts_when_long(
    groups: Any, in_threads: Any, kind: str, size: int, n: int
) -> None:
    group = groups.open(kind, size)
    for future in in_threads(group, lambda communicator: communicator.all_reduce(np.zeros(n, np.int64))):
        future.result()
    told = sent(group)
    if n <= 100 or (kind == "tcp" and size == 2):
        assert told == between_others(size, lambda s, r: 8 * n)
    else:
        # A rank's addends of all the others' parts leave it, and its own part of the sum leaves it for every other;
        # long sums go in several turns, each dealt anew, so parts differ by a number per turn.
        turns = 8 * n // (128 * 1024) + 1
        for rank, row in enumerate(told):
            assert row[rank] == 0
            assert sum(row) == pytest.approx(2 * 8 * n * (size - 1) / size, abs=2 * 8 * turns * size)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_between_nodes_only_leaders_speak(groups: Any, in_threads: Any, size: int) -> None:
    """Even ranks are one node, odd ones the other; ranks 0 and 1 lead them."""
    group = groups.open("hierarchical", size)
    for future in in_threads(group, lambda communicator: communicator.all_reduce(np.zeros(100, np.int64))):
        future.result()
    told = sent(group)
    for s in range(size):
        for r in range(size):
            if s % 2 != r % 2:
                assert told[s][r] == (800 if {s, r} == {0, 1} else 0)
    assert size < 3 or told[0][2] == 1600  # the node's sum among its ranks, then everybody's from the leader
