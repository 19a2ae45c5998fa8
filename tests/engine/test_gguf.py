"""GGUF checkpoints against the gguf package and the weights that were written."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from tests.engine.gguf_file import LLAMA, QWEN2, QWEN3, SEED, stored_weights, write_gguf
from tests.parity.random_model import random_weights
from tinycluster.engine.checkpoint import TensorEntry, open_checkpoint, validate
from tinycluster.engine.errors import CheckpointError
from tinycluster.engine.gguf import GgufCheckpoint
from tinycluster.engine.gguf_blocks import DEQUANTIZED, read_tensor, table_entry
from tinycluster.engine.gguf_config import llama3_divisors, row_order
from tinycluster.engine.gguf_header import GgufTensor, read_header
from tinycluster.engine.models.registry import weight_specs
from tinycluster.engine.models.spec import ModelConfig, RopeScaling
from tinycluster.kernels.formats import DenseTensor, GroupedTensor, dequantize

Ggml = GGMLQuantizationType


def whole(shape: tuple[int, ...]) -> tuple[range, ...]:
    return tuple(range(size) for size in shape)


def blocks(type_: Ggml, num_rows: int, num_columns: int) -> NDArray[np.uint8]:
    """Rows of random blocks; every float16 in them is finite."""
    random = np.random.default_rng(3)
    if type_ in (Ggml.Q4_K, Ggml.Q5_K, Ggml.Q6_K):
        block_elements, block_bytes = GGML_QUANT_SIZES[type_]
        raw = random.integers(0, 256, (num_rows, num_columns // block_elements, block_bytes), np.uint8)
        scales = slice(208, 210) if type_ == Ggml.Q6_K else slice(0, 4)
        width = 1 if type_ == Ggml.Q6_K else 2
        halves = random.normal(size=(*raw.shape[:2], width)).astype(np.float16)
        raw[:, :, scales] = halves.view(np.uint8).reshape(*raw.shape[:2], -1)
        return raw.reshape(num_rows, -1)
    values = random.normal(size=(num_rows, num_columns)).astype(np.float32)
    return np.asarray(gguf.quantize(values, type_)).view(np.uint8)


def tensor_of(type_: Ggml, raw: NDArray[np.uint8]) -> GgufTensor:
    block_elements, block_bytes = GGML_QUANT_SIZES[type_]
    return GgufTensor("t", (raw.shape[0], raw.shape[1] // block_bytes * block_elements), type_, 0, raw.nbytes)


ALL_TYPES = [Ggml.F32, Ggml.F16, Ggml.BF16, Ggml.Q8_0, Ggml.Q4_0, Ggml.Q4_1, *DEQUANTIZED]
SLICES = [
    (0, 7, 0, 512),
    (2, 5, 0, 512),
    (0, 7, 32, 96),
    (1, 3, 5, 77),
    (6, 7, 256, 511),
    (3, 3, 0, 512),
    (0, 7, 64, 64),
]


@pytest.mark.parametrize("type_", ALL_TYPES, ids=lambda type_: str(type_.name))
@pytest.mark.parametrize("reorder", [False, True])
def test_every_slice_equals_the_same_slice_of_the_packages_dequantized_tensor(type_: Ggml, reorder: bool) -> None:
    raw = blocks(type_, 7, 512)
    order = np.array([4, 0, 6, 1, 5, 3, 2]) if reorder else None
    expected = np.asarray(gguf.dequantize(raw.view(np.float32) if type_ == Ggml.F32 else raw, type_))
    expected = expected if order is None else expected[order]
    for first_row, last_row, first, last in SLICES:
        slices = (range(first_row, last_row), range(first, last))
        answer = dequantize(read_tensor(raw.reshape(-1), tensor_of(type_, raw), slices, order))
        part = expected[first_row:last_row, first:last]
        # A q4 group represents zero as 8 * scale - 8 * scale, so the sign of a zero may differ.
        assert np.array_equal((answer + 0.0).view(np.uint32), (part + np.float32(0)).view(np.uint32))


@pytest.mark.parametrize(
    ("type_", "format", "stored_as"),
    [
        (Ggml.F32, "f32", "f32"),
        (Ggml.F16, "f16", "f16"),
        (Ggml.BF16, "bf16", "bf16"),
        (Ggml.Q8_0, "q8", "q8"),
        (Ggml.Q4_0, "q4", "q4"),
        (Ggml.Q4_1, "q4", "q4"),
        (Ggml.Q5_0, "f32", "q8"),
        (Ggml.Q5_1, "f32", "q8"),
        (Ggml.Q4_K, "f32", "q8"),
        (Ggml.Q5_K, "f32", "q8"),
        (Ggml.Q6_K, "f32", "q8"),
    ],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_a_read_tensor_has_the_format_of_its_table_entry(type_: Ggml, format: Any, stored_as: Any) -> None:
    raw = blocks(type_, 7, 512)
    tensor = tensor_of(type_, raw)
    assert table_entry(tensor) == TensorEntry((7, 512), format, stored_as)
    for slices in [whole((7, 512)), (range(1, 4), range(256, 512)), (range(2, 2), range(512)), (range(7), range(0))]:
        answer = read_tensor(raw.reshape(-1), tensor, slices, None)
        assert (answer.format, answer.shape) == (format, (len(slices[0]), len(slices[1])))


def test_a_cut_inside_a_group_is_answered_in_f32() -> None:
    raw = blocks(Ggml.Q8_0, 7, 512)
    assert isinstance(
        read_tensor(raw.reshape(-1), tensor_of(Ggml.Q8_0, raw), (range(7), range(16, 64)), None), DenseTensor
    )


def test_a_slice_is_a_copy_of_its_own_memory() -> None:
    raw = blocks(Ggml.F16, 7, 512)
    answer = read_tensor(raw.reshape(-1), tensor_of(Ggml.F16, raw), (range(2, 4), range(512)), None)
    assert isinstance(answer, DenseTensor)
    assert not np.shares_memory(answer.values, raw)
    assert answer.values.flags.c_contiguous


@pytest.mark.parametrize(("num_heads", "head_dim"), [(1, 2), (3, 64), (9, 8), (2, 6)])
def test_row_order_undoes_llama_cpps_permutation(num_heads: int, head_dim: int) -> None:
    rows = np.arange(num_heads * head_dim)
    stored = rows.reshape(num_heads, 2, head_dim // 2).swapaxes(1, 2).reshape(-1)
    assert np.array_equal(stored[row_order(num_heads, head_dim)], rows)
    assert head_dim == 2 or not np.array_equal(stored, rows)


BIASED_LLAMA = dataclasses.replace(LLAMA, tie_word_embeddings=False, attention_bias=True, mlp_bias=True)


@pytest.mark.parametrize("config", [LLAMA, BIASED_LLAMA, QWEN2, QWEN3], ids=["llama", "llama_biases", "qwen2", "qwen3"])
def test_a_file_gives_back_the_weights_and_configuration_that_were_written(tmp_path: Path, config: ModelConfig) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", config))
    assert checkpoint.config == config
    specs = weight_specs(config)
    validate(checkpoint, specs)
    weights = random_weights(config, SEED)
    assert set(checkpoint.tensors()) == set(weights)
    for name, values in weights.items():
        answer = checkpoint.read(name, whole(values.shape))
        assert np.array_equal(dequantize(answer), values), name


def test_rows_of_a_permuted_tensor_are_read_alone(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", LLAMA))
    name = "model.layers.1.self_attn.q_proj.weight"
    expected = random_weights(LLAMA, SEED)[name]
    answer = checkpoint.read(name, (range(32, 64), range(96)))
    assert np.array_equal(dequantize(answer), expected[32:64])


def test_quantized_rows_keep_their_bits_through_the_permutation(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", LLAMA, Ggml.Q4_1))
    name = "model.layers.0.self_attn.k_proj.weight"
    answer = checkpoint.read(name, whole((32, 96)))
    assert isinstance(answer, GroupedTensor)
    original = random_weights(LLAMA, SEED)[name]
    assert np.array_equal(dequantize(answer), gguf.dequantize(gguf.quantize(original, Ggml.Q4_1), Ggml.Q4_1))


def test_the_header_equals_what_the_package_reads(smollm2_path: Path) -> None:
    """Every tensor of the real model, and every field but the three long arrays, which take the package seconds."""
    header = read_header(str(smollm2_path))
    assert len(header.tensors) == 272
    assert header.tensors["token_embd.weight"] == GgufTensor(
        "token_embd.weight", (49152, 576), Ggml.Q8_0, 1785664, 49152 * 612
    )
    assert header.fields["llama.rope.freq_base"] == 100000.0
    assert header.fields["general.languages"] == ["en"]
    assert len(header.fields["tokenizer.ggml.merges"]) == 48900


def test_the_package_reads_the_same_header(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "model.gguf", QWEN2, Ggml.Q5_1, change={"general.alignment": 64, "some.numbers": [1, -2]}
    )
    header, reader = read_header(str(path)), gguf.GGUFReader(path)
    ours = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in header.fields.items()}
    theirs = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert ours == theirs
    assert [
        (t.name, tuple(reversed(t.shape.tolist())), t.tensor_type, t.data_offset, t.n_bytes) for t in reader.tensors
    ] == [(t.name, t.shape, t.type, t.offset, t.num_bytes) for t in header.tensors.values()]


def test_smollm2_is_described_as_published(smollm2_path: Path) -> None:
    checkpoint = open_checkpoint(smollm2_path)
    assert checkpoint.config == ModelConfig(
        "llama", 49152, 576, 1536, 30, 9, 3, 64, 1e-5, 8192, 100000.0,
        tie_word_embeddings=True, bos_token_id=1, eos_token_ids=(2, 0),
    )  # fmt: skip
    validate(checkpoint, weight_specs(checkpoint.config))
    tensors = checkpoint.tensors()
    assert tensors["model.embed_tokens.weight"].format == "q8"
    assert tensors["model.layers.29.mlp.down_proj.weight"] == TensorEntry((576, 1536), "q4", "q4")
    assert "lm_head.weight" not in tensors


def test_smollm2s_projections_equal_the_packages_after_undoing_the_permutation(smollm2_path: Path) -> None:
    checkpoint = GgufCheckpoint(smollm2_path)
    header = read_header(str(smollm2_path))
    for name, stored, num_heads in [("q_proj", "attn_q", 9), ("k_proj", "attn_k", 3), ("o_proj", "attn_output", None)]:
        tensor = header.tensors[f"blk.7.{stored}.weight"]
        raw = header.mapped[tensor.offset : tensor.offset + tensor.num_bytes].reshape(tensor.shape[0], -1)
        expected = gguf.dequantize(np.asarray(raw), tensor.type)
        if num_heads is not None:
            expected = expected.reshape(num_heads, -1, 2, 576).swapaxes(1, 2).reshape(expected.shape)
        answer = checkpoint.read(f"model.layers.7.self_attn.{name}.weight", whole(tensor.shape))
        assert np.array_equal(dequantize(answer), expected)


@pytest.mark.parametrize(
    ("name", "slices"),
    [
        ("model.embed_tokens.weight", (range(100, 164), range(576))),
        ("model.layers.3.self_attn.q_proj.weight", (range(64, 128), range(576))),
        ("model.layers.3.mlp.down_proj.weight", (range(576), range(64, 128))),
        ("model.layers.3.mlp.down_proj.weight", (range(576), range(70, 130))),
    ],
)
def test_reading_a_slice_takes_memory_for_the_slice_only(
    smollm2_path: Path, name: str, slices: tuple[range, range]
) -> None:
    checkpoint = open_checkpoint(smollm2_path)
    tracemalloc.start()
    checkpoint.read(name, slices)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The slice in float32 a few times over, for the steps of taking blocks apart.
    assert peak_bytes < 4 * 4 * len(slices[0]) * len(slices[1]) + 2**16


def test_llama3_rope_scaling_is_recovered_from_its_divisors(tmp_path: Path) -> None:
    scaling = RopeScaling("llama3", 32.0, original_max_position_embeddings=8192)
    divisors = llama3_divisors(scaling, LLAMA.rope_theta, LLAMA.head_dim).astype(np.float32)
    # Grattafiori et al. 2024: the fastest rotation is kept, the slowest is slowed by the whole factor.
    assert (divisors[0], divisors[-1]) == (1, 32)
    path = write_gguf(tmp_path / "model.gguf", extra={"rope_freqs.weight": divisors})
    assert open_checkpoint(path).config.rope_scaling == scaling
    path = write_gguf(tmp_path / "other.gguf", extra={"rope_freqs.weight": divisors[::-1].copy()})
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight does not follow"):
        open_checkpoint(path)


def test_rope_scaling_fields_are_read(tmp_path: Path) -> None:
    change: dict[str, Any] = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    path = write_gguf(tmp_path / "linear.gguf", change=change)
    assert open_checkpoint(path).config.rope_scaling == RopeScaling("linear", 4.0)
    change |= {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.original_context_length": 64}
    path = write_gguf(tmp_path / "yarn.gguf", change=change)
    assert open_checkpoint(path).config.rope_scaling == RopeScaling("yarn", 4.0, original_max_position_embeddings=64)


def test_a_llama_file_with_a_window_is_mistral(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", change={"llama.attention.sliding_window": 4096})
    config = open_checkpoint(path).config
    assert (config.architecture, config.sliding_window) == ("mistral", 4096)


def test_the_digest_is_stable_and_changes_with_weights_and_header(tmp_path: Path) -> None:
    def digest(name: str, **changes: Any) -> str:
        return open_checkpoint(write_gguf(tmp_path / name, **changes)).digest

    first = digest("a.gguf")
    assert digest("b.gguf") == first
    assert digest("c.gguf", change={"llama.context_length": 64}) != first
    weights = stored_weights(LLAMA, random_weights(LLAMA, SEED + 1))
    assert digest("d.gguf", extra={"blk.0.ffn_up.weight": weights["blk.0.ffn_up.weight"]}) != first


def test_a_missing_or_misshapen_tensor_is_named_before_anything_is_read(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    checkpoint = open_checkpoint(path)
    wider = dataclasses.replace(LLAMA, intermediate_size=192)
    with pytest.raises(CheckpointError) as raised:
        validate(checkpoint, weight_specs(wider))
    assert str(raised.value) == (
        f"{path}: tensor model.layers.0.mlp.gate_proj.weight has shape [160, 96], "
        "the model's configuration asks for [192, 96]"
    )
    with pytest.raises(CheckpointError, match=r"tensor lm_head\.weight is missing; llama needs it"):
        validate(checkpoint, weight_specs(dataclasses.replace(LLAMA, tie_word_embeddings=False)))


def test_a_slice_outside_a_tensor_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf"))
    for slices in [(range(321), range(96)), (range(320),), (range(0, 320, 2), range(96)), (range(-1, 3), range(96))]:
        with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight"):
            checkpoint.read("model.embed_tokens.weight", slices)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"llama.block_count": None}, "field llama.block_count is missing"),
        ({"llama.block_count": 3}, "tensor model.layers.2.input_layernorm.weight is missing"),
        ({"llama.block_count": 2**31 - 1}, "the configuration asks for 2147483647 layers"),
        ({"llama.block_count": "2"}, "field llama.block_count must be a whole number of at least 1, got '2'"),
        ({"llama.attention.head_count_kv": 2}, "3 attention heads cannot share 2 key-value heads evenly"),
        ({"llama.rope.dimension_count": 16}, "llama.rope.dimension_count must equal the head dimension 32"),
        ({"llama.expert_count": 8}, "mixture-of-experts models are not supported"),
        ({"llama.rope.scaling.type": "longrope"}, "rope scaling 'longrope' is not supported"),
        ({"llama.rope.freq_base": -1.0}, "field llama.rope.freq_base must be a positive number, got -1.0"),
        ({"split.count": 3}, "a GGUF file split into several is not supported"),
    ],
)
def test_metadata_that_cannot_be_used_is_refused_with_its_field(
    tmp_path: Path, change: dict[str, Any], rule: str
) -> None:
    path = write_gguf(tmp_path / "model.gguf", change=change)
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert rule in str(raised.value)


def test_an_unsupported_architecture_and_tensor_type_are_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "gemma.gguf", "gemma3")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        CheckpointError, match="architecture 'gemma3' is not supported; supported are llama, qwen2, qwen3"
    ):
        open_checkpoint(tmp_path / "gemma.gguf")
    path = write_gguf(tmp_path / "model.gguf", extra={"blk.0.attn_v.weight": np.zeros((32, 96), np.float64)})
    with pytest.raises(
        CheckpointError, match=r"tensor blk\.0\.attn_v\.weight: type F64 is not supported; supported are F32"
    ):
        open_checkpoint(path)


def test_a_scale_that_is_not_a_number_is_refused_with_its_tensor(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", LLAMA, Ggml.Q4_0)
    offset = read_header(str(path)).tensors["blk.1.ffn_up.weight"].offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"tensor blk\.1\.ffn_up\.weight: a group's scale or minimum is not a finite"
    ):
        open_checkpoint(path).read("model.layers.1.mlp.up_proj.weight", (range(160), range(96)))
