"""Passes over a Program: the same bits with and without every one of them; and buffers that share memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from tests.parity.golden import SEED
from tests.parity.random_model import CASES, random_weights
from tinycluster.engine.models.registry import Stage, build, weight_specs
from tinycluster.engine.models.spec import ModelConfig
from tinycluster.engine.rope import rope_table
from tinycluster.kernels import program as p
from tinycluster.kernels.executor import NativeExecutor, PagedCache, ReferenceExecutor
from tinycluster.kernels.formats import DenseTensor, Format
from tinycluster.kernels.memory_plan import lifetimes, place, row_bytes
from tinycluster.kernels.packing import PackedWeight, pack, prepare
from tinycluster.kernels.passes import (
    PASSES,
    Activations,
    MatrixShape,
    Pass,
    deal_rows,
    group_rows,
    optimize,
    round_activations,
    walk,
)
from tinycluster.kernels.program import F32, Batch, Program, sampled_rows
from tinycluster.parallel.local import LocalGroup
from tinycluster.parallel.pipeline import StageCollectives
from tinycluster.parallel.units import Shares

POSITIONS = 128
BLOCKS = (2, 0, 3, 7, 4, 6, 1, 5)
COUNTS = (11, 1, 6)
CASE_NAMES = ("llama_biases", "qwen3_biases_windows")


def program_of(config: ModelConfig, activations: Activations = "int16") -> Program:
    shares = Shares(0, (1.0,), config.num_attention_heads, config.num_key_value_heads)
    return round_activations(build(config, Stage.whole(config), shares)[0], activations)


def weights_of(config: ModelConfig, format: Format) -> dict[str, PackedWeight | F32]:
    units = {spec.name: spec.split.unit if spec.split_dim == 1 else None for spec in weight_specs(config) if spec.split}
    return {
        name: pack(DenseTensor("f32", w), unit=units.get(name), format=format) if w.ndim == 2 else w
        for name, w in random_weights(config, SEED).items()
    }


def shapes_of(weights: dict[str, PackedWeight | F32]) -> dict[str, MatrixShape]:
    matrices = {name: w for name, w in weights.items() if isinstance(w, PackedWeight)}
    return {name: MatrixShape(w.format, *w.shape, w.unit) for name, w in matrices.items()}


def logits(
    config: ModelConfig,
    weights: dict[str, PackedWeight | F32],
    passes: Sequence[Pass],
    threads: int,
    activations: Activations = "int16",
    counts: Sequence[int] = COUNTS,
) -> F32:
    program = program_of(config, activations)
    rope, cache = rope_table(config, POSITIONS), PagedCache(program.kv, len(BLOCKS), 16)
    return logits_of(NativeExecutor(program, weights, rope, cache, None, threads, passes=passes), config, counts)


def logits_of(
    executor: NativeExecutor | ReferenceExecutor,
    config: ModelConfig,
    counts: Sequence[int] = COUNTS,
    wants_all_logits: bool = True,
) -> F32:
    """Of every position, in steps of so many tokens."""
    found, start = [], 0
    for count in counts:
        tokens, positions = (np.arange(start, start + count, dtype=np.int32) for _ in range(2))
        step = executor.run(
            Batch(
                tokens=tokens * 7 % config.vocab_size,
                positions=positions,
                row_start=np.array([0, count], np.int32),
                block_tables=np.array([BLOCKS], np.int32),
                output_rows=np.arange(count, dtype=np.int32),
                wants_all_logits=wants_all_logits,
            )
        )
        assert step is not None
        found.append(step.copy())
        start += count
    return np.concatenate(found)


@pytest.mark.parametrize("case", CASE_NAMES)
@pytest.mark.parametrize(
    ("format", "activations"), [("f32", "int16"), ("q8", "int16"), ("q8", "mixed"), ("q4", "mixed"), ("q4", "int8")]
)
def test_every_pass_leaves_the_bits_as_they_are(case: str, format: Format, activations: Activations) -> None:
    config = CASES[case]
    weights = weights_of(config, format)
    plain = logits(config, weights, (), 1, activations)
    assert np.isfinite(plain).all()
    for passes in (*((one,) for one in PASSES), PASSES, PASSES[1:], PASSES[:3]):
        names = [one.__name__ for one in passes]
        np.testing.assert_array_equal(logits(config, weights, passes, 2, activations), plain, err_msg=str(names))


def logits_of_ranks(
    config: ModelConfig,
    shares: Sequence[float],
    passes: Sequence[Pass],
    counts: Sequence[int],
    wants_all_logits: bool = True,
) -> list[F32]:
    """Of every tensor rank, q8 with mixed activations."""
    group, whole = LocalGroup(len(shares)), random_weights(config, SEED)

    def rank_logits(rank: int) -> F32:
        mine = Shares(rank, tuple(shares), config.num_attention_heads, config.num_key_value_heads)
        program, specs = build(config, Stage.whole(config), mine)
        weights: dict[str, PackedWeight | F32] = {}
        for spec in specs:
            part = np.ascontiguousarray(whole[spec.name][np.ix_(*spec.slices(mine))])
            unit = spec.split.unit if spec.split is not None and spec.split_dim == 1 else None
            weights[spec.name] = pack(DenseTensor("f32", part), unit=unit, format="q8") if part.ndim == 2 else part
        collectives = StageCollectives(group.communicator(rank), None, None)
        rope, cache = rope_table(config, POSITIONS), PagedCache(program.kv, len(BLOCKS), 16)
        executor = NativeExecutor(round_activations(program, "mixed"), weights, rope, cache, collectives, passes=passes)
        return logits_of(executor, config, counts, wants_all_logits)

    with ThreadPoolExecutor(len(shares)) as threads:
        return list(threads.map(rank_logits, range(len(shares))))


@pytest.mark.parametrize("case", CASE_NAMES)
@pytest.mark.parametrize("shares", [(1.0, 1.0), (2.0, 1.0, 1.0), (1.0,) * 5], ids=str)
def test_ranks_that_deal_rows_among_themselves_compute_the_same_bits(case: str, shares: tuple[float, ...]) -> None:
    config, counts = CASES[case], (90, 1, 7, 13, 4)  # more than a block of tokens, and too few to be dealt
    wanted = logits(config, weights_of(config, "q8"), (), 1, "mixed", counts)
    for passes in ((), (group_rows, deal_rows), PASSES, PASSES[:-1], PASSES[:-2]):
        for found in logits_of_ranks(config, shares, passes, counts):
            np.testing.assert_array_equal(found, wanted, err_msg=str([one.__name__ for one in passes]))


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_each_rank_has_the_logits_of_the_rows_that_it_samples(num_ranks: int) -> None:
    config, counts = CASES["llama_biases"], (70, 1, 7, 13, 2)
    starts = np.cumsum((0, *counts[:-1])).tolist()
    wanted = logits(config, weights_of(config, "q8"), (), 1, "mixed", counts)
    ranks = logits_of_ranks(config, (1.0,) * num_ranks, PASSES, counts, wants_all_logits=False)
    for start, count in zip(starts, counts, strict=True):
        dealt = [range(count)[sampled_rows(count, rank, num_ranks)] for rank in range(num_ranks)]
        assert [row for rows in dealt for row in rows] == list(range(count))
        for found, rows in zip(ranks, dealt, strict=True):
            mine = [start + row for row in rows]
            np.testing.assert_array_equal(found[mine], wanted[mine])


def test_of_what_ranks_deal_only_what_others_read_is_gathered() -> None:
    config = CASES["llama_biases"]
    shares = Shares(0, (1.0, 1.0), config.num_attention_heads, config.num_key_value_heads)
    program = round_activations(build(config, Stage.whole(config), shares)[0], "mixed")
    ops = optimize(program, shapes_of(weights_of(config, "q8"))).ops
    gathered = [op.x for op in walk(ops) if isinstance(op, p.GatherDealt)]
    # After attention the codes for gate and up, after the MLP those of the next layer; at the end the residual.
    assert gathered == ["normed.codes8", "normed.codes16", "normed.codes8", "hidden"]
    assert not any(isinstance(op, p.AllReduce) and op.x == "fixed" for op in walk(ops))
    blocks = [[type(part).__name__ for part in op.ops] for op in ops if isinstance(op, p.TokenBlocks)]
    assert blocks == [["LinearFixed", "ReduceScatter", "RowGroup", "GatherDealt"]] * 4


@pytest.mark.parametrize("activations", ["mixed", "int8"])
def test_fewer_bits_of_activations_are_those_of_the_definition(activations: Activations) -> None:
    config = replace(CASES["qwen3_tied"], intermediate_size=192)  # whole groups, which the definition does not pad
    program = program_of(config, activations)
    units = {spec.name: spec.split.unit if spec.split_dim == 1 else None for spec in weight_specs(config) if spec.split}
    plain = {
        name: prepare(DenseTensor("f32", w), unit=units.get(name), format="q8") if w.ndim == 2 else w
        for name, w in random_weights(config, SEED).items()
    }
    rope, cache = rope_table(config, POSITIONS), PagedCache(program.kv, len(BLOCKS), 16)
    wanted = logits_of(ReferenceExecutor(program, plain, rope, cache, None), config)
    weights = weights_of(config, "q8")
    np.testing.assert_array_equal(logits(config, weights, PASSES, 2, activations), wanted)
    assert (logits(config, weights, PASSES, 2) != wanted).any()


def test_mixed_activations_have_8_bits_for_gate_and_up_alone() -> None:
    def rounded(activations: Activations) -> set[str]:
        ops = program_of(CASES["qwen3_biases_windows"], activations).ops
        return {op.weight.split(".", 3)[-1] for op in ops if isinstance(op, p.Linear | p.LinearFixed) and op.bits == 8}

    assert rounded("int16") == set()
    assert rounded("mixed") == {"mlp.gate_proj.weight", "mlp.up_proj.weight"}
    assert rounded("int8") > rounded("mixed") | {"self_attn.v_proj.weight", "self_attn.o_proj.weight"}


@pytest.mark.parametrize("case", CASE_NAMES)
def test_a_pass_that_drops_an_op_is_noticed(case: str) -> None:
    def without_first_rope(program: Program, matrices: object) -> Program:
        first = next(op for op in program.ops if isinstance(op, p.Rope))
        return p.Program([op for op in program.ops if op is not first], program.buffers, program.kv, program.output)

    weights = weights_of(CASES[case], "f32")
    plain = logits(CASES[case], weights, (), 1)
    assert (logits(CASES[case], weights, (without_first_rope,), 1) != plain).any()


def test_a_layer_of_llama_becomes_seven_ops() -> None:
    config = CASES["llama_biases"]
    shapes = shapes_of(weights_of(config, "q8"))
    ops = optimize(program_of(config), shapes).ops
    layer = [type(op).__name__ for op in ops[:8]]
    assert layer == [
        "RowGroup",  # embedding, norm, quantization
        "Products",  # q, k, v
        "RowGroup",  # rope, rope, write to the cache
        "Attention",
        "RowGroup",  # quantization
        "LinearResidual",
        "RowGroup",  # norm, quantization
        "GateUp",
    ]
    assert not any(isinstance(op, p.SwiGlu | p.AddFixed | p.Linear) for op in walk(ops))


@pytest.mark.parametrize("passes", [(), PASSES], ids=["plain", "fused"])
def test_buffers_that_are_alive_together_do_not_share_memory(passes: Sequence[Pass]) -> None:
    config = CASES["qwen3_biases_windows"]
    program = optimize(program_of(config), shapes_of(weights_of(config, "q8")), passes)
    placement = place(program, max_tokens=64, max_outputs=8)
    alive, rows = lifetimes(program), {"tokens": 64, "outputs": 8}
    ends = {
        name: start + rows[program.buffers[name].rows] * row_bytes(program.buffers[name])
        for name, start in placement.offsets.items()
    }
    for a, start in placement.offsets.items():
        assert 0 <= start <= ends[a] <= placement.num_bytes
        for b in placement.offsets.keys() - {a}:
            if alive[a] & alive[b]:
                assert ends[a] <= placement.offsets[b] or ends[b] <= start, f"{a} and {b} overlap"
    apart = sum(ends[name] - placement.offsets[name] for name in ends)
    assert placement.num_bytes < 0.7 * apart
