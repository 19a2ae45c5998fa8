"""What runs outside a Program: the choice of tokens from logits, and sums between two ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from tinycluster.engine.batch import Outputs
from tinycluster.engine.request import Row, SamplingParams
from tinycluster.engine.sampler import Sampler
from tinycluster.kernels import sampling_reference
from tinycluster.kernels._cpu import Cpu
from tinycluster.kernels.program import F32, I64
from tinycluster.parallel.local import LocalGroup
from tinycluster.parallel.native import NativeCommunicator
from tinycluster.serve.bench.client import Clock
from tinycluster.serve.bench.kernels.cases import CHECKED_TOKENS, Case, Model
from tinycluster.serve.bench.kernels.trial import TIMEOUT_S, Engine

NUM_RANKS = 2
CHOICES = {
    "greedy": SamplingParams(temperature=0),
    "temperature": SamplingParams(temperature=0.8),
    "top_k": SamplingParams(temperature=0.8, top_k=50),
    "top_p": SamplingParams(temperature=0.8, top_p=0.95),
    "min_p": SamplingParams(temperature=0.8, min_p=0.05),
    "all": SamplingParams(temperature=0.8, top_k=50, top_p=0.95, min_p=0.05),
}
# As many sums as make a run long enough for the clock.
NUM_SUMS = 200


def sampling_cases(model: Model, engine: Engine, rows: Sequence[int]) -> Iterator[Case]:
    """Each way of choosing, over logits so flat that thousands of tokens are likely."""
    sampler = Sampler(Cpu(engine.num_threads, engine.isa))
    for num_rows in rows:
        logits_OV = 3 * np.random.default_rng(num_rows).standard_normal((num_rows, model.config.vocab_size), np.float32)
        for choice, params in CHOICES.items():
            requests = [Row(index, (0,), 0, (0,), 1, params, seed=index) for index in range(num_rows)]
            asked = Outputs(requests, np.ones(num_rows, np.int32))
            yield Case(
                op="sample",
                shape=f"{logits_OV.shape[1]}, {choice}",
                tokens=num_rows,
                num_bytes=logits_OV.nbytes,
                macs=0,
                is_correct=partial(_tokens_are_right, sampler, logits_OV, asked),
                stopwatch=partial(partial, _seconds, partial(sampler.sample, logits_OV, asked)),
            )


def _tokens_are_right(sampler: Sampler, logits_OV: F32, asked: Outputs) -> bool:
    """On the first rows: the definition sorts."""
    wanted = []
    for logits_V, row in zip(logits_OV[:CHECKED_TOKENS], asked.rows, strict=False):
        p = row.sampling
        wanted.append(sampling_reference.sample(logits_V, p.temperature, p.top_k, p.top_p, p.min_p, row.seed, 1))
    return list(sampler.sample(logits_OV, asked)[:CHECKED_TOKENS]) == wanted


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
