from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity.random_model import CASES, NINE_HEADS
from tinycluster.engine.errors import CheckpointError
from tinycluster.engine.models.registry import Stage, build, weight_specs
from tinycluster.engine.models.spec import ModelConfig
from tinycluster.kernels.program import (
    AddFixed,
    AllGather,
    AllReduce,
    Attention,
    Linear,
    LinearFixed,
    Op,
    Program,
    Recv,
    Rope,
    Send,
    WriteKV,
)
from tinycluster.parallel.units import Shares

READS = ("x", "q", "k", "v", "gate", "up", "fixed")
IN_PLACE = (Rope, AddFixed, AllReduce)

configs = st.sampled_from(list(CASES.values()))
meshes = st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=1, max_size=12).map(tuple)


def shares_of(config: ModelConfig, rank: int = 0, weights: tuple[float, ...] = (1.0,)) -> Shares:
    return Shares(rank, weights, config.num_attention_heads, config.num_key_value_heads)


def whole(config: ModelConfig) -> Program:
    return build(config, Stage.whole(config), shares_of(config))[0]


def reads(op: Op) -> set[str]:
    return {getattr(op, name) for name in READS if hasattr(op, name)}


def writes(op: Op) -> set[str]:
    if isinstance(op, IN_PLACE):
        return {op.x}
    return {op.out} if hasattr(op, "out") else set()


@settings(deadline=None)
@given(configs, meshes, st.data())
def test_every_buffer_is_written_before_it_is_read_and_never_while_it_is_read(
    config: ModelConfig, weights: tuple[float, ...], data: st.DataObject
) -> None:
    shares = shares_of(config, data.draw(st.integers(0, len(weights) - 1)), weights)
    first = data.draw(st.integers(0, config.num_hidden_layers))
    is_first, is_last = data.draw(st.booleans()), data.draw(st.booleans())
    program, _ = build(config, Stage(range(first, config.num_hidden_layers), is_first, is_last), shares)
    written: set[str] = set()
    for op in program.ops:
        assert reads(op) <= written, op
        assert isinstance(op, IN_PLACE) or not reads(op) & writes(op), op
        written |= writes(op)
    assert written == program.buffers.keys()
    assert isinstance(program.ops[0], Recv) != is_first
    assert isinstance(program.ops[-1], Send) != is_last
    assert program.output == ("logits" if is_last else None)


@settings(deadline=None)
@given(configs, meshes, st.data())
def test_a_program_uses_exactly_the_weights_of_its_table(
    config: ModelConfig, weights: tuple[float, ...], data: st.DataObject
) -> None:
    shares = shares_of(config, data.draw(st.integers(0, len(weights) - 1)), weights)
    program, specs = build(config, Stage.whole(config), shares)
    named = [(op, getattr(op, "weight", None), getattr(op, "bias", None)) for op in program.ops]
    assert {spec.name for spec in specs} == {name for _, *names in named for name in names if name is not None}
    slices = {spec.name: spec.slices(shares) for spec in specs}
    for op in program.ops:
        if isinstance(op, Linear | LinearFixed):
            rows, columns = slices[op.weight]
            assert len(columns) == program.buffers[op.x].width
            assert len(rows) == program.buffers[op.out].width
            assert not isinstance(op, Linear) or op.bias is None or slices[op.bias] == (rows,)


@pytest.mark.parametrize("case", CASES)
def test_stages_one_after_the_other_are_the_whole_model(case: str) -> None:
    config = CASES[case]
    num_layers = config.num_hidden_layers
    ops: list[Op] = []
    specs = {}
    for layer in range(num_layers):
        stage = Stage(range(layer, layer + 1), is_first=layer == 0, is_last=layer == num_layers - 1)
        program, stage_specs = build(config, stage, shares_of(config))
        assert program.kv.num_layers == 1
        ops += [_in_layer(op, layer) for op in program.ops if not isinstance(op, Send | Recv)]
        specs.update({spec.name: spec for spec in stage_specs})
    assert ops == whole(config).ops
    assert specs == {spec.name: spec for spec in weight_specs(config)}


def _in_layer(op: Op, layer: int) -> Op:
    return dataclasses.replace(op, layer=layer) if isinstance(op, WriteKV | Attention) else op


@pytest.mark.parametrize("case", CASES)
def test_the_work_of_a_layer_is_dealt_without_loss(case: str) -> None:
    config = CASES[case]
    programs = [build(config, Stage.whole(config), shares_of(config, rank, (1, 2, 1)))[0] for rank in range(3)]
    total = {name: sum(program.buffers[name].width for program in programs) for name in ("q", "gate", "logits_part")}
    assert total == {
        "q": config.num_attention_heads * config.head_dim,
        "gate": config.intermediate_size,
        "logits_part": config.vocab_size,
    }


