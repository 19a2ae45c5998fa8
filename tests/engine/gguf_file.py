"""Small GGUF files, written by the gguf package from Hugging Face weights the way llama.cpp's converter does it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import MODEL_ARCH, GGMLQuantizationType
from numpy.typing import NDArray

from tests.parity.random_model import random_weights
from tinycluster.engine.models.spec import ModelConfig
from tinycluster.engine.tokenizer import BYTE_OF_CHARACTER
from tinycluster.kernels.program import F32

LLAMA = ModelConfig("llama", 320, 96, 160, 2, 3, 1, 32, 1e-5, 128, eos_token_ids=(1, 0), tie_word_embeddings=True)
QWEN2 = ModelConfig("qwen2", 320, 64, 160, 2, 4, 2, 16, 1e-6, 128, 1e6, attention_bias=True, eos_token_ids=(1, 0))
QWEN3 = ModelConfig("qwen3", 320, 64, 160, 2, 4, 2, 32, 1e-6, 128, 1e6, eos_token_ids=(1, 0))
ARCHITECTURES = {"llama": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2, "qwen3": MODEL_ARCH.QWEN3}
SEED = 5


def permuted(rows: F32, num_heads: int) -> F32:
    """Q or K as llama.cpp stores it for the llama architecture."""
    halves = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def stored_weights(config: ModelConfig, weights: Mapping[str, F32]) -> dict[str, F32]:
    """Hugging Face weights under GGUF names, with the permutation of Q and K where llama.cpp applies it."""
    names = gguf.get_tensor_name_map(ARCHITECTURES[config.architecture], config.num_hidden_layers)
    stored = {}
    for name, values in weights.items():
        stem, _, kind = name.rpartition(".")
        if config.architecture == "llama" and ".q_proj" in name:
            values = permuted(values, config.num_attention_heads)
        if config.architecture == "llama" and ".k_proj" in name:
            values = permuted(values, config.num_key_value_heads)
        stored[f"{names.get_name(stem)}.{kind}"] = values
    return stored


def metadata(config: ModelConfig) -> dict[str, Any]:
    name = config.architecture
    tokens = ["<|endoftext|>", "<|im_end|>", *BYTE_OF_CHARACTER]
    tokens += [f"[unused{index}]" for index in range(config.vocab_size - len(tokens))]
    return {
        "general.architecture": name,
        f"{name}.block_count": config.num_hidden_layers,
        f"{name}.context_length": config.max_position_embeddings,
        f"{name}.embedding_length": config.hidden_size,
        f"{name}.feed_forward_length": config.intermediate_size,
        f"{name}.attention.head_count": config.num_attention_heads,
        f"{name}.attention.head_count_kv": config.num_key_value_heads,
        f"{name}.attention.key_length": config.head_dim,
        f"{name}.attention.value_length": config.head_dim,
        f"{name}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{name}.rope.freq_base": config.rope_theta,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": ["t h", "h e"],
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    } | {"tokenizer.ggml.tokens": [*tokens[:-2], "th", "he"]}


def write_gguf(
    path: Path,
    config: ModelConfig = LLAMA,
    type_: GGMLQuantizationType = GGMLQuantizationType.F32,
    *,
    change: Mapping[str, Any] | None = None,
    extra: Mapping[str, NDArray[Any]] | None = None,
) -> Path:
    """A model of random weights; matrices in `type_`, vectors in F32. A field that `change` sets to None is absent."""
    writer = gguf.GGUFWriter(path, config.architecture)
    fields = {**metadata(config), **(change or {})}
    fields.pop("general.architecture")
    for name, value in fields.items():
        _add_field(writer, name, value)
    for name, values in {**stored_weights(config, random_weights(config, SEED)), **(extra or {})}.items():
        if values.ndim == 1 or type_ == GGMLQuantizationType.F32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_field(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if value is None:
        return
    if name == "general.alignment":
        writer.add_custom_alignment(value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)
