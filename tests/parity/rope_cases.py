"""Rope settings of well-known models, and the ones that reach every branch; goldens.npz holds transformers' tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinycluster.engine.models.spec import ModelConfig, RopeScaling

POSITIONS = (0, 1, 2, 3, 63, 64, 65, 1021, 2047)


def _config(head_dim: int, theta: float, length: int, **scaling: Any) -> ModelConfig:
    rope_scaling = RopeScaling(**scaling)
    return ModelConfig(
        "llama", 300, 2 * head_dim, 64, 1, 2, 1, head_dim, 1e-5, length, rope_theta=theta, rope_scaling=rope_scaling
    )


ROPE_CASES: Mapping[str, ModelConfig] = {
    "default": _config(64, 1e4, 2048),
    "default_odd_half": _config(10, 1e4, 2048),
    "default_high_base": _config(128, 1e6, 40960),
    "linear": _config(64, 1e4, 2048, rope_type="linear", factor=4.0),
    "dynamic_short": _config(64, 1e4, 4096, rope_type="dynamic", factor=2.0),
    "dynamic_long": _config(64, 1e4, 512, rope_type="dynamic", factor=2.0),
    "llama3": _config(128, 5e5, 131072, rope_type="llama3", factor=8.0, original_max_position_embeddings=8192),
    "llama3_32": _config(64, 5e5, 131072, rope_type="llama3", factor=32.0, original_max_position_embeddings=8192),
    "llama3_factors": _config(
        96, 1e4, 4096, rope_type="llama3", factor=3.0, low_freq_factor=0.5, high_freq_factor=16.0
    ),
    "yarn": _config(128, 1e6, 131072, rope_type="yarn", factor=4.0, original_max_position_embeddings=32768),
    "yarn_mscale": _config(
        64, 1e4, 163840, rope_type="yarn", factor=40.0, original_max_position_embeddings=4096, mscale=1.0,
        mscale_all_dim=0.707,
    ),
    "yarn_untruncated": _config(
        64, 1e4, 8192, rope_type="yarn", factor=4.0, original_max_position_embeddings=2048, truncate=False,
        beta_fast=16.0, beta_slow=2.0,
    ),
    "yarn_attention_factor": _config(64, 1e4, 8192, rope_type="yarn", factor=4.0, attention_factor=1.5),
    "yarn_factor_one": _config(64, 1e4, 8192, rope_type="yarn", factor=1.0),
    "yarn_narrow": _config(8, 1e4, 64, rope_type="yarn", factor=2.0, beta_fast=2.0, beta_slow=2.0),
}  # fmt: skip
TABLE_LENGTH = POSITIONS[-1] + 1