def test_a_single_rank_talks_to_nobody() -> None:
    assert not any(isinstance(op, AllReduce | AllGather | Send | Recv) for op in whole(NINE_HEADS).ops)


def test_ranks_of_a_mesh_meet_in_the_same_collectives() -> None:
    programs = [build(NINE_HEADS, Stage.whole(NINE_HEADS), shares_of(NINE_HEADS, r, (1,) * 11))[0] for r in range(11)]
    for program in programs:
        assert [type(op) for op in program.ops] == [type(op) for op in programs[0].ops]
    collectives = [op for op in programs[0].ops if isinstance(op, AllReduce | AllGather)]
    assert len(collectives) == 1 + 2 * NINE_HEADS.num_hidden_layers + 1


def test_a_stage_without_layers_passes_its_input_on() -> None:
    program, specs = build(NINE_HEADS, Stage(range(3, 3), is_first=False, is_last=False), shares_of(NINE_HEADS))
    assert program.ops == [Recv("hidden"), Send("hidden")]
    assert specs == ()
    assert program.kv.num_layers == 0


def test_llama_weights_have_hugging_face_names_and_shapes() -> None:
    config = dataclasses.replace(CASES["llama_biases"], num_hidden_layers=1)
    layer = "model.layers.0"
    assert {spec.name: spec.shape for spec in weight_specs(config)} == {
        "model.embed_tokens.weight": (331, 84),
        f"{layer}.input_layernorm.weight": (84,),
        f"{layer}.self_attn.q_proj.weight": (112, 84),
        f"{layer}.self_attn.q_proj.bias": (112,),
        f"{layer}.self_attn.k_proj.weight": (16, 84),
        f"{layer}.self_attn.k_proj.bias": (16,),
        f"{layer}.self_attn.v_proj.weight": (16, 84),
        f"{layer}.self_attn.v_proj.bias": (16,),
        f"{layer}.self_attn.o_proj.weight": (84, 112),
        f"{layer}.self_attn.o_proj.bias": (84,),
        f"{layer}.post_attention_layernorm.weight": (84,),
        f"{layer}.mlp.gate_proj.weight": (160, 84),
        f"{layer}.mlp.gate_proj.bias": (160,),
        f"{layer}.mlp.up_proj.weight": (160, 84),
        f"{layer}.mlp.up_proj.bias": (160,),
        f"{layer}.mlp.down_proj.weight": (84, 160),
        f"{layer}.mlp.down_proj.bias": (84,),
        "model.norm.weight": (84,),
        "lm_head.weight": (331, 84),
    }


def test_a_tied_head_has_no_weight_of_its_own() -> None:
    assert "lm_head.weight" not in {spec.name for spec in weight_specs(NINE_HEADS)}
    last_stage = Stage(range(2, 3), is_first=False, is_last=True)
    assert "model.embed_tokens.weight" in {
        spec.name for spec in build(NINE_HEADS, last_stage, shares_of(NINE_HEADS))[1]
    }


@pytest.mark.parametrize(
    ("case", "windows"),
    [
        ("mistral_window", [16, 16]),
        ("mistral_no_window", [None, None]),
        ("qwen2_windows", [None, 9]),
        ("qwen3_biases_windows", [None, 11]),
        ("llama_seven_heads", [None, None]),
    ],
)
def test_windows_are_those_of_the_layers(case: str, windows: list[int | None]) -> None:
    assert [op.window for op in whole(CASES[case]).ops if isinstance(op, Attention)] == windows


def test_row_parallel_limits_count_the_units_of_all_ranks() -> None:
    programs = [build(NINE_HEADS, Stage.whole(NINE_HEADS), shares_of(NINE_HEADS, r, (1,) * 9))[0] for r in (0, 8)]
    limits = [[op.limit for op in program.ops if isinstance(op, LinearFixed)] for program in programs]
    assert limits[0] == limits[1]
    # 9 heads and 4 slices of the MLP: 2 * 9 and 2 * 4 addends below the limit stay below 2³¹.
    assert set(limits[0]) == {2.0**26, 2.0**28}


def test_an_unknown_architecture_is_named_with_the_known_ones() -> None:
    config = dataclasses.replace(NINE_HEADS, architecture="mamba")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="one of llama, qwen2, qwen3, mistral, got mamba"):
        weight_specs(config)


@pytest.mark.parametrize("num_kv_heads", [0, 2, 4, 18])
def test_heads_that_cannot_be_grouped_are_refused(num_kv_heads: int) -> None:
    config = dataclasses.replace(NINE_HEADS, num_key_value_heads=num_kv_heads)
    with pytest.raises(CheckpointError, match="num_attention_heads must be a multiple of num_key_value_heads"):
        weight_specs(config)
