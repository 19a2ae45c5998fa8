"""Hugging Face folders: configuration, safetensors files and tokenizer against what was written."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.parity.random_model import BIASED, CASES, MISTRAL, QWEN2, SEVEN_HEADS, random_weights, write_folder
from tests.parity.tiny_tokenizer import EOS_TOKEN_ID
from tinycluster.engine.checkpoint import TensorEntry, open_checkpoint, validate
from tinycluster.engine.errors import CheckpointError, RequestError
from tinycluster.engine.models.registry import weight_specs
from tinycluster.engine.models.spec import ModelConfig
from tinycluster.kernels.formats import DenseTensor, bf16_to_f32, dequantize, f32_to_bf16
from tinycluster.kernels.program import F32

SEED = 3


def rewrite(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    fields = json.loads(path.read_text()) if path.exists() else {}
    fields = {name: value for name, value in {**fields, **changes}.items() if value is not None}
    path.write_text(json.dumps(fields))


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """The file format by hand: the numpy interface of the library cannot write bfloat16."""
    table, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    header = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_folder_gives_back_the_weights_and_configuration_that_were_written(
    tmp_path: Path, name: str, num_shards: int
) -> None:
    config = CASES[name]
    checkpoint = open_checkpoint(write_folder(tmp_path, config, SEED, num_shards=num_shards))
    expected = dataclasses.replace(config, eos_token_ids=checkpoint.config.eos_token_ids)
    if config.architecture in ("qwen2", "qwen3") and config.sliding_window is not None:
        expected = dataclasses.replace(
            expected, window_layers=config.window_layers or (True,) * config.num_hidden_layers
        )
    assert checkpoint.config == expected
    validate(checkpoint, weight_specs(checkpoint.config))
    weights = random_weights(config, SEED)
    assert set(checkpoint.tensors()) == set(weights)
    for weight, values in weights.items():
        answer = checkpoint.read(weight, tuple(range(size) for size in values.shape))
        assert np.array_equal(dequantize(answer), values)


def test_only_the_asked_rows_and_columns_come_back(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path, SEVEN_HEADS, SEED))
    name = "model.layers.1.mlp.down_proj.weight"
    values = random_weights(SEVEN_HEADS, SEED)[name]
    for rows, columns in [(range(5, 9), range(160)), (range(84), range(64, 128)), (range(3, 3), range(160))]:
        answer = checkpoint.read(name, (rows, columns))
        assert isinstance(answer, DenseTensor)
        assert np.array_equal(answer.values, values[rows.start : rows.stop, columns.start : columns.stop])
        assert answer.values.flags.c_contiguous
        assert answer.values.flags.owndata


def with_weights(folder: Path, config: ModelConfig, dtype: str) -> dict[str, F32]:
    """A folder whose weights are stored as F16 or BF16; the float32 values that they stand for."""
    write_folder(folder, config, SEED)
    weights = random_weights(config, SEED)
    if dtype == "F16":
        stored = {name: values.astype(np.float16) for name, values in weights.items()}
        rounded = {name: values.astype(np.float32) for name, values in stored.items()}
    else:
        bits = {name: f32_to_bf16(values) for name, values in weights.items()}
        rounded = {name: bf16_to_f32(values) for name, values in bits.items()}
        stored = {name: values.view(np.float16) for name, values in bits.items()}
    write_safetensors(
        folder / "model.safetensors",
        {name: (dtype, values.shape, values.tobytes()) for name, values in stored.items()},
    )
    return rounded


@pytest.mark.parametrize(("dtype", "format"), [("F16", "f16"), ("BF16", "bf16")])
def test_half_precision_is_read_as_it_is_stored(tmp_path: Path, dtype: str, format: Any) -> None:
    rounded = with_weights(tmp_path, SEVEN_HEADS, dtype)
    checkpoint = open_checkpoint(tmp_path)
    name = "model.layers.0.self_attn.k_proj.weight"
    assert checkpoint.tensors()[name] == TensorEntry((16, 84), format, format)
    answer = checkpoint.read(name, (range(3, 9), range(84)))
    assert answer.format == format
    assert np.array_equal(dequantize(answer), rounded[name][3:9])
    # Bytes of a file that starts at an odd offset are read all the same.
    header = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    odd = struct.pack("<Q", length + 1) + header[8 : 8 + length] + b" " + header[8 + length :]
    (tmp_path / "model.safetensors").write_bytes(odd)
    again = open_checkpoint(tmp_path).read(name, (range(3, 9), range(84)))
    assert np.array_equal(dequantize(again), rounded[name][3:9])


def test_a_tied_head_that_is_stored_all_the_same_is_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path, SEVEN_HEADS, SEED)
    assert "lm_head.weight" in open_checkpoint(tmp_path).tensors()
    rewrite(tmp_path / "config.json", tie_word_embeddings=True)
    assert "lm_head.weight" not in open_checkpoint(tmp_path).tensors()


def test_tensors_that_no_model_uses_are_passed_over(tmp_path: Path) -> None:
    write_folder(tmp_path, SEVEN_HEADS, SEED)
    weights: dict[str, Any] = random_weights(SEVEN_HEADS, SEED)
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8), "vision.x": np.ones(2, np.int64)}
    save_file({**weights, **buffers}, tmp_path / "model.safetensors")
    assert set(open_checkpoint(tmp_path).tensors()) == set(weights)


def test_end_tokens_are_merged_from_all_files_that_name_them(tmp_path: Path) -> None:
    write_folder(tmp_path, SEVEN_HEADS, SEED)
    rewrite(tmp_path / "config.json", eos_token_id=7)
    rewrite(tmp_path / "generation_config.json", eos_token_id=[9, 7])
    rewrite(tmp_path / "tokenizer_config.json", eos_token={"content": "<|im_end|>", "special": True})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.eos_token_ids == (7, 9)
    assert checkpoint.tokenizer().eos_token_ids == (7, 9, EOS_TOKEN_ID)
    named: dict[str, Any] = {str(EOS_TOKEN_ID): {"content": "<|im_end|>"}, "5": {"content": "x"}, "x": {}, "y": 3}
    rewrite(tmp_path / "tokenizer_config.json", added_tokens_decoder=named | {"9" * 5000: {"content": "<|im_end|>"}})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.eos_token_ids == checkpoint.tokenizer().eos_token_ids == (7, 9, EOS_TOKEN_ID)


def test_the_digest_is_stable_and_changes_with_configuration_and_weights(tmp_path: Path) -> None:
    first = open_checkpoint(write_folder(tmp_path / "a", SEVEN_HEADS, SEED)).digest
    assert open_checkpoint(write_folder(tmp_path / "b", SEVEN_HEADS, SEED)).digest == first
    assert open_checkpoint(write_folder(tmp_path / "c", SEVEN_HEADS, SEED + 1)).digest != first
    rewrite(tmp_path / "b" / "config.json", rope_theta=5000.0)
    assert open_checkpoint(tmp_path / "b").digest != first


def test_the_tokenizer_of_a_folder_encodes_decodes_and_applies_its_template(tmp_path: Path) -> None:
    tokenizer = open_checkpoint(write_folder(tmp_path, SEVEN_HEADS, SEED)).tokenizer()
    ids = tokenizer.encode("the other <|im_end|>", add_special_tokens=True)
    assert ids[-1] == EOS_TOKEN_ID
    assert tokenizer.decode(ids) == "the other "
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_template_file_wins_over_the_one_in_tokenizer_config(tmp_path: Path) -> None:
    write_folder(tmp_path, SEVEN_HEADS, SEED)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    config = tmp_path / "tokenizer_config.json"

    def prompt() -> str:
        tokenizer = open_checkpoint(tmp_path).tokenizer()
        return tokenizer.decode(tokenizer.apply_chat_template([]), skip_special_tokens=False)

    rewrite(config, chat_template=[{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}])
    assert prompt() == "d"
    rewrite(config, chat_template="{{ eos_token }}c", eos_token="<|im_end|>")
    assert prompt() == "<|im_end|>c"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert prompt() == "file"
    (tmp_path / "chat_template.jinja").unlink()
    rewrite(config, chat_template=None)
    with pytest.raises(RequestError, match="this model has no chat template") as raised:
        prompt()
    assert raised.value.param == "messages"


def test_an_explicit_add_bos_token_overrules_the_tokenizer_file(tmp_path: Path) -> None:
    write_folder(tmp_path, SEVEN_HEADS, SEED)
    config = tmp_path / "tokenizer_config.json"

    def encoded() -> list[int]:
        return open_checkpoint(tmp_path).tokenizer().encode("", add_special_tokens=True)

    rewrite(config, bos_token="<|endoftext|>")
    assert encoded() == []
    rewrite(config, add_bos_token=True)
    assert encoded() == [0]
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    template = [{"SpecialToken": {"id": "bos", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {"bos": {"id": "bos", "ids": [0], "tokens": ["<|endoftext|>"]}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "single": template, "pair": template, "special_tokens": tokens
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    rewrite(config, add_bos_token=None)
    assert encoded() == [0]
    rewrite(config, add_bos_token=False)
    assert encoded() == []


def start(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    validate(checkpoint, weight_specs(checkpoint.config))
    checkpoint.tokenizer()


def error_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        start(folder)
    return str(raised.value)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"model_type": "gemma3"}, "model_type 'gemma3' is not supported; supported are llama, qwen2, qwen3, mistral"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "84"}, "hidden_size must be a positive whole number, got '84'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive whole number, got 0"),
        ({"num_hidden_layers": 10**9}, "the configuration asks for 1000000000 layers"),
        ({"num_attention_heads": True}, "num_attention_heads must be a positive whole number, got True"),
        ({"num_key_value_heads": 2}, "num_attention_heads 7 must be a multiple of num_key_value_heads 2"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be a positive number, got inf"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config 'gptq' is not supported"),
        ({"rope_scaling": {"type": "longrope"}}, "rope type 'longrope' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": 4}, "rope_scaling must be an object, got 4"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "needs original_max_position_embeddings"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1, got 0.5"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, got 'yes'"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id or a list of token ids, got '</s>'"),
        ({"intermediate_size": 161}, "has shape [160, 84], the model's configuration asks for [161, 84]"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_with_its_field(
    tmp_path: Path, change: dict[str, Any], rule: str
) -> None:
    write_folder(tmp_path, SEVEN_HEADS, SEED)
    rewrite(tmp_path / "config.json", **change)
    message = error_of(tmp_path)
    assert message.startswith(str(tmp_path))
    assert rule in message


@pytest.mark.parametrize(
    ("file", "content", "rule"),
    [
        ("config.json", None, "config.json: the file is missing"),
        ("config.json", b"{", "config.json: not valid JSON"),
        ("config.json", b"[" * 100_000, "config.json: not valid JSON"),
        ("config.json", b"[]", "config.json: must hold a JSON object"),
        ("config.json", b"\xff\xfe", "config.json: not valid JSON"),
        ("generation_config.json", b'{"eos_token_id": "x"}', "generation_config.json: eos_token_id must be"),
        ("model.safetensors", None, "neither model.safetensors nor model.safetensors.index.json is there"),
        ("model.safetensors", b"", "model.safetensors: the file is empty"),
        ("model.safetensors", b"\x80\x02}q\x00.", "model.safetensors: not a valid safetensors file"),
        ("model.safetensors", struct.pack("<Q", 2**62) + b"{}", "model.safetensors: not a valid safetensors file"),
        ("tokenizer.json", None, "tokenizer.json: the file is missing"),
        ("tokenizer.json", b"{}", "tokenizer.json: not a valid tokenizer"),
        ("chat_template.jinja", b"{% if %}", "chat_template.jinja: the chat template is not valid"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja: cannot be read"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "chat_template must be a text or a list of named texts"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_missing_or_malformed_file_is_named(tmp_path: Path, file: str, content: bytes | None, rule: str) -> None:
    write_folder(tmp_path, SEVEN_HEADS, SEED)
    if file == "tokenizer_config.json":
        (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    assert rule in error_of(tmp_path)


def test_a_cut_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path, SEVEN_HEADS, SEED) / "model.safetensors"
    content = path.read_bytes()
    for length in (4, 8, 100, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert f"{path}: not a valid safetensors file" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        ({"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 12]}, "not a valid safetensors file"),
        ({"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}, "not a valid safetensors file"),
        ({"dtype": "F32", "shape": [2, 2], "data_offsets": [4, 20]}, "not a valid safetensors file"),
        (
            {"dtype": "I32", "shape": [2, 2], "data_offsets": [0, 16]},
            "tensor lm_head.weight has type I32; supported are F32",
        ),
        ({"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}, "tensor lm_head.weight has type F64"),
    ],
)
def test_a_table_that_does_not_fit_its_data_is_refused(tmp_path: Path, entry: dict[str, Any], rule: str) -> None:
    write_folder(tmp_path, SEVEN_HEADS, SEED)
    header = json.dumps({"lm_head.weight": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    assert rule in error_of(tmp_path)


def test_a_shard_that_is_missing_incomplete_or_outside_the_folder_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, SEVEN_HEADS, SEED, num_shards=2)
    index = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    rewrite(index, weight_map={**weight_map, "model.layers.7.x": "model-00001-of-00002.safetensors"})
    assert "tensor model.layers.7.x is missing; model.safetensors.index.json says" in error_of(tmp_path)
    rewrite(index, weight_map={**weight_map, "lm_head.weight": "../model.safetensors"})
    assert "'../model.safetensors' must be the name of a file beside the index" in error_of(tmp_path)
    rewrite(index, weight_map=[1])
    assert "weight_map must map tensor names to file names" in error_of(tmp_path)
    rewrite(index, weight_map=weight_map)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: cannot be read" in error_of(tmp_path)


def test_a_weight_that_the_model_needs_is_named_when_missing(tmp_path: Path) -> None:
    write_folder(tmp_path, BIASED, SEED)
    weights = random_weights(BIASED, SEED)
    del weights["model.layers.1.self_attn.o_proj.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    assert error_of(tmp_path) == f"{tmp_path}: tensor model.layers.1.self_attn.o_proj.bias is missing; llama needs it"


def config_of(folder: Path, config: ModelConfig, **changes: Any) -> ModelConfig:
    write_folder(folder, config, SEED)
    rewrite(folder / "config.json", **changes)
    return open_checkpoint(folder).config


def test_rope_parameters_of_transformers_5_mean_what_rope_scaling_meant(tmp_path: Path) -> None:
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16}
    old = config_of(tmp_path, SEVEN_HEADS, rope_scaling={"type": "yarn", **scaling}, rope_theta=5e5)
    new = config_of(tmp_path, SEVEN_HEADS, rope_scaling={"rope_type": "yarn", **scaling}, rope_theta=5e5)
    parameters = {"rope_type": "yarn", "rope_theta": 5e5, **scaling}
    newest = config_of(tmp_path, SEVEN_HEADS, rope_scaling=None, rope_theta=None, rope_parameters=parameters)
    assert old == new == newest
    assert (old.rope_theta, old.rope_scaling.rope_type, old.rope_scaling.beta_fast) == (5e5, "yarn", 16.0)
    plain = {"rope_type": "default", "rope_theta": 77.0}
    plain_config = config_of(tmp_path, SEVEN_HEADS, rope_theta=None, rope_parameters=plain)
    assert (plain_config.rope_theta, plain_config.rope_scaling.rope_type) == (77.0, "default")


def test_windows_apply_where_the_architecture_and_its_fields_say(tmp_path: Path) -> None:
    def window(config: ModelConfig, **changes: Any) -> tuple[int | None, tuple[bool, ...] | None]:
        read = config_of(tmp_path, config, **changes)
        return read.sliding_window, read.window_layers

    on = {"sliding_window": 8, "use_sliding_window": True, "layer_types": None}
    assert window(QWEN2, **on, max_window_layers=1) == (8, (False, True))
    assert window(QWEN2, **on) == (8, (False, False))
    assert window(QWEN2, **{**on, "layer_types": ["sliding_attention", "full_attention"]}) == (8, (True, False))
    assert window(QWEN2, **{**on, "use_sliding_window": False}) == (None, None)
    assert window(MISTRAL, sliding_window=8) == (8, None)
    assert window(MISTRAL, sliding_window=None) == (None, None)
    assert window(SEVEN_HEADS, sliding_window=8) == (None, None)


def test_fields_that_are_absent_take_the_defaults_of_transformers(tmp_path: Path) -> None:
    absent = ("head_dim", "num_key_value_heads", "rope_theta", "attention_bias", "mlp_bias", "rope_scaling")
    write_folder(tmp_path, dataclasses.replace(SEVEN_HEADS, head_dim=12, num_key_value_heads=7), SEED)
    rewrite(tmp_path / "config.json", **dict.fromkeys(absent))
    config = open_checkpoint(tmp_path).config
    assert (config.head_dim, config.num_key_value_heads, config.rope_theta) == (12, 7, 10000.0)
    assert (config.attention_bias, config.mlp_bias, config.rope_scaling.rope_type) == (False, False, "default")
