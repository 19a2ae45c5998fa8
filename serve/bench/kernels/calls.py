"""What runs outside a Program: the choice of tokens from logits, and sums between two ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from tinycluster.kernels import ops, reference
from tinycluster.kernels.program import F32, I64
from tinycluster.parallel.local import LocalGroup
from tinycluster.parallel.native import NativeCommunicator
from tinycluster.serve.bench.client import Clock
from tinycluster.serve.bench.kernels.cases import Case, Model
from tinycluster.serve.bench.kernels.trial import TIMEOUT_S, same_bits

NUM_RANKS = 2
# As many sums as make a run long enough for the clock.
NUM_SUMS = 200


def sampling_cases(model: Model, rows: Sequence[int]) -> Iterator[Case]:
    """One thread each: these run on the rank that samples."""
    vocab_size = model.config.vocab_size
    for num_rows in rows:
        logits_OV = np.random.default_rng(num_rows).standard_normal((num_rows, vocab_size), np.float32)
        yield _call("argmax", logits_OV, ops.argmax, lambda x: np.argmax(x, axis=1).astype(np.int32), 4)
        yield _call("softmax", logits_OV, ops.softmax_f32, reference.softmax, 8)


def _call(
    name: str,
    logits_OV: F32,
    native: Callable[[F32], np.ndarray],
    definition: Callable[[F32], np.ndarray],
    bytes_per_value: int,
) -> Case:
    return Case(
        op=name,
        shape=str(logits_OV.shape[1]),
        tokens=len(logits_OV),
        num_bytes=bytes_per_value * logits_OV.size,
        macs=0,
        is_correct=lambda: same_bits(native(logits_OV), definition(logits_OV)),
        stopwatch=lambda clock: partial(_seconds, lambda: native(logits_OV), clock),
        num_threads=1,
    )


def _seconds(call: Callable[[], object], clock: Clock) -> float:
    start_s = clock()
    call()
    return clock() - start_s


def all_reduce_cases(model: Model, tokens: Sequence[int]) -> Iterator[Case]:
    """Fixed-point sums of hidden vectors between two ranks that are threads of this process."""
    width = model.config.hidden_size
    for T in tokens:
        addends = [np.random.default_rng(rank).integers(-(2**40), 2**40, T * width) for rank in range(NUM_RANKS)]
        yield Case(
            op="all_reduce",
            shape=f"{width}, {NUM_RANKS} ranks",
            tokens=T,
            num_bytes=8 * T * width,
            macs=0,
            is_correct=partial(_sums_are_right, addends),
            stopwatch=partial(partial, _seconds_per_sum, addends),
            num_threads=NUM_RANKS,
        )


def _sums_are_right(addends: Sequence[I64]) -> bool:
    sums = [addend.copy() for addend in addends]
    _on_all_ranks(lambda rank, communicator: communicator.all_reduce(sums[rank]))
    wanted = np.sum(addends, axis=0)
    return all(np.array_equal(got, wanted) for got in sums)


def _seconds_per_sum(addends: Sequence[I64], clock: Clock) -> float:
    """From the moment when all ranks have met; zeros, because a sum of sums would not stay in range."""
    taken_s = [0.0] * NUM_RANKS

    def sum_often(rank: int, communicator: NativeCommunicator) -> None:
        x = np.zeros_like(addends[rank])
        communicator.barrier()
        start_s = clock()
        for _ in range(NUM_SUMS):
            communicator.all_reduce(x)
        taken_s[rank] = clock() - start_s

    _on_all_ranks(sum_often)
    return max(taken_s) / NUM_SUMS


def _on_all_ranks(work: Callable[[int, NativeCommunicator], None]) -> None:
    group = LocalGroup(NUM_RANKS, timeout_s=TIMEOUT_S)
    threads = [threading.Thread(target=work, args=(rank, group.communicator(rank))) for rank in range(NUM_RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
