"""Runs a Program step by step: natively, or with the numpy definitions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tinycluster.kernels import program as p
from tinycluster.kernels import reference
from tinycluster.kernels._cpu import Cpu
from tinycluster.kernels.formats import HostTensor
from tinycluster.kernels.native_plan import NativePlan, Parts
from tinycluster.kernels.packing import PackedWeight, prepare
from tinycluster.kernels.paged_cache import PagedCache
from tinycluster.kernels.passes import PASSES, MatrixShape, Pass, optimize
from tinycluster.kernels.program import (
    F32,
    Batch,
    CollectiveError,
    Collectives,
    NumericalError,
    Op,
    Program,
)

Buffers = dict[str, NDArray[Any]]


def _method_name(op: Op) -> str:
    """RmsNorm -> _rms_norm, WriteKV -> _write_kv."""
    return "_" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(op).__name__).lower()


SpanKind = Literal["compute", "communicate", "wait"]
SPAN_KINDS: tuple[SpanKind, ...] = get_args(SpanKind)
"""In the order of the numbers that stand for them, in native code and in messages."""


@dataclass(frozen=True)
class Span:
    """What thread 0 of a rank did, on CLOCK_MONOTONIC."""

    name: str
    kind: SpanKind
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class AmongRanks:
    """What thread 0 of a rank spent among other ranks so far; `bubble_ns` is the part of `wait_ns` in which it waited
    for the activations of the stage before."""

    communicate_ns: int
    wait_ns: int
    bubble_ns: int


class NativeExecutor:
    """Runs a Program as one native call per step, on `num_threads` threads, without the GIL.

    `passes` change how the Program is run, never a bit of what it computes. The threads but the first, which is the
    caller's, are bound to `cores`, one per thread, if there are some.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, PackedWeight | F32],
        rope: tuple[F32, F32],
        cache: PagedCache,
        collectives: Collectives | None,
        num_threads: int = 1,
        isa: str = "auto",
        passes: Sequence[Pass] = PASSES,
        cores: Sequence[int] = (),
    ) -> None:
        matrices = {name: w for name, w in weights.items() if isinstance(w, PackedWeight)}
        shapes = {name: MatrixShape(w.format, *w.shape, w.unit) for name, w in matrices.items()}
        vectors = {name: w for name, w in weights.items() if not isinstance(w, PackedWeight)}
        parts = Parts({name: w.native for name, w in matrices.items()}, vectors, rope, cache.layers, collectives)
        self.cpu = Cpu(num_threads, isa, cores=list(cores))
        self._output, self._cache = program.output, cache
        self._plan = NativePlan(self.cpu, optimize(program, shapes, passes), parts)

    def run(self, batch: Batch) -> F32 | None:
        """The (O, vocab_size) logits of the output rows on the last stage, None on the others.

        Unless the batch wants all logits, only the rows that this tensor rank samples are filled. They are a view that
        the next step writes over. NumericalError if a partial sum is infinite, not a number, or too large for the
        fixed-point format; CollectiveError if another rank is lost.
        """
        num_outputs = len(batch.output_rows)
        self._plan.reserve(batch.num_tokens, num_outputs)
        failure = self._plan.native.run(
            batch.tokens,
            batch.positions,
            batch.row_start,
            batch.block_tables,
            batch.output_rows,
            batch.wants_all_logits,
        )
        if failure is not None:
            name, reason, is_collective = failure
            raise CollectiveError(reason) if is_collective else NumericalError(f"{name}: {reason}")
        return None if self._output is None else self._plan.output(self._output, num_outputs)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """One after the other, the second block of each pair becomes a copy of the first in every layer."""
        self._cache.copy_blocks(copies)

    def times(self) -> AmongRanks:
        """Of all steps so far; any thread may ask while another one runs a step."""
        return AmongRanks(*self._plan.native.times())

    def set_tracing(self, on: bool) -> None:
        self._plan.native.set_tracing(on)

    def take_timeline(self) -> list[Span]:
        """What happened in the steps since the last call, as far as tracing was on."""
        return [
            Span(name, SPAN_KINDS[kind], start, end) for name, kind, start, end in self._plan.native.take_timeline()
        ]


