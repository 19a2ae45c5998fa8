from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinycluster.kernels.program import (
    AddFixed,
    AllGather,
    AllReduce,
    Attention,
    Buffer,
    Embedding,
    KVShape,
    Linear,
    LinearFixed,
    RmsNorm,
    WriteKV,
)
from tinycluster.parallel.layers import (
    ColumnParallelLinear,
    ProgramBuilder,
    RowParallelLinear,
    VocabParallelEmbedding,
    VocabParallelHead,
    partial_limit,
)
from tinycluster.parallel.units import Shares, Split, WeightSpec

HEADS = Split("head", 9 * 4, 4)
KV_HEADS = Split("kv_head", 3 * 4, 4)
MLP = Split("mlp", 200, 64)


def builders(weights: tuple[float, ...]) -> list[ProgramBuilder]:
    return [ProgramBuilder(Shares(rank, weights, 9, 3), num_layers=1, head_dim=4) for rank in range(len(weights))]


meshes = st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=1, max_size=12).map(tuple)


@settings(deadline=None)
@given(st.integers(1, 2**20))
def test_partials_below_the_limit_cannot_overflow_and_the_limit_is_the_largest_power_of_two(num_units: int) -> None:
    limit = partial_limit(num_units)
    assert np.log2(limit).is_integer()
    assert limit * 2 * num_units <= 2**31 < 2 * limit * 2 * num_units


@settings(deadline=None)
@given(meshes)
def test_column_parallel_ranks_hold_every_row_once_and_neighbours_share_key_value_heads(
    weights: tuple[float, ...],
) -> None:
    rows: dict[str, list[int]] = {"q": [], "k": []}
    for b in builders(weights):
        ColumnParallelLinear("q", 7, HEADS, bias=True)(b, "x", out="q")
        ColumnParallelLinear("k", 7, KV_HEADS)(b, "x", out="k")
        program, specs = b.finish()
        assert program.ops == [Linear("x", "q.weight", "q", "q.bias"), Linear("x", "k.weight", "k")]
        for spec in specs:
            assert len(spec.slices(b.shares)[0]) == program.buffers[spec.name[0]].width
        rows["q"] += specs[0].slices(b.shares)[0]
        rows["k"] += specs[2].slices(b.shares)[0]
    assert rows["q"] == list(range(36))
    assert sorted(set(rows["k"])) == list(range(12))


@settings(deadline=None)
@given(meshes)
def test_row_parallel_ranks_hold_every_column_once_and_the_bias_is_added_after_the_sum(
    weights: tuple[float, ...],
) -> None:
    columns: list[int] = []
    for b in builders(weights):
        RowParallelLinear("down", MLP, 5, bias=True)(b, "x", residual="hidden")
        program, (weight, bias) = b.finish()
        reduce = [AllReduce("fixed")] if len(weights) > 1 else []
        linear = LinearFixed("x", "down.weight", "fixed", unit=64, limit=2.0**28)
        assert program.ops == [linear, *reduce, AddFixed("hidden", "fixed", "down.bias")]
        assert program.buffers["fixed"] == Buffer(5, "tokens", "int64")
        assert bias.slices(b.shares) == (range(5),)
        columns += weight.slices(b.shares)[1]
    assert columns == list(range(200))


@settings(deadline=None)
@given(meshes)
def test_vocabulary_rows_are_held_once_and_a_tied_head_is_one_weight(weights: tuple[float, ...]) -> None:
    rows: list[int] = []
    for b in builders(weights):
        VocabParallelEmbedding("embed", 307, 8)(b, out="hidden")
        VocabParallelHead("embed", 307, 8)(b, "hidden", out="logits")
        program, specs = b.finish("logits")
        assert [spec.name for spec in specs] == ["embed"]
        held = specs[0].slices(b.shares)[0]
        embedding, *_, last = program.ops
        assert isinstance(embedding, Embedding)
        assert embedding.first_row == held.start
        assert program.buffers["logits"] == Buffer(307, "outputs")
        if len(weights) > 1:
            assert isinstance(last, AllGather)
            assert last.widths[b.shares.rank] == len(held) == program.buffers["logits_part"].width
            assert sum(last.widths) == 307
        rows += held
    assert rows == list(range(307))


def test_a_rank_without_units_gets_empty_buffers() -> None:
    b = builders((1,) * 12)[-1]
    ColumnParallelLinear("q", 7, HEADS)(b, "x", out="q")
    ColumnParallelLinear("k", 7, KV_HEADS)(b, "x", out="k")
    ColumnParallelLinear("up", 7, MLP)(b, "x", out="up")
    b.attention("q", "k", "k", layer=0, window=None, out="attended")
    program, _ = b.finish()
    assert {name: buffer.width for name, buffer in program.buffers.items()} == dict.fromkeys(program.buffers, 0)
    assert program.kv == KVShape(1, 0, 4)


def test_attention_reads_the_ranks_own_key_value_heads() -> None:
    first, second = builders((1, 1))
    for b, heads in ((first, (0, 0, 0, 1, 1)), (second, (0, 1, 1, 1))):
        ColumnParallelLinear("q", 7, HEADS)(b, "x", out="q")
        b.attention("q", "k", "v", layer=0, window=5, out="attended")
        program, _ = b.finish()
        assert program.ops[1:] == [WriteKV("k", "v", 0), Attention("q", 0, 4, heads, 0.5, 5, "attended")]
        assert program.kv == KVShape(1, 2, 4)


def test_a_norm_over_heads_has_one_weight_of_a_heads_width() -> None:
    b = builders((1,))[0]
    ColumnParallelLinear("q", 7, HEADS)(b, "x", out="q")
    b.rms_norm("q", "q_norm.weight", 1e-6, dim=4, out="q_normed")
    program, specs = b.finish()
    assert program.ops[-1] == RmsNorm("q", "q_norm.weight", 1e-6, 4, "q_normed")
    assert specs[-1] == WeightSpec("q_norm.weight", (4,))


def test_a_buffer_keeps_its_shape_and_a_weight_its_cut() -> None:
    b = builders((1,))[0]
    b.buffer("x", 5)
    with pytest.raises(AssertionError, match="buffer x"):
        b.buffer("x", 6)
    b.weight(WeightSpec("w", (200, 5), 0, MLP))
    with pytest.raises(AssertionError, match="cut in two ways"):
        b.weight(WeightSpec("w", (200, 5)))
