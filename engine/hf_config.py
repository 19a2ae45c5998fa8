"""config.json and generation_config.json of a Hugging Face folder as a ModelConfig."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from tinycluster.engine.models.spec import MAX_HEADS, Architecture, ModelConfig, RopeScaling, RopeType

ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
ROPE_TYPES: tuple[RopeType, ...] = get_args(RopeType)


class FieldError(ValueError):
    """A field of config.json is missing or cannot be used; the message lacks the file, which the caller knows."""


def model_config(config: Mapping[str, Any], *, eos_token_ids: tuple[int, ...]) -> ModelConfig:
    """Raises FieldError. Fields that are absent take the defaults of the transformers library."""
    architecture = config.get("model_type")
    if architecture not in ARCHITECTURES:
        raise FieldError(f"model_type {architecture!r} is not supported; supported are {', '.join(ARCHITECTURES)}")
    _check_supported(config)
    num_heads = count(config, "num_attention_heads")
    if num_heads > MAX_HEADS:
        raise FieldError(f"num_attention_heads must be at most {MAX_HEADS}, got {num_heads}")
    num_kv_heads = count(config, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise FieldError(f"num_attention_heads {num_heads} must be a multiple of num_key_value_heads {num_kv_heads}")
    num_layers = count(config, "num_hidden_layers")
    hidden_size = count(config, "hidden_size")
    window, window_layers = _window(architecture, config, num_layers)
    return ModelConfig(
        architecture=architecture,
        vocab_size=count(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=count(config, "intermediate_size"),
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=count(config, "head_dim", 128 if architecture == "qwen3" else hidden_size // num_heads),
        rms_norm_eps=real(config, "rms_norm_eps", 1e-6),
        max_position_embeddings=count(config, "max_position_embeddings"),
        rope_theta=_rope_theta(config),
        rope_scaling=_rope_scaling(config),
        tie_word_embeddings=flag(config, "tie_word_embeddings"),
        # Qwen2 has biases on Q, K and V by definition, whatever the file says.
        attention_bias=architecture == "qwen2" or flag(config, "attention_bias"),
        mlp_bias=flag(config, "mlp_bias"),
        sliding_window=window,
        window_layers=window_layers,
        bos_token_id=next(iter(token_ids(config.get("bos_token_id"), "bos_token_id")), None),
        eos_token_ids=eos_token_ids,
    )


def _check_supported(config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise FieldError(f"hidden_act {activation!r} is not supported; it must be 'silu'")
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
        raise FieldError(
            f"quantization_config {method!r} is not supported in a folder; use plain weights or a GGUF file"
        )
    partial = _rope_fields(config).get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise FieldError(f"partial_rotary_factor must be 1, got {partial!r}")


def count(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if value is None:
        raise FieldError(f"{name} is missing")
    if type(value) is not int or not 1 <= value < 2**31:
        raise FieldError(f"{name} must be a positive whole number, got {value!r}")
    return value


def real(config: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = config.get(name)
    value = default if value is None else value
    if value is None:
        raise FieldError(f"{name} is missing")
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise FieldError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def flag(config: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = config.get(name)
    value = default if value is None else value
    if type(value) is not bool:
        raise FieldError(f"{name} must be true or false, got {value!r}")
    return value


def token_ids(value: Any, name: str) -> tuple[int, ...]:
    """eos_token_id and its kind: a number, a list of numbers, or null."""
    values = [] if value is None else value if isinstance(value, list) else [value]
    if any(type(token_id) is not int or token_id < 0 for token_id in values):
        raise FieldError(f"{name} must be a token id or a list of token ids, got {value!r}")
    return tuple(values)


def _window(
    architecture: Architecture, config: Mapping[str, Any], num_layers: int
) -> tuple[int | None, tuple[bool, ...] | None]:
    """Llama never has a window, Mistral has it on every layer, Qwen on some, if it is switched on."""
    is_qwen = architecture in ("qwen2", "qwen3")
    if architecture == "llama" or config.get("sliding_window") is None:
        return None, None
    if not is_qwen:
        return count(config, "sliding_window"), None
    if not flag(config, "use_sliding_window"):
        return None, None
    window = count(config, "sliding_window")
    layer_types = config.get("layer_types")
    if layer_types is None:
        first = config.get("max_window_layers", 28)
        if type(first) is not int or first < 0:
            raise FieldError(f"max_window_layers must be a whole number, got {first!r}")
        return window, tuple(layer >= first for layer in range(num_layers))
    known = ("full_attention", "sliding_attention")
    if not isinstance(layer_types, list) or len(layer_types) != num_layers or not set(layer_types) <= set(known):
        raise FieldError(f"layer_types must name {' or '.join(known)} for each of {num_layers} layers")
    return window, tuple(kind == "sliding_attention" for kind in layer_types)


def _rope_fields(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`rope_parameters` (transformers 5) or `rope_scaling`."""
    for name in ("rope_parameters", "rope_scaling"):
        fields = config.get(name)
        if fields is not None and not isinstance(fields, Mapping):
            raise FieldError(f"{name} must be an object, got {fields!r}")
        if fields:
            return fields
    return {}


def _rope_theta(config: Mapping[str, Any]) -> float:
    return real(_rope_fields(config), "rope_theta", real(config, "rope_theta", 10000.0))


def _rope_scaling(config: Mapping[str, Any]) -> RopeScaling:
    fields = _rope_fields(config)
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise FieldError(f"rope type {kind!r} is not supported; supported are {', '.join(ROPE_TYPES)}")
    if kind == "default":
        return RopeScaling()
    original = fields.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
    if original is None and kind == "llama3":
        raise FieldError("rope type 'llama3' needs original_max_position_embeddings")
    optional = {
        name: None if fields.get(name) is None else real(fields, name)
        for name in ("attention_factor", "mscale", "mscale_all_dim")
    }
    return RopeScaling(
        rope_type=kind,
        factor=real(fields, "factor"),
        low_freq_factor=real(fields, "low_freq_factor", 1.0),
        high_freq_factor=real(fields, "high_freq_factor", 4.0),
        original_max_position_embeddings=(
            None
            if original is None
            else count({"original_max_position_embeddings": original}, "original_max_position_embeddings")
        ),
        beta_fast=real(fields, "beta_fast", 32.0),
        beta_slow=real(fields, "beta_slow", 1.0),
        truncate=flag(fields, "truncate", True),
        **optional,
    )