class ReferenceExecutor:
    """The numpy definitions of reference.py, for tests: the same bits, thousands of times slower."""

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, HostTensor | F32],
        rope: tuple[F32, F32],
        cache: PagedCache,
        collectives: Collectives | None,
    ) -> None:
        self._program, self._rope_table, self._cache, self._ranks = program, rope, cache, collectives
        self._steps: list[tuple[Callable[[Any, Buffers, Batch], None], Op]] = [
            (getattr(self, _method_name(op)), op) for op in program.ops
        ]
        self._weights: Mapping[str, Any] = weights
        shape = (
            cache.shape.num_layers,
            cache.num_blocks,
            cache.block_tokens,
            cache.shape.num_heads,
            cache.shape.head_dim,
        )
        self._keys, self._values = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)

    def run(self, batch: Batch) -> F32 | None:
        """The (O, vocab_size) logits of the output rows on the last stage, None on the others.

        NumericalError if a partial sum is infinite, not a number, or too large for the fixed-point format.
        """
        rows = {"tokens": batch.num_tokens, "outputs": len(batch.output_rows)}
        buffers: Buffers = {
            name: np.empty((rows[buffer.rows], buffer.width), buffer.dtype)
            for name, buffer in self._program.buffers.items()
        }
        for step, op in self._steps:
            step(op, buffers, batch)
        return None if self._program.output is None else buffers[self._program.output]

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """As NativeExecutor.copy_blocks."""
        for source, copy in copies:
            self._keys[:, copy], self._values[:, copy] = self._keys[:, source], self._values[:, source]

    def _gather_rows(self, op: p.GatherRows, b: Buffers, batch: Batch) -> None:
        np.take(b[op.x], batch.output_rows, axis=0, out=b[op.out])

    @property
    def _collectives(self) -> Collectives:
        assert self._ranks is not None, "a Program with collectives needs ranks around it"
        return self._ranks

    def _all_reduce(self, op: p.AllReduce, b: Buffers, batch: Batch) -> None:
        self._collectives.all_reduce(b[op.x])

    def _all_gather(self, op: p.AllGather, b: Buffers, batch: Batch) -> None:
        b[op.out] = self._collectives.all_gather_columns(b[op.x], op.widths)

    def _send(self, op: p.Send, b: Buffers, batch: Batch) -> None:
        self._collectives.send_next(b[op.x])

    def _recv(self, op: p.Recv, b: Buffers, batch: Batch) -> None:
        self._collectives.recv_previous(b[op.out])

    def _vector(self, name: str | None) -> F32 | None:
        return None if name is None else self._weights[name]

    def _embedding(self, op: p.Embedding, b: Buffers, batch: Batch) -> None:
        b[op.out] = reference.embedding(batch.tokens, prepare(self._weights[op.weight]), op.first_row)

    def _rms_norm(self, op: p.RmsNorm, b: Buffers, batch: Batch) -> None:
        b[op.out] = reference.rms_norm(b[op.x], self._weights[op.weight], op.eps)

    def _linear(self, op: p.Linear, b: Buffers, batch: Batch) -> None:
        b[op.out] = reference.linear(b[op.x], self._weights[op.weight], self._vector(op.bias), op.bits)

    def _linear_fixed(self, op: p.LinearFixed, b: Buffers, batch: Batch) -> None:
        b[op.out] = reference.linear_fixed(b[op.x], self._weights[op.weight], op.unit, op.limit, op.bits)

    def _add_fixed(self, op: p.AddFixed, b: Buffers, batch: Batch) -> None:
        b[op.x] = reference.add_fixed(b[op.x], b[op.fixed], self._vector(op.bias))

    def _rope(self, op: p.Rope, b: Buffers, batch: Batch) -> None:
        b[op.x] = reference.rope(b[op.x], batch.positions, *self._rope_table, op.head_dim)

    def _write_kv(self, op: p.WriteKV, b: Buffers, batch: Batch) -> None:
        for block, at, t in self._places(batch):
            shape = (self._cache.shape.num_heads, self._cache.shape.head_dim)
            self._keys[op.layer, block, at] = reference.round_kv(b[op.k][t].reshape(shape), self._cache.dtype)
            self._values[op.layer, block, at] = reference.round_kv(b[op.v][t].reshape(shape), self._cache.dtype)

    def _places(self, batch: Batch) -> list[tuple[int, int, int]]:
        """(block, offset in it, row of T) for every token of the step."""
        page = self._cache.block_tokens
        return [
            (int(batch.block_tables[r, batch.positions[t] // page]), int(batch.positions[t]) % page, t)
            for r in range(len(batch.row_start) - 1)
            for t in range(batch.row_start[r], batch.row_start[r + 1])
        ]

    def _attention(self, op: p.Attention, b: Buffers, batch: Batch) -> None:
        q_THC = b[op.q].reshape(batch.num_tokens, -1, op.head_dim)
        out_THC = b[op.out].reshape(q_THC.shape)
        for r in range(len(batch.row_start) - 1):
            for t in range(batch.row_start[r], batch.row_start[r + 1]):
                position = int(batch.positions[t])
                first = 0 if op.window is None else max(0, position + 1 - op.window)
                for kv_head in sorted(set(op.kv_head_of_head)):
                    heads = [h for h, kv in enumerate(op.kv_head_of_head) if kv == kv_head]
                    k_PC, v_PC = self._history(op.layer, kv_head, batch.block_tables[r], position + 1)
                    out_THC[t, heads] = reference.attend(q_THC[t, heads], k_PC, v_PC, first, op.scale)

    def _history(self, layer: int, kv_head: int, table: NDArray[np.int32], length: int) -> tuple[F32, F32]:
        blocks = table[: -(-length // self._cache.block_tokens)]
        keys, values = (
            pages[layer, blocks, :, kv_head].reshape(-1, self._cache.shape.head_dim)[:length]
            for pages in (self._keys, self._values)
        )
        return keys, values

    def _swi_glu(self, op: p.SwiGlu, b: Buffers, batch: Batch) -> None:
        b[op.out] = reference.swiglu(b[op.gate], b[op.up])


__all__ = ["NativeExecutor", "PagedCache", "ReferenceExecutor"]
