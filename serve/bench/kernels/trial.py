"""One op between inputs that it can be given and rows that can be looked at: checked first, timed afterwards.

    before: embeddings put the inputs' rows into buffers  ─►  the op, once or many times  ─►  after: rows of the result

So an op runs as it runs in a step, through the executor, and what is timed is what was checked.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tinycluster.kernels.executor import NativeExecutor, PagedCache, ReferenceExecutor
from tinycluster.kernels.formats import DenseTensor, HostTensor
from tinycluster.kernels.packing import PackedWeight, pack
from tinycluster.kernels.program import F32, I32, Batch, Buffer, Embedding, GatherRows, KVShape, Op, Program
from tinycluster.parallel.local import LocalGroup
from tinycluster.parallel.pipeline import StageCollectives
from tinycluster.serve.bench.client import Clock

BLOCK_TOKENS = 16
TIMEOUT_S = 60.0
# A run shorter than this is made of more repetitions of its op: the clock and the call around it must not count.
SHORTEST_RUN_S = 2e-3
MOST_REPETITIONS = 4096
SHORTEST_TIME_S = 1e-9
RUNS_WITHOUT_THE_OP = 5
NO_CACHE = KVShape(0, 0, 0)
NO_ROPE = (np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32))


@dataclass(frozen=True)
class Engine:
    """How native executors are built."""

    num_threads: int
    isa: str


@dataclass(frozen=True)
class Trial:
    """`inputs` are the rows of the buffers of their names. `ops` do the same work on different memory, in turn; the
    `result` of the last one is looked at. Weights are packed for the native executor, plain for the reference."""

    inputs: Mapping[str, F32]
    ops: tuple[Op, ...]
    result: str
    buffers: Mapping[str, Buffer]
    packed: Mapping[str, PackedWeight | F32] = field(default_factory=dict)
    plain: Mapping[str, HostTensor | F32] = field(default_factory=dict)
    before: tuple[Op, ...] = ()
    after: tuple[Op, ...] = ()
    rope: tuple[F32, F32] = NO_ROPE
    kv: KVShape = NO_CACHE

    def program(self, num_repetitions: int) -> Program:
        buffers = {**self.buffers, **{name: Buffer(rows.shape[1]) for name, rows in self.inputs.items()}}
        embeddings = [Embedding(_table(name), 0, name) for name in self.inputs]
        ops = itertools.islice(itertools.cycle(self.ops), num_repetitions)
        after = (*self.after, GatherRows(self.result, "looked_at"))
        return Program(
            ops=[*embeddings, *self.before, *ops, *after],
            buffers={**buffers, "looked_at": Buffer(buffers[self.result].width, "outputs")},
            kv=self.kv,
            output="looked_at",
        )

    def native(self, engine: Engine, num_repetitions: int, cache: PagedCache | None = None) -> NativeExecutor:
        tables = {_table(name): pack(_dense(rows)) for name, rows in self.inputs.items()}
        return NativeExecutor(
            self.program(num_repetitions),
            {**self.packed, **tables},
            self.rope,
            cache or PagedCache(self.kv, 1, BLOCK_TOKENS),
            alone(),
            engine.num_threads,
            engine.isa,
        )

    def definition(self) -> ReferenceExecutor:
        tables: dict[str, HostTensor] = {_table(name): _dense(rows) for name, rows in self.inputs.items()}
        return ReferenceExecutor(
            self.program(1),
            {**self.plain, **tables},
            self.rope,
            PagedCache(self.kv, 1, BLOCK_TOKENS),
            alone(),
        )


def alone() -> StageCollectives:
    """The collectives of a rank that is its whole mesh."""
    return StageCollectives(LocalGroup(1, timeout_s=TIMEOUT_S).communicator(0), None, None)


def _table(name: str) -> str:
    return f"rows of {name}"


def _dense(rows: F32) -> DenseTensor:
    return DenseTensor("f32", rows)


def batch_of(num_tokens: int, rows: I32) -> Batch:
    """One request of `num_tokens` from position 0, of which `rows` are looked at."""
    every = np.arange(num_tokens, dtype=np.int32)
    return Batch(every, every, np.array([0, num_tokens], np.int32), np.zeros((1, 1), np.int32), rows)


def only(batch: Batch, rows: I32) -> Batch:
    """The same tokens at the same positions, each as a request of its own: a definition may skip the others."""
    request_of_row = np.searchsorted(batch.row_start, rows, side="right") - 1
    return Batch(
        tokens=batch.tokens[rows],
        positions=batch.positions[rows],
        row_start=np.arange(len(rows) + 1, dtype=np.int32),
        block_tables=batch.block_tables[request_of_row],
        output_rows=np.arange(len(rows), dtype=np.int32),
    )


def same_bits(got: Any, wanted: Any) -> bool:
    return bool(np.array_equal(np.asarray(got).view(np.int32), np.asarray(wanted).view(np.int32)))


class Stopwatch:
    """Times a trial's op: repetitions in one run, less the shortest run without the op."""

    def __init__(
        self, trial: Trial, engine: Engine, batch: Batch, clock: Clock, cache: PagedCache | None = None
    ) -> None:
        self._trial, self._engine, self._cache, self._clock = trial, engine, cache, clock
        self._batch = replace(batch, output_rows=batch.output_rows[:1])
        empty = self._executor(0)
        self._around_s = min(self._seconds(empty) for _ in range(RUNS_WITHOUT_THE_OP))
        self._count, self._full = self._calibrate(len(trial.ops))

    def seconds_per_op(self) -> float:
        """Of one run."""
        return max(self._seconds(self._full) - self._around_s, SHORTEST_TIME_S) / self._count

    def _executor(self, num_repetitions: int) -> NativeExecutor:
        return self._trial.native(self._engine, num_repetitions, self._cache)

    def _calibrate(self, count: int) -> tuple[int, NativeExecutor]:
        while True:
            executor = self._executor(count)
            self._seconds(executor)
            taken_s = self._seconds(executor) - self._around_s
            if taken_s >= SHORTEST_RUN_S or count >= MOST_REPETITIONS:
                return count, executor
            needed = count * SHORTEST_RUN_S / max(taken_s, 1e-6)
            count = min(MOST_REPETITIONS, max(2 * count, int(1.2 * needed)))

    def _seconds(self, executor: NativeExecutor) -> float:
        start_s = self._clock()
        executor.run(self._batch)
        return self._clock() - start_s
