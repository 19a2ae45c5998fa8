"""Our Programs against what Hugging Face transformers computed (goldens.npz, made by generate_goldens.py).

The Programs are interpreted in float64 (oracle.py); the goldens are float32, so they may differ by what float32
rounding explains, `float32_bound`, and by nothing else: each mutation of a Program below exceeds it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest

from tests.parity.golden import POSITIONS, PROMPT, SEED, SEQUENCE, read_golden
from tests.parity.oracle import F64, Rank, RopeTable, Stages, float32_bound, interpret
from tests.parity.random_model import CASES, random_weights
from tinycluster.engine.models.registry import Stage, build
from tinycluster.engine.models.spec import ModelConfig
from tinycluster.engine.rope import inverse_frequencies, rope_table
from tinycluster.kernels.program import AddFixed, Attention, Linear, Op, RmsNorm, Rope, SwiGlu
from tinycluster.parallel.mesh import deal_layers
from tinycluster.parallel.units import Shares

ROWS = list(POSITIONS)


def shards(config: ModelConfig, weights: Sequence[float] = (1.0,), num_stages: int = 1) -> Stages:
    """Every rank of a mesh with its Program and its slices of the random weights."""
    whole = random_weights(config, SEED)
    stages = []
    for index, layers in enumerate(deal_layers(config.num_hidden_layers, num_stages, head_cost=0.5)):
        stage = Stage(layers, is_first=index == 0, is_last=index == num_stages - 1)
        ranks = []
        for rank in range(len(weights)):
            shares = Shares(rank, tuple(weights), config.num_attention_heads, config.num_key_value_heads)
            program, specs = build(config, stage, shares)
            parts = {spec.name: [slice(part.start, part.stop) for part in spec.slices(shares)] for spec in specs}
            ranks.append(Rank(program, {name: whole[name][tuple(part)] for name, part in parts.items()}))
        stages.append(ranks)
    return stages


@cache
def bound_of(case: str) -> F64:
    config = CASES[case]
    return float32_bound(lambda: shards(config), read_golden(case).tokens.tolist(), rope_of(config))


@cache
def logits_of(case: str) -> F64:
    config = CASES[case]
    return interpret(shards(config), read_golden(case).tokens.tolist(), rope_of(config))


def rope_of(config: ModelConfig) -> RopeTable:
    return RopeTable.of(rope_table(config, SEQUENCE), inverse_frequencies(config, SEQUENCE))


def mutated(config: ModelConfig, mutate: Callable[[Op], Op | None]) -> Stages:
    stages = shards(config)
    program = stages[0][0].program
    ops = [mutate(op) for op in program.ops]
    assert ops != program.ops, "the mutation found nothing to break"
    program.ops = [op for op in ops if op is not None]
    return stages


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers_up_to_float32_rounding(case: str) -> None:
    golden, bound = read_golden(case), bound_of(case)
    assert np.all(np.abs(logits_of(case)[ROWS] - golden.logits) <= bound[ROWS])
    assert bound.max() < 2e-3 * golden.logits.std(), "a bound this wide would let mistakes pass"


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_those_of_transformers(case: str) -> None:
    assert logits_of(case)[PROMPT - 1 : -1].argmax(axis=1).tolist() == read_golden(case).continuation


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("weights", "num_stages"),
    [((1, 1), 1), ((1, 1, 1), 2), ((1, 1, 1, 1, 1), 1), ((3, 1), 2), ((1,), 3), ((5, 1, 2), 1), ((1,) * 11, 1)],
)
def test_any_mesh_computes_what_one_rank_computes(case: str, weights: tuple[float, ...], num_stages: int) -> None:
    config, tokens = CASES[case], read_golden(case).tokens.tolist()
    meshed = interpret(shards(config, weights, num_stages), tokens, rope_of(config))
    # Only the order of float64 sums differs: the same bound, for a unit roundoff of 2⁻⁵³ instead of 2⁻²⁴.
    assert np.all(np.abs(meshed - logits_of(case)) <= bound_of(case) * 2.0**-29)


def _drop_bias(op: Op) -> Op:
    return dataclasses.replace(op, bias=None) if isinstance(op, Linear | AddFixed) else op


def _drop_bias_of(kind: type[Op], ending: str) -> Callable[[Op], Op]:
    def mutate(op: Op) -> Op:
        is_hit = isinstance(op, Linear | AddFixed) and isinstance(op, kind) and (op.bias or "").endswith(ending)
        return _drop_bias(op) if is_hit else op

    return mutate


def _shift_window(op: Op) -> Op:
    if not isinstance(op, Attention) or op.window is None:
        return op
    return dataclasses.replace(op, window=op.window + 1)


def _ignore_window(op: Op) -> Op:
    return dataclasses.replace(op, window=None) if isinstance(op, Attention) else op


def _change_scale(op: Op) -> Op:
    return dataclasses.replace(op, scale=op.scale * 1.001) if isinstance(op, Attention) else op


def _swap_kv_heads(op: Op) -> Op:
    if not isinstance(op, Attention):
        return op
    return dataclasses.replace(op, kv_head_of_head=op.kv_head_of_head[::-1])


def _swap_gate_and_up(op: Op) -> Op:
    return SwiGlu(op.up, op.gate, op.out) if isinstance(op, SwiGlu) else op


def _drop_rope_of_keys(op: Op) -> Op | None:
    return None if isinstance(op, Rope) and op.x.startswith("k") else op


def _use_key_norm_for_queries(op: Op) -> Op:
    if not isinstance(op, RmsNorm):
        return op
    return dataclasses.replace(op, weight=op.weight.replace("q_norm", "k_norm"))


def _change_eps(op: Op) -> Op:
    return dataclasses.replace(op, eps=op.eps + 1e-2) if isinstance(op, RmsNorm) else op


MUTATIONS = [
    ("llama_biases", _drop_bias_of(Linear, "self_attn.k_proj.bias")),
    ("llama_biases", _drop_bias_of(AddFixed, "self_attn.o_proj.bias")),
    ("llama_biases", _drop_bias_of(Linear, "up_proj.bias")),
    ("llama_biases", _drop_bias_of(AddFixed, "down_proj.bias")),
    ("qwen2_untied", _drop_bias_of(Linear, "self_attn.v_proj.bias")),
    ("mistral_window", _shift_window),
    ("mistral_window", _ignore_window),
    ("qwen2_windows", _shift_window),
    ("qwen3_biases_windows", _ignore_window),
    ("llama_seven_heads", _change_scale),
    ("llama_nine_heads_tied", _swap_kv_heads),
    ("mistral_no_window", _swap_gate_and_up),
    ("qwen2_tied", _drop_rope_of_keys),
    ("qwen3_tied", _use_key_norm_for_queries),
    ("qwen3_tied", _change_eps),
]


@pytest.mark.parametrize(("case", "mutate"), MUTATIONS)
def test_a_broken_program_exceeds_the_bound(case: str, mutate: Callable[[Op], Op | None]) -> None:
    config, golden = CASES[case], read_golden(case)
    bound = bound_of(case)
    logits = interpret(mutated(config, mutate), golden.tokens.tolist(), rope_of(config))
    assert np.any(np.abs(logits[ROWS] - golden.logits) > 2 * bound[ROWS])


def _turned_backward(rope: RopeTable) -> RopeTable:
    return dataclasses.replace(rope, sin=-rope.sin)


def _one_position_late(rope: RopeTable) -> RopeTable:
    """Shifts only the lower half of the positions: shifting all of them changes no relative distance."""
    rows = np.maximum(np.arange(len(rope.cos)), len(rope.cos) // 2)
    return dataclasses.replace(rope, cos=rope.cos[rows], sin=rope.sin[rows])


def _without_attention_factor(rope: RopeTable) -> RopeTable:
    factor = rope.cos[0, 0]
    return dataclasses.replace(rope, cos=rope.cos / factor, sin=rope.sin / factor)


@pytest.mark.parametrize(
    ("case", "mutate"),
    [
        ("llama_seven_heads", _one_position_late),
        ("llama_yarn", _without_attention_factor),
        ("llama_yarn_mscale", _without_attention_factor),
        ("qwen3_tied", _turned_backward),
    ],
)
def test_a_broken_rope_table_exceeds_the_bound(case: str, mutate: Callable[[RopeTable], RopeTable]) -> None:
    config, golden = CASES[case], read_golden(case)
    bound = bound_of(case)
    logits = interpret(shards(config), golden.tokens.tolist(), mutate(rope_of(config)))
    assert np.any(np.abs(logits[ROWS] - golden.logits) > 2 * bound[ROWS])


@pytest.mark.parametrize("case", ["llama_linear", "llama_dynamic", "llama_llama3", "llama_yarn"])
def test_ignoring_rope_scaling_exceeds_the_bound(case: str) -> None:
    config, golden = CASES[case], read_golden(case)
    plain = dataclasses.replace(config, rope_scaling=ModelConfig.rope_scaling)
    bound = bound_of(case)
    logits = interpret(shards(plain), golden.tokens.tolist(), rope_of(plain))
    assert np.any(np.abs(logits[ROWS] - golden.logits) > 2 * bound[ROWS])


def test_a_rank_that_lost_a_unit_exceeds_the_bound() -> None:
    config, golden = CASES["qwen2_untied"], read_golden("qwen2_untied")
    stages = shards(config, (1, 1))
    weights = stages[0][1].weights
    name = "model.layers.1.mlp.down_proj.weight"
    stages[0][1].weights = {**weights, name: np.zeros_like(weights[name])}
    bound = bound_of("qwen2_untied")
    logits = interpret(stages, golden.tokens.tolist(), rope_of(config))
    assert np.any(np.abs(logits[ROWS] - golden.logits) > 2 * bound[ROWS])
