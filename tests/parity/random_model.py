"""Small models with random weights, the same on every machine: configurations, weights, Hugging Face folders.

A weight depends only on its name, shape and seed, so the goldens' generator and the tests make the same model without
a file between them. The values come from a counter-based bit stream and exact arithmetic: no normal distribution,
whose logarithms would differ between C libraries.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.parity.tiny_tokenizer import write_tokenizer
from tinycluster.engine.models.registry import weight_specs
from tinycluster.engine.models.spec import ModelConfig, RopeScaling
from tinycluster.kernels.program import F32

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
}
NINE_HEADS = ModelConfig("llama", 307, 72, 200, 3, 9, 3, 8, 1e-5, 128, tie_word_embeddings=True)
SEVEN_HEADS = ModelConfig("llama", 331, 84, 160, 2, 7, 1, 16, 1e-5, 128)
BIASED = dataclasses.replace(SEVEN_HEADS, attention_bias=True, mlp_bias=True)
QWEN2 = ModelConfig("qwen2", 401, 64, 192, 2, 4, 2, 16, 1e-6, 128, rope_theta=1e6, attention_bias=True)
QWEN3 = ModelConfig("qwen3", 389, 64, 130, 2, 6, 2, 32, 1e-6, 128, rope_theta=1e6, tie_word_embeddings=True)
MISTRAL = ModelConfig("mistral", 353, 128, 256, 2, 8, 2, 24, 1e-5, 128, sliding_window=16)


def _scaled(**fields: Any) -> ModelConfig:
    return dataclasses.replace(NINE_HEADS, rope_scaling=RopeScaling(**fields), max_position_embeddings=128)


CASES: Mapping[str, ModelConfig] = {
    "llama_nine_heads_tied": NINE_HEADS,
    "llama_seven_heads": SEVEN_HEADS,
    "llama_biases": BIASED,
    "llama_linear": _scaled(rope_type="linear", factor=4.0),
    "llama_dynamic": dataclasses.replace(
        _scaled(rope_type="dynamic", factor=2.0), max_position_embeddings=32, head_dim=12
    ),
    "llama_llama3": _scaled(rope_type="llama3", factor=8.0, original_max_position_embeddings=32),
    "llama_yarn": _scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    "llama_yarn_mscale": _scaled(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=32, mscale=1.5, mscale_all_dim=0.5, beta_fast=4.0
    ),
    "qwen2_untied": QWEN2,
    "qwen2_tied": dataclasses.replace(QWEN2, tie_word_embeddings=True, num_key_value_heads=4, head_dim=20),
    "qwen2_windows": dataclasses.replace(QWEN2, sliding_window=9, window_layers=(False, True)),
    "qwen3_tied": QWEN3,
    "qwen3_biases_windows": dataclasses.replace(
        QWEN3, tie_word_embeddings=False, attention_bias=True, sliding_window=11, window_layers=(False, True)
    ),
    "mistral_window": MISTRAL,
    "mistral_no_window": dataclasses.replace(MISTRAL, sliding_window=None, tie_word_embeddings=True),
}


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> F32:
    """The float32 weight of a name: uniform, with a spread that keeps activations near 1 and attention uneven."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    bits = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(math.prod(shape))
    # 24 random bits are exact in float32: uniform in [-1, 1).
    uniform = ((bits >> np.uint64(40)).astype(np.int64) - 2**23).astype(np.float32) * np.float32(2.0**-23)
    values = uniform.reshape(shape) * np.float32(_half_width(name, shape))
    return values + np.float32(1) if name.endswith("norm.weight") else values


def _half_width(name: str, shape: tuple[int, ...]) -> float:
    if name.endswith("norm.weight"):
        return 0.25
    if name.endswith(".bias"):
        return 0.5
    if "embed_tokens" in name:
        return 0.5
    gain = {"q_proj": 1.5, "k_proj": 1.5, "lm_head": 2.5}.get(name.split(".")[-2], 1.0)
    return gain * math.sqrt(3 / shape[-1])


def random_weights(config: ModelConfig, seed: int) -> dict[str, F32]:
    return {spec.name: random_tensor(spec.name, spec.shape, seed) for spec in weight_specs(config)}


def config_json(config: ModelConfig) -> dict[str, Any]:
    """config.json as Hugging Face writes it for this model."""
    fields = dataclasses.asdict(config)
    eos_token_ids, window_layers = fields.pop("eos_token_ids"), fields.pop("window_layers")
    fields["rope_scaling"] = _rope_scaling_json(config.rope_scaling)
    fields["model_type"] = fields.pop("architecture")
    if config.architecture in ("qwen2", "qwen3"):
        fields["use_sliding_window"] = config.sliding_window is not None
        windows = window_layers or (config.sliding_window is not None,) * config.num_hidden_layers
        fields["layer_types"] = ["sliding_attention" if windowed else "full_attention" for windowed in windows]
    return {
        **fields,
        "architectures": [ARCHITECTURES[config.architecture]],
        "eos_token_id": list(eos_token_ids) or None,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }


def _rope_scaling_json(scaling: RopeScaling) -> dict[str, Any] | None:
    if scaling.rope_type == "default":
        return None
    used = {"rope_type", "factor"}
    if scaling.rope_type == "llama3":
        used |= {"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    if scaling.rope_type == "yarn":
        used |= {"original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"}
        used |= {"mscale", "mscale_all_dim", "truncate"}
    fields = dataclasses.asdict(scaling)
    return {name: fields[name] for name in fields if name in used and fields[name] is not None}


def write_folder(folder: Path, config: ModelConfig, seed: int, *, num_shards: int = 1) -> Path:
    """A Hugging Face folder with these random float32 weights and a tokenizer of config.vocab_size tokens.

    One model.safetensors, or `num_shards` of them with model.safetensors.index.json. Needs vocab_size >= 260.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(config), indent=2))
    write_tokenizer(folder, config.vocab_size)
    weights = random_weights(config, seed)
    if num_shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    shard_of_name = {}
    for index in range(num_shards):
        file = f"model-{index + 1:05d}-of-{num_shards:05d}.safetensors"
        names = list(weights)[index::num_shards]
        save_file({name: weights[name] for name in names}, folder / file, metadata={"format": "pt"})
        shard_of_name.update(dict.fromkeys(names, file))
    total_bytes = sum(weight.nbytes for weight in weights.values())
    index_json = {"metadata": {"total_size": total_bytes}, "weight_map": shard_of_name}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_json, indent=2))
    return folder
