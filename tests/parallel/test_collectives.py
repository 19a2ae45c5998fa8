"""Every kind of group against numpy, with ranks as threads; integers and rank-ordered float sums must be equal."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

KINDS = ["local", "shared_memory", "tcp", "hierarchical"]
SLOT_BYTES = 1024
SLOT = SLOT_BYTES // 8


def values(dtype: str, n: int, rank: int, seed: int) -> Any:
    """Distinct in every rank; floats of many magnitudes, so that another order of addition shows in the bits."""
    rng = np.random.default_rng([seed, rank, n])
    if dtype == "float32":
        return (rng.standard_normal(n) * 10.0 ** rng.integers(-6, 6, n)).astype(np.float32)
    return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, n, dtype=dtype, endpoint=True)


def sum_in_rank_order(addends: list[Any]) -> Any:
    total = addends[0].copy()
    for addend in addends[1:]:
        total += addend
    return total


def check_all_reduce(communicator: Any, dtype: str, n: int, seed: int = 0) -> None:
    addends = [values(dtype, n, rank, seed) for rank in range(communicator.size)]
    x = addends[communicator.rank].copy()
    communicator.all_reduce(x)
    np.testing.assert_array_equal(x, sum_in_rank_order(addends))


def check_reduce_scatter(communicator: Any, counts: list[int], seed: int = 0) -> None:
    addends = [values("int64", sum(counts), rank, seed) for rank in range(communicator.size)]
    start, rank = sum(counts[: communicator.rank]), communicator.rank
    mine = communicator.reduce_scatter(addends[rank].copy(), counts)
    np.testing.assert_array_equal(mine, sum_in_rank_order(addends)[start : start + counts[rank]])


def check_all_gather(communicator: Any, counts: list[int], seed: int = 0) -> None:
    parts = [values("float32", count, rank, seed) for rank, count in enumerate(counts)]
    gathered = communicator.all_gather(parts[communicator.rank], counts)
    np.testing.assert_array_equal(gathered, np.concatenate(parts))


def check_all_to_all(communicator: Any, counts: list[list[int]], seed: int = 0) -> None:
    size, rank = communicator.size, communicator.rank
    parts = [[values("int32", counts[s][r], s * size + r, seed) for r in range(size)] for s in range(size)]
    received = communicator.all_to_all(np.concatenate(parts[rank]), counts)
    np.testing.assert_array_equal(received, np.concatenate([parts[s][rank] for s in range(size)]))


def check_broadcast(communicator: Any, n: int, root: int, seed: int = 0) -> None:
    x = values("int32", n, communicator.rank, seed)
    communicator.broadcast(x, root)
    np.testing.assert_array_equal(x, values("int32", n, root, seed))


def check_ring(communicator: Any, n: int, seed: int = 0) -> None:
    """Every rank sends to the next and receives from the one before."""
    size, rank = communicator.size, communicator.rank
    communicator.send(values("float32", n, rank, seed), (rank + 1) % size)
    x = np.empty(n, np.float32)
    communicator.recv(x, (rank - 1) % size)
    np.testing.assert_array_equal(x, values("float32", n, (rank - 1) % size, seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_all_reduce_is_the_sum_in_rank_order(kind: str, size: int, dtype: str, groups: Any, in_threads: Any) -> None:
    def body(communicator: Any) -> None:
        for n in (0, 1, 127, 576, 32768, 100_003):
            check_all_reduce(communicator, dtype, n)

    for future in in_threads(groups.open(kind, size), body):
        future.result()


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_is_summed_in_place(kind: str, groups: Any, in_threads: Any) -> None:
    def body(communicator: Any) -> None:
        x_TD = np.full((3, 5), communicator.rank + 1, np.int64)
        communicator.all_reduce(x_TD)
        np.testing.assert_array_equal(x_TD, np.full((3, 5), 1 + 2 + 3))

    for future in in_threads(groups.open(kind, 3), body):
        future.result()


@pytest.mark.parametrize("kind", ["local", "shared_memory"])
@pytest.mark.parametrize("n", [SLOT - 1, SLOT, SLOT + 1, 2 * SLOT - 1, 2 * SLOT, 2 * SLOT + 1, 7 * SLOT + 13])
def test_arrays_around_the_chunk_size_are_summed_whole(kind: str, n: int, groups: Any, in_threads: Any) -> None:
    for size in (2, 3):
        communicators = groups.open(kind, size, slot_bytes=SLOT_BYTES)
        for future in in_threads(communicators, lambda communicator: check_all_reduce(communicator, "int64", n)):
            future.result()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counts", [[0, 0, 0], [1, 0, 2], [0, 70_001, 3], [64, 64, 64]])
def test_all_gather_joins_uneven_parts_in_rank_order(kind: str, counts: Any, groups: Any, in_threads: Any) -> None:
    for future in in_threads(groups.open(kind, 3), lambda communicator: check_all_gather(communicator, counts)):
        future.result()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counts", [[0, 0, 0], [1, 0, 2], [0, 70_001, 3], [576, 576, 576], [20_000, 30_000, 10_007]])
def test_reduce_scatter_gives_every_rank_the_sums_of_its_part(
    kind: str, counts: Any, groups: Any, in_threads: Any
) -> None:
    for future in in_threads(groups.open(kind, 3), lambda communicator: check_reduce_scatter(communicator, counts)):
        future.result()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "counts", [[[0] * 3] * 3, [[5, 0, 1], [70_001, 2, 3], [0, 0, 40_000]], [[0, 7, 0], [0, 0, 0], [9, 20_000, 1]]]
)
def test_all_to_all_gives_every_rank_what_the_others_have_for_it(
    kind: str, counts: Any, groups: Any, in_threads: Any
) -> None:
    for future in in_threads(groups.open(kind, 3), lambda communicator: check_all_to_all(communicator, counts)):
        future.result()


def test_counts_that_do_not_fit_are_refused(groups: Any) -> None:
    communicator = groups.open("local", 1)[0]
    for counts in ([4], [2, 3], [6]):
        with pytest.raises(ValueError, match="counts of reduce_scatter"):
            communicator.reduce_scatter(np.zeros(5, np.int64), counts)
        with pytest.raises(ValueError, match="counts of all_to_all"):
            communicator.all_to_all(np.zeros(5, np.int64), [counts])


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_may_be_gathered_into_its_own_place(kind: str, groups: Any, in_threads: Any) -> None:
    counts = [3, 20_000, 40_001]

    def body(communicator: Any) -> Any:
        out = np.zeros(sum(counts), np.int32)
        start = sum(counts[: communicator.rank])
        mine = out[start : start + counts[communicator.rank]]
        mine[:] = values("int32", len(mine), communicator.rank, seed=3)
        communicator.group.all_gather(mine, [4 * count for count in counts], out)
        return out

    parts = [values("int32", count, rank, seed=3) for rank, count in enumerate(counts)]
    for future in in_threads(groups.open(kind, 3), body):
        np.testing.assert_array_equal(future.result(), np.concatenate(parts))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [0, 1, 70_001])
def test_broadcast_reaches_every_rank_from_every_root(kind: str, n: int, groups: Any, in_threads: Any) -> None:
    def body(communicator: Any) -> None:
        for root in range(communicator.size):
            check_broadcast(communicator, n, root)

    for future in in_threads(groups.open(kind, 5), body):
        future.result()


@pytest.mark.parametrize("kind", ["local", "shared_memory", "tcp"])
@pytest.mark.parametrize("n", [0, 1, 4093, 16_001])
def test_messages_go_round_the_ring(kind: str, n: int, groups: Any, in_threads: Any) -> None:
    for future in in_threads(groups.open(kind, 3), lambda communicator: check_ring(communicator, n)):
        future.result()


@pytest.mark.parametrize("kind", ["local", "shared_memory"])
def test_a_message_larger_than_the_mailbox_goes_through_in_pieces(kind: str, groups: Any, in_threads: Any) -> None:
    sent = values("int64", 100_003, 0, seed=1)

    def body(communicator: Any) -> Any:
        if communicator.rank == 0:
            return communicator.send(sent, 1)
        received = np.empty_like(sent)
        communicator.recv(received, 0)
        return received

    _, receiver = in_threads(groups.open(kind, 2, mailbox_bytes=1000), body)
    np.testing.assert_array_equal(receiver.result(), sent)


@pytest.mark.parametrize("kind", ["local", "shared_memory", "tcp"])
def test_send_does_not_wait_for_the_receiver_while_there_is_room(kind: str, groups: Any) -> None:
    options = {} if kind == "tcp" else {"mailbox_bytes": 24 * 2**20}
    first, second = groups.open(kind, 2, **options)
    messages = [values("float32", 2_000_003, rank, seed=2) for rank in range(2)]
    for message in messages:
        first.send(message, 1)
    for message in messages:
        received = np.empty_like(message)
        second.recv(received, 0)
        np.testing.assert_array_equal(received, message)


@pytest.mark.parametrize("kind", ["local", "shared_memory", "tcp"])
def test_two_ranks_may_send_large_arrays_to_each_other_before_they_receive(
    kind: str, groups: Any, in_threads: Any
) -> None:
    options = {} if kind == "tcp" else {"mailbox_bytes": 8 * 2**20}
    for future in in_threads(groups.open(kind, 2, **options), lambda communicator: check_ring(communicator, 1_500_017)):
        future.result()


@pytest.mark.parametrize(("kind", "size"), [("local", 2), ("local", 3), ("local", 8), ("shared_memory", 5), ("tcp", 3)])
def test_random_sequences_of_mixed_operations_agree_with_numpy(
    kind: str, size: int, groups: Any, in_threads: Any
) -> None:
    options = {} if kind == "tcp" else {"slot_bytes": SLOT_BYTES, "mailbox_bytes": 70_000}

    def body(communicator: Any) -> None:
        choose = random.Random(size)  # the same choices in every rank
        for seed in range(120):
            n = choose.choice([0, 1, 2, 61, SLOT - 1, SLOT, SLOT + 1, 5 * SLOT + 3, choose.randrange(4000)])
            operation = choose.randrange(8)
            if operation < 2:
                check_all_reduce(communicator, ["int64", "float32"][operation], n, seed)
            elif operation == 2:
                check_all_gather(communicator, [choose.randrange(n + 1) for _ in range(size)], seed)
            elif operation == 3:
                check_broadcast(communicator, n, choose.randrange(size), seed)
            elif operation == 4:
                check_ring(communicator, n, seed)
            elif operation == 5:
                check_reduce_scatter(communicator, [choose.randrange(n + 1) for _ in range(size)], seed)
            elif operation == 6:
                check_all_to_all(
                    communicator, [[choose.randrange(n + 1) for _ in range(size)] for _ in range(size)], seed
                )
            else:
                communicator.barrier()

    for future in in_threads(groups.open(kind, size, **options), body):
        future.result()


class ReversedSum:
    """A mutant: adds in descending rank order."""

    def __init__(self, communicator: Any) -> None:
        self.rank, self.size, self._communicator = communicator.rank, communicator.size, communicator

    def all_reduce(self, x: Any) -> None:
        parts = np.split(self._communicator.all_gather(x, [x.size] * self.size), self.size)
        x[:] = sum_in_rank_order(parts[::-1])


class LostColumn(ReversedSum):
    """A mutant: the last element keeps this rank's value."""

    def all_reduce(self, x: Any) -> None:
        kept = x[-1]
        self._communicator.all_reduce(x)
        x[-1] = kept


@pytest.mark.parametrize(("mutant", "dtype"), [(ReversedSum, "float32"), (LostColumn, "int64")])
def test_a_wrong_sum_would_be_noticed(mutant: Any, dtype: str, groups: Any, in_threads: Any) -> None:
    mutants = [mutant(communicator) for communicator in groups.open("local", 3)]
    for future in in_threads(mutants, lambda communicator: check_all_reduce(communicator, dtype, 576)):
        with pytest.raises(AssertionError):
            future.result()


def test_a_slot_that_cannot_hold_a_number_for_every_rank_is_refused(groups: Any) -> None:
    assert groups.open("local", 3, slot_bytes=24)
    with pytest.raises(ValueError, match="slot_bytes must hold a number for every rank"):
        groups.open("local", 3, slot_bytes=23)


def test_an_array_that_is_not_contiguous_is_refused_instead_of_copied(groups: Any) -> None:
    for kind in ("local", "tcp"):
        communicator = groups.open(kind, 1)[0]
        with pytest.raises((TypeError, ValueError)):
            communicator.all_reduce(np.zeros((4, 4), np.int64)[:, ::2])
