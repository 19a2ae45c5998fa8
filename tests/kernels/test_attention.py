"""Paged attention: native against the numpy definition (==), and the definition against float64 softmax."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from tinycluster.kernels import reference
from tinycluster.kernels._cpu import Cpu, supported_isas
from tinycluster.kernels.executor import ReferenceExecutor
from tinycluster.kernels.paged_cache import KVDtype, PagedCache
from tinycluster.kernels.program import F32, Attention, Batch, Buffer, KVShape, Program, WriteKV

HEADS = (0, 0, 0, 1, 1)  # uneven groups, as an odd share of heads gives


@dataclass(frozen=True)
class Setting:
    head_dim: int
    block_tokens: int
    window: int | None = None
    dtype: KVDtype = "f32"

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


def part_of(batch: Batch, begin: int, end: int) -> Batch:
    """Tokens begin .. end - 1 of a batch of one request."""
    row_start = np.array([0, end - begin], np.int32)
    return Batch(batch.tokens[begin:end], batch.positions[begin:end], row_start, batch.block_tables, batch.output_rows)


class Native:
    """The two ops by their own faces."""

    def __init__(self, setting: Setting, cache: PagedCache, isa: str, num_threads: int = 2) -> None:
        self._cpu, self._layer, self._attention = Cpu(num_threads, isa), cache.layers[0], setting.attention

    def write(self, batch: Batch, inputs: dict[str, F32]) -> None:
        step = batch.positions, batch.row_start, batch.block_tables
        self._cpu.write_kv(inputs["k"], inputs["v"], self._layer, *step)

    def run(self, batch: Batch, inputs: dict[str, F32]) -> F32:
        self.write(batch, inputs)
        out, step = np.full_like(inputs["q"], np.nan), (batch.positions, batch.row_start, batch.block_tables)
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


def executors(setting: Setting, num_blocks: int, isa: str, num_threads: int = 2) -> tuple[Native, ReferenceExecutor]:
    rope = np.zeros((1, setting.head_dim // 2), np.float32), np.zeros((1, setting.head_dim // 2), np.float32)
    caches = [PagedCache(setting.program.kv, num_blocks, setting.block_tokens, setting.dtype) for _ in range(2)]
    for paged in caches:  # what other requests left behind must not matter
        paged.keys[0][:] = 255
        paged.values[0][:] = 255
    native = Native(setting, caches[0], isa, num_threads)
    return native, ReferenceExecutor(setting.program, {}, rope, caches[1], None)


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
        Setting(64, 16, dtype="bf16"),
        Setting(40, 32, 65, dtype="bf16"),
        Setting(64, 16, dtype="q8"),
        Setting(24, 16, dtype="q8"),
        Setting(80, 32, 65, dtype="q8"),
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


def last_rows_defined(setting: Setting, inputs: dict[str, F32], rows: int) -> F32:
    """The definition of the last `rows` tokens of the one request that the inputs are."""
    P, C = inputs["k"].shape[0], setting.head_dim
    heads = [[head for head, of in enumerate(HEADS) if of == kv_head] for kv_head in (0, 1)]
    q_THC = inputs["q"].reshape(P, len(HEADS), C)
    out_THC = np.empty_like(q_THC[-rows:])
    for kv_head, its_heads in enumerate(heads):
        k_PC, v_PC = (
            reference.round_kv(inputs[name].reshape(P, 2, C)[:, kv_head], setting.dtype) for name in ("k", "v")
        )
        for t in range(P - rows, P):
            first = 0 if setting.window is None else max(0, t + 1 - setting.window)
            q_HC, scale = q_THC[t, its_heads], setting.attention.scale
            out_THC[t - P, its_heads] = reference.attend(q_HC, k_PC[: t + 1], v_PC[: t + 1], first, scale)
    return out_THC.reshape(rows, -1)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "q8"])
@pytest.mark.parametrize(
    ("length", "window"),
    [(256, None), (257, None), (258, None), (773, None), (773, 300), (773, 256), (773, 20)],
)
def test_segments_have_the_bits_of_the_definition_however_many_threads_share_them(
    length: int, window: int | None, dtype: KVDtype
) -> None:
    setting, rows = Setting(16, 16, window, dtype), 3
    num_blocks = -(-length // 16)
    whole = batch_of([(0, length)], 16, num_blocks)
    inputs = inputs_for(whole, 16)
    expected = last_rows_defined(setting, inputs, rows)
    for isa in supported_isas():
        for num_threads in (1, 2, 5):
            native, _ = executors(setting, num_blocks, isa, num_threads)
            native.write(whole, inputs)
            for begin in (length - 40, *range(length - rows, length)):  # a chunk, then as decode asks for it
                end = length if begin == length - 40 else begin + 1
                some = {name: x[begin:end] for name, x in inputs.items()}
                got = native.run(part_of(whole, begin, end), some)
                seen = slice(max(begin - length, -rows), end - length or None)
                np.testing.assert_array_equal(got[-rows:], expected[seen])


@pytest.mark.parametrize("dtype", ["f32", "bf16", "q8"])
@pytest.mark.parametrize("window", [None, 200])
def test_small_chunks_of_any_size_have_the_bits_of_the_definition(window: int | None, dtype: KVDtype) -> None:
    """With two and with three heads of a KV head these sizes make few rows and many, in all groups that run together.
    They end inside a block; of those before it all rows see all."""
    setting, length, sizes = Setting(48, 16, window, dtype), 330, (2, 3, 4, 5, 7, 8, 13, 18)
    whole = batch_of([(0, length)], 16, 21)
    inputs = inputs_for(whole, 48)
    expected = last_rows_defined(setting, inputs, max(sizes))
    for isa in supported_isas():
        for num_threads in (1, 2):
            native, _ = executors(setting, 21, isa, num_threads)
            native.write(whole, inputs)
            for size in sizes:
                chunk = {name: x[length - size :] for name, x in inputs.items()}
                got = native.run(part_of(whole, length - size, length), chunk)
                np.testing.assert_array_equal(got.view(np.int32), expected[-size:].view(np.int32))


def test_a_segment_that_begins_elsewhere_has_other_bits() -> None:
    """So the test above can fail: the same scores, merged at another place."""
    whole = batch_of([(0, 300)], 16, 19)
    inputs = inputs_for(whole, 16)
    rolled = {name: np.concatenate([x[:1], x]) for name, x in inputs.items()}
    setting = Setting(16, 16, window=300)
    assert (last_rows_defined(setting, inputs, 1) != last_rows_defined(setting, rolled, 1)).any()


@pytest.mark.parametrize("columns", [1, 24, 32, 33, 64])
def test_rounded_keys_are_within_half_a_step_of_themselves(columns: int) -> None:
    x_RC = np.random.default_rng(columns).standard_normal((50, columns)).astype(np.float32)
    bf16, q8 = reference.round_kv(x_RC, "bf16"), reference.round_kv(x_RC, "q8")
    assert (np.abs(bf16 - x_RC) <= np.abs(x_RC) * 2.0**-8).all()
    assert (bf16 != x_RC).any()
    for start in range(0, columns, 32):
        group = slice(start, start + 32)
        step = np.abs(x_RC[:, group]).max(axis=1, keepdims=True) / 127
        error = np.abs(q8[:, group] - x_RC[:, group])
        # Half a step, and the roundings of inverse, product and scale of up to 127 steps.
        assert (error <= step * (0.5 + 127 * 4 * 2.0**-24)).all()
        assert (error > step * 0.4).any() == (error.shape[1] > 1)  # the largest of a group is a code
    np.testing.assert_array_equal(reference.round_kv(x_RC, "f32"), x_RC)


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("dtype", ["bf16", "q8"])
def test_numbers_at_the_edges_are_stored_as_defined(isa: str, dtype: KVDtype) -> None:
    """Ties, zeros, the smallest and the largest numbers; a query sees one position only, so it reads its values."""
    setting = Setting(32, 16, window=1, dtype=dtype)
    batch = batch_of([(0, 9)], 16, 1)
    inputs = inputs_for(batch, 32)
    for row, factor in enumerate([0.0, 1e-45, 1e-38, 1e-31, 1e-30, 2e-30, 1.0, 3e37]):
        inputs["v"][row] *= np.float32(factor)
    inputs["v"][8] = 1.0
    inputs["v"][8, 1:32:2] = np.float32(1 + 2.0**-8)  # between two bfloat16
    inputs["v"][8, 32:] = np.arange(32) - 15.5  # between two codes of a scale of 1
    inputs["v"][8, 32] = 127
    values = reference.round_kv(inputs["v"].reshape(9, 2, 32).reshape(18, 32), dtype).reshape(9, 2, 32)
    got = run(executors(setting, 1, isa)[0], batch, inputs).reshape(9, len(HEADS), 32)
    for head, kv_head in enumerate(HEADS):
        np.testing.assert_array_equal(got[:, head], values[:, kv_head])


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("dtype", ["f32", "bf16", "q8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_does_not_become_a_number(isa: str, dtype: KVDtype, value: float) -> None:
    setting = Setting(32, 16, window=1, dtype=dtype)
    batch = batch_of([(0, 2)], 16, 1)
    inputs = inputs_for(batch, 32)
    inputs["v"][0, 5] = value
    got = run(executors(setting, 1, isa)[0], batch, inputs).reshape(2, len(HEADS), 32)
    assert not np.isfinite(got[0, :3, 5]).any()
    assert np.isfinite(got[0, 3:]).all()
    assert np.isfinite(got[1]).all()


def test_formats_need_the_memory_that_they_say() -> None:
    shape = KVShape(3, 2, 40)
    row_bytes: dict[KVDtype, int] = {"f32": 4 * (40 + 48), "bf16": 2 * (40 + 48), "q8": 40 + 48 + 2 * 2 * 4}
    for dtype, num_bytes in row_bytes.items():
        paged = PagedCache(shape, 5, 32, dtype)
        assert PagedCache.bytes_per_block(shape, 32, dtype) == 3 * 2 * 32 * num_bytes
        assert sum(x.nbytes for x in [*paged.keys, *paged.values]) == 5 * 3 * 2 * 32 * num_bytes


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
