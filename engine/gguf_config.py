"""The metadata of a GGUF file as a ModelConfig, and its tensor names as Hugging Face's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinycluster.engine.models.spec import MAX_HEADS, Architecture, ModelConfig, RopeScaling

ARCHITECTURES: dict[str, Architecture] = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
GLOBAL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# The converter writes llama3's rope scaling as a tensor of divisors and drops all parameters but these defaults.
LLAMA3_LOW, LLAMA3_HIGH, LLAMA3_ORIGINAL = 1.0, 4.0, 8192


class MetadataError(ValueError):
    """A field is missing or cannot be used; the message lacks the file, which the caller knows."""


def hugging_face_name(name: str) -> str | None:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; None for a tensor that no model here uses."""
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if stem in GLOBAL_NAMES:
        return f"{GLOBAL_NAMES[stem]}.{kind}"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if match is None or match[2] not in BLOCK_NAMES:
        return None
    return f"model.layers.{match[1]}.{BLOCK_NAMES[match[2]]}.{kind}"


def row_order(num_heads: int, head_dim: int) -> NDArray[np.int64]:
    """(num_heads * head_dim,): the stored row of each of Hugging Face's rows of Q or K in a `llama` GGUF file.

    The file pairs rows (2i, 2i + 1) of a head for rotation, Hugging Face pairs (i, i + head_dim / 2).
    """
    stored = np.arange(num_heads * head_dim, dtype=np.int64).reshape(num_heads, head_dim // 2, 2)
    return stored.swapaxes(1, 2).reshape(-1)


def model_config(
    fields: Mapping[str, Any],
    *,
    vocab_size: int,
    tensor_names: frozenset[str],
    rope_divisors: NDArray[np.float32] | None,
    eos_token_ids: tuple[int, ...],
) -> ModelConfig:
    """Raises MetadataError. `tensor_names` are Hugging Face's; `rope_divisors` is the tensor rope_freqs.weight."""
    metadata = _Metadata(fields)
    num_heads = metadata.count("attention.head_count", most=MAX_HEADS)
    num_kv_heads = metadata.count("attention.head_count_kv", num_heads)
    hidden_size = metadata.count("embedding_length")
    head_dim = metadata.count("attention.key_length", hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise MetadataError(f"{num_heads} attention heads cannot share {num_kv_heads} key-value heads evenly")
    for key in ("attention.value_length", "rope.dimension_count"):
        if metadata.count(key, head_dim) != head_dim:
            raise MetadataError(f"{metadata.key(key)} must equal the head dimension {head_dim}")
    if metadata.count("expert_count", 0, least=0):
        raise MetadataError("mixture-of-experts models are not supported")
    window = metadata.count("attention.sliding_window", 0, least=0) or None
    architecture = ARCHITECTURES[metadata.architecture]
    return ModelConfig(
        architecture="mistral" if architecture == "llama" and window else architecture,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=metadata.count("feed_forward_length"),
        num_hidden_layers=metadata.count("block_count"),
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=metadata.real("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=metadata.count("context_length"),
        rope_theta=(theta := metadata.real("rope.freq_base", 10000.0)),
        rope_scaling=_rope_scaling(metadata, rope_divisors, theta, head_dim),
        tie_word_embeddings="lm_head.weight" not in tensor_names,
        attention_bias="model.layers.0.self_attn.q_proj.bias" in tensor_names,
        mlp_bias="model.layers.0.mlp.gate_proj.bias" in tensor_names,
        sliding_window=window,
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=eos_token_ids,
    )


class _Metadata:
    """The fields of the file's architecture, checked for their types."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        architecture = fields.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise MetadataError(f"architecture {architecture!r} is not supported; supported are {known}")
        self.architecture = architecture

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def get(self, name: str) -> Any:
        return self._fields.get(self.key(name))

    def count(self, name: str, default: int | None = None, *, least: int = 1, most: int = 2**31 - 1) -> int:
        value = self.get(name)
        value = default if value is None else value
        if value is None:
            raise MetadataError(f"field {self.key(name)} is missing")
        if type(value) is not int or not least <= value <= most:
            rule = f"at least {least}" if most == 2**31 - 1 else f"{least} to {most}"
            raise MetadataError(f"field {self.key(name)} must be a whole number of {rule}, got {value!r}")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        value = self.get(name)
        value = default if value is None else value
        if value is None:
            raise MetadataError(f"field {self.key(name)} is missing")
        if not isinstance(value, float) or not 0 < value < math.inf:
            raise MetadataError(f"field {self.key(name)} must be a positive number, got {value!r}")
        # The shortest decimal of the stored float32: 1e-05 rather than 9.999999747378752e-06, as config.json had it.
        return float(str(np.float32(value)))


def _rope_scaling(
    metadata: _Metadata, divisors: NDArray[np.float32] | None, theta: float, head_dim: int
) -> RopeScaling:
    kind = metadata.get("rope.scaling.type") or ("linear" if metadata.get("rope.scale_linear") else "none")
    if divisors is not None:
        return _llama3_scaling(divisors, theta, head_dim)
    if kind == "none":
        return RopeScaling()
    if kind == "linear":
        return RopeScaling("linear", factor=metadata.real("rope.scaling.factor", metadata.get("rope.scale_linear")))
    if kind == "yarn":
        return RopeScaling(
            "yarn",
            factor=metadata.real("rope.scaling.factor"),
            original_max_position_embeddings=metadata.count("rope.scaling.original_context_length"),
            beta_fast=metadata.real("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=metadata.real("rope.scaling.yarn_beta_slow", 1.0),
        )
    raise MetadataError(f"rope scaling {kind!r} is not supported; supported are none, linear, yarn and llama3")


def _llama3_scaling(divisors: NDArray[np.float32], theta: float, head_dim: int) -> RopeScaling:
    """Recover llama3's parameters from its divisors (Grattafiori et al. 2024), and check that they explain all."""
    scaling = RopeScaling(
        "llama3",
        factor=float(divisors.max(initial=0.0)),
        low_freq_factor=LLAMA3_LOW,
        high_freq_factor=LLAMA3_HIGH,
        original_max_position_embeddings=LLAMA3_ORIGINAL,
    )
    expected = llama3_divisors(scaling, theta, head_dim)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4, atol=0):
        raise MetadataError(
            "tensor rope_freqs.weight does not follow the llama3 rope scaling with its usual parameters"
        )
    return scaling


def llama3_divisors(scaling: RopeScaling, theta: float, head_dim: int) -> NDArray[np.float64]:
    """(head_dim / 2,): what each rotation frequency is divided by; 1 for high frequencies, `factor` for low ones."""
    assert scaling.original_max_position_embeddings is not None
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = scaling.original_max_position_embeddings * frequencies / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / scaling.factor + smooth))
