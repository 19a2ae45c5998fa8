"""Attention over the paged cache: decode and prefill chunks at several contexts.

Shape legend: R = requests, T = tokens, H = query heads, K = KV heads, C = head_dim, P = positions, N = columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tinycluster.kernels import program as p
from tinycluster.kernels import reference
from tinycluster.kernels.executor import PagedCache
from tinycluster.kernels.program import F32, Batch, Buffer, KVShape
from tinycluster.serve.bench.client import Clock
from tinycluster.serve.bench.kernels.cases import CHECKED_TOKENS, Case, Model, sample
from tinycluster.serve.bench.kernels.trial import BLOCK_TOKENS, Engine, Stopwatch, Trial, same_bits


@dataclass(frozen=True)
class Load:
    """`requests` that each compute their last `queries` of `context` positions."""

    requests: int
    queries: int
    context: int


def attention_loads(max_context: int) -> list[Load]:
    """Decode of one request at several contexts, of sixteen, and prefill chunks at the start and the end."""
    decode = [Load(1, 1, context) for context in (128, 1024, 4096) if context <= max_context]
    chunk = min(512, max_context)
    chunks = {Load(1, chunk, chunk), Load(1, chunk, min(4096, max_context))}
    return [*decode, Load(16, 1, chunk), *sorted(chunks, key=lambda load: load.context)]


def attention_cases(model: Model, engine: Engine, loads: Sequence[Load], rotate_bytes: int) -> Iterator[Case]:
    """The Program's attention over its layers in turn, each with keys and values of its own."""
    ops = [op for op in model.program.ops if isinstance(op, p.Attention)]
    for load in loads:
        yield _case(_Trial(ops, model.program.kv, engine, load), rotate_bytes)


def _case(attention: _Trial, rotate_bytes: int) -> Case:
    load, op, kv = attention.load, attention.ops[0], attention.kv
    H, C = len(op.kv_head_of_head), op.head_dim
    num_bytes = attention.cache_bytes_of_a_layer + 8 * attention.q_TN.size
    seen = sum(min(int(position) + 1, op.window or load.context) for position in attention.batch.positions)
    window = "" if op.window is None else f", window {op.window}"
    return Case(
        op="attention",
        shape=f"{load.requests}×{load.queries} of {load.context}, {H}/{kv.num_heads} heads of {C}{window}",
        tokens=attention.batch.num_tokens,
        num_bytes=num_bytes,
        macs=2 * seen * H * C,
        is_correct=attention.is_correct,
        stopwatch=lambda clock: attention.stopwatch(clock).seconds_per_op,
        from_memory=len(attention.ops) * num_bytes > rotate_bytes,
    )


class _Trial:
    """The attention ops of all layers under one load. Keys and values are those of a table of random rows, which each
    request starts at another row: one that read another's block would be noticed."""

    def __init__(self, ops: Sequence[p.Attention], kv: KVShape, engine: Engine, load: Load) -> None:
        rng = np.random.default_rng(load.context)
        self.ops = [replace(op, q="q", out="out") for op in ops]
        self.kv, self.engine, self.load = kv, engine, load
        self.batch = _batch(rng, load)
        width = len(ops[0].kv_head_of_head) * ops[0].head_dim
        self.q_TN = rng.standard_normal((self.batch.num_tokens, width), np.float32)
        rows = (2, load.context, kv.num_heads * kv.head_dim)
        self._k_PN, self._v_PN = rng.standard_normal(rows, np.float32)

    @property
    def cache_bytes_of_a_layer(self) -> int:
        return self.batch.block_tables.size * PagedCache.bytes_per_block(replace(self.kv, num_layers=1), BLOCK_TOKENS)

    def is_correct(self) -> bool:
        """The first layer's attention on the whole batch against the definition on a few of its tokens."""
        first = replace(self.kv, num_layers=1)
        got = self._trial(self.ops[:1], first).native(self.engine, 1, self._filled(first)).run(self.batch)
        return same_bits(got, np.stack([self._definition(int(t)) for t in self.batch.output_rows]))

    def stopwatch(self, clock: Clock) -> Stopwatch:
        return Stopwatch(self._trial(self.ops, self.kv), self.engine, self.batch, clock, self._filled(self.kv))

    def _trial(self, ops: Sequence[p.Attention], kv: KVShape) -> Trial:
        return Trial({"q": self.q_TN}, tuple(ops), "out", {"out": Buffer(self.q_TN.shape[1])}, kv=kv)

    def _definition(self, t: int) -> F32:
        op, positions = self.ops[0], int(self.batch.positions[t]) + 1
        first = max(0, positions - (op.window or positions))
        rows = np.roll(np.arange(self.load.context), t // self.load.queries)[:positions]
        q_HC = self.q_TN[t].reshape(-1, op.head_dim)
        k_PKC, v_PKC = (part[rows].reshape(positions, -1, op.head_dim) for part in (self._k_PN, self._v_PN))
        out_HC: F32 = np.empty_like(q_HC)
        for kv_head in set(op.kv_head_of_head):
            heads = [head for head, its_kv_head in enumerate(op.kv_head_of_head) if its_kv_head == kv_head]
            out_HC[heads] = reference.attend(q_HC[heads], k_PKC[:, kv_head], v_PKC[:, kv_head], first, op.scale)
        return out_HC.reshape(-1)

    def _filled(self, shape: KVShape) -> PagedCache:
        cache = PagedCache(shape, self.batch.block_tables.size, BLOCK_TOKENS)
        writes = tuple(p.WriteKV("k", "v", layer) for layer in range(shape.num_layers))
        executor = Trial({"k": self._k_PN, "v": self._v_PN}, (), "k", {}, before=writes, kv=shape).native(
            self.engine, 0, cache
        )
        every = np.arange(self.load.context, dtype=np.int32)
        for request, table in enumerate(self.batch.block_tables):
            row_start = np.array([0, self.load.context], np.int32)
            executor.run(Batch(np.roll(every, request), every, row_start, table[None, :], every[:1]))
        return cache


def _batch(rng: np.random.Generator, load: Load) -> Batch:
    """Blocks lie anywhere in the cache; a few tokens are looked at."""
    R, T = load.requests, load.requests * load.queries
    last = np.arange(load.context - load.queries, load.context, dtype=np.int32)
    blocks_per_request = -(-load.context // BLOCK_TOKENS)
    return Batch(
        tokens=np.arange(T, dtype=np.int32),
        positions=np.tile(last, R),
        row_start=np.arange(0, T + 1, load.queries, dtype=np.int32),
        block_tables=rng.permutation(R * blocks_per_request).astype(np.int32).reshape(R, -1),
        output_rows=sample(rng, T, max(1, T // CHECKED_TOKENS), CHECKED_TOKENS),
    )
