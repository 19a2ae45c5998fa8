"""Paged attention: native against the numpy definition (==), and the definition against float64 softmax."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from tinycluster.kernels._cpu import Cpu, supported_isas
from tinycluster.kernels.executor import PagedCache, ReferenceExecutor
from tinycluster.kernels.program import F32, Attention, Batch, Buffer, KVShape, Program, WriteKV

HEADS = (0, 0, 0, 1, 1)  # uneven groups, as an odd share of heads gives


@dataclass(frozen=True)
class Setting:
    head_dim: int
    block_tokens: int
    window: int | None = None

    @property
    def attention(self) -> Attention:
        return Attention("q", 0, self.head_dim, HEADS, self.head_dim**-0.5, self.window, "out")

    @property
    def program(self) -> Program:
        kv_width = 2 * self.head_dim
        widths = {"q": len(HEADS) * self.head_dim, "k": kv_width, "v": kv_width, "out": len(HEADS) * self.head_dim}
        return Program(
            ops=[WriteKV("k", "v", 0), self.attention],
            buffers={name: Buffer(width) for name, width in widths.items()},
            kv=KVShape(1, 2, self.head_dim),
            output="out",
        )


def batch_of(spans: list[tuple[int, int]], block_tokens: int, num_blocks: int, seed: int = 0) -> Batch:
    """Requests that compute positions first .. last - 1, over shuffled blocks that no two of them share."""
    order = np.random.default_rng(seed).permutation(num_blocks)
    tables = np.zeros((len(spans), max(-(-last // block_tokens) for _, last in spans)), np.int32)
    for r, (_, last) in enumerate(spans):
        need = -(-last // block_tokens)
        tables[r, :need], order = order[:need], order[need:]
    positions = np.concatenate([np.arange(*span) for span in spans]).astype(np.int32)
    row_start = np.cumsum([0] + [last - first for first, last in spans]).astype(np.int32)
    return Batch(np.zeros(len(positions), np.int32), positions, row_start, tables, np.zeros(0, np.int32))


class Native:
    """The two ops by their own faces."""

    def __init__(self, setting: Setting, cache: PagedCache, isa: str) -> None:
        self._cpu, self._layer, self._attention = Cpu(2, isa), cache.layers[0], setting.attention

    def run(self, batch: Batch, inputs: dict[str, F32]) -> F32:
        out, step = np.full_like(inputs["q"], np.nan), (batch.positions, batch.row_start, batch.block_tables)
        self._cpu.write_kv(inputs["k"], inputs["v"], self._layer, *step)
        op = self._attention
        self._cpu.attention(inputs["q"], self._layer, *step, op.kv_head_of_head, op.scale, op.window or 0, out)
        return out


def run(executor: Native | ReferenceExecutor, batch: Batch, inputs: dict[str, F32]) -> F32:
    """Runs the two ops on given q, k and v."""
    if isinstance(executor, Native):
        return executor.run(batch, inputs)
    buffers = {name: array.copy() for name, array in inputs.items()}
    buffers["out"] = np.full_like(inputs["q"], np.nan)
    for step, op in executor._steps:
        step(op, buffers, batch)
    return buffers["out"]


def executors(setting: Setting, num_blocks: int, isa: str) -> tuple[Native, ReferenceExecutor]:
    rope = np.zeros((1, setting.head_dim // 2), np.float32), np.zeros((1, setting.head_dim // 2), np.float32)
    caches = [PagedCache(setting.program.kv, num_blocks, setting.block_tokens) for _ in range(2)]
    for paged in caches:  # what other requests left behind must not matter
        paged.keys[0][:] = 255
        paged.values[0][:] = 255
    return Native(setting, caches[0], isa), ReferenceExecutor(setting.program, {}, rope, caches[1], None)


def inputs_for(batch: Batch, head_dim: int, seed: int = 0) -> dict[str, F32]:
    rng = np.random.default_rng(seed)
    sizes = {"q": len(HEADS), "k": 2, "v": 2}
    return {n: rng.standard_normal((batch.num_tokens, s * head_dim)).astype(np.float32) for n, s in sizes.items()}


SPANS = [(0, 67), (0, 1), (0, 16), (0, 130)]


@cache
def defined_attention(setting: Setting) -> F32:
    batch = batch_of(SPANS, setting.block_tokens, 40)
    return run(executors(setting, 40, "auto")[1], batch, inputs_for(batch, setting.head_dim))


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize(
    "setting",
    [
        Setting(16, 16),
        Setting(24, 16),
        Setting(64, 32),
        Setting(40, 128),
        Setting(16, 64, window=1),
        Setting(32, 16, 70),
    ],
    ids=str,
)
def test_attention_has_the_bits_of_the_definition(isa: str, setting: Setting) -> None:
    batch = batch_of(SPANS, setting.block_tokens, 40)
    got = run(executors(setting, 40, isa)[0], batch, inputs_for(batch, setting.head_dim))
    np.testing.assert_array_equal(got.view(np.int32), defined_attention(setting).view(np.int32))


def exact_attention(inputs: dict[str, F32], first: int, last: int, setting: Setting) -> np.ndarray:
    """Float64 softmax attention of one request whose rows are first .. last - 1 of the inputs."""
    C = setting.head_dim
    q, k, v = (inputs[n][first:last].astype(np.float64).reshape(last - first, -1, C) for n in "qkv")
    rows, out = np.arange(last - first), np.empty_like(q)
    seen = rows[:, None] >= rows[None, :]
    if setting.window:
        seen &= rows[:, None] - rows[None, :] < setting.window
    for head, kv_head in enumerate(HEADS):
        scores = np.where(seen, q[:, head] @ k[:, kv_head].T * C**-0.5, -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[:, kv_head]
    return out.reshape(last - first, -1)


@pytest.mark.parametrize("setting", [Setting(64, 16), Setting(24, 32, window=65)], ids=str)
def test_attention_is_close_to_float64_softmax(setting: Setting) -> None:
    """Scores carry gamma_C of relative noise, weights that noise through exp, sums gamma_P (Higham 2002, sec. 3.1)."""
    batch = batch_of([(0, 150)], setting.block_tokens, 12)
    inputs = inputs_for(batch, setting.head_dim, seed=3)
    got = run(executors(setting, 12, "auto")[0], batch, inputs)
    score_noise = setting.head_dim**-0.5 * setting.head_dim * 2.0**-24 * 4**2 * setting.head_dim**0.5
    bound = (2 * score_noise + (150 + 16) * 2.0**-24) * np.abs(inputs["v"]).max()
    assert np.abs(got - exact_attention(inputs, 0, 150, setting)).max() <= bound
    shifted = Setting(setting.head_dim, setting.block_tokens, (setting.window or 150) - 1)  # a shifted mask must fail
    assert np.abs(got - exact_attention(inputs, 0, 150, shifted)).max() > bound


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_and_neighbours_do_not_change_a_row(chunk: int) -> None:
    setting = Setting(32, 16)
    whole = batch_of([(0, 131), (0, 20)], 16, 20)
    inputs = inputs_for(whole, 32)
    expected = run(executors(setting, 20, "auto")[0], whole, inputs)[:131]
    native, _ = executors(setting, 20, "auto")
    for first in range(0, 131, chunk):
        last = min(131, first + chunk)
        part = batch_of([(first, last)], 16, 20, seed=4)
        part = Batch(part.tokens, part.positions, part.row_start, whole.block_tables[:1], part.output_rows)
        got = run(native, part, {name: np.ascontiguousarray(x[first:last]) for name, x in inputs.items()})
        np.testing.assert_array_equal(got, expected[first:last])


def test_bad_tables_are_refused() -> None:
    setting = Setting(16, 16)
    native, _ = executors(setting, 4, "auto")
    good = batch_of([(0, 20)], 16, 4)
    inputs = inputs_for(good, 16)
    beyond = Batch(good.tokens, good.positions, good.row_start, good.block_tables + 4, good.output_rows)
    with pytest.raises(ValueError, match="does not exist"):
        run(native, beyond, inputs)
    short = Batch(good.tokens, good.positions, good.row_start, good.block_tables[:, :1].copy(), good.output_rows)
    with pytest.raises(ValueError, match="too short"):
        run(native, short, inputs)
    jump = Batch(good.tokens, good.positions * 2, good.row_start, good.block_tables, good.output_rows)
    with pytest.raises(ValueError, match="consecutive"):
        run(native, jump, inputs)


def test_unknown_instruction_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="instruction set"):
        Cpu(1, "mmx")
