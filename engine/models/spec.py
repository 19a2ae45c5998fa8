"""What a checkpoint says about its model, under Hugging Face's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Architecture = Literal["llama", "qwen2", "qwen3", "mistral"]
RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn"]


@dataclass(frozen=True)
class RopeScaling:
    """`rope_scaling` of config.json; fields that a type does not use keep their defaults."""

    rope_type: RopeType = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


MAX_HEADS = 1024
"""Ten times what models have: a damaged count must not cost more than the weights do."""


@dataclass(frozen=True)
class ModelConfig:
    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling = RopeScaling()
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    window_layers: tuple[bool, ...] | None = None
    """Per layer, whether `sliding_window` applies; None applies it to every layer."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def window(self) -> int | None:
        """How many positions every layer sees, None where one of them sees all."""
        return self.sliding_window if self.window_layers is None or all(self.window_layers) else None

    @property
    def max_context(self) -> int:
        """Positions that the model is made for, by training and by its rope scaling."""
        scaling = self.rope_scaling
        if scaling.rope_type in ("default", "llama3"):
            return self.max_position_embeddings
        base = scaling.original_max_position_embeddings or self.max_position_embeddings
        return max(self.max_position_embeddings, int(base * scaling.factor))
