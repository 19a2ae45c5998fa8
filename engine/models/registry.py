"""From a config to the Program of one rank and the table of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tinycluster.engine.errors import CheckpointError
from tinycluster.engine.models import llama, mistral, qwen2, qwen3
from tinycluster.engine.models.spec import Architecture, ModelConfig
from tinycluster.engine.models.stage import Stage as Stage
from tinycluster.kernels.program import Program
from tinycluster.parallel.units import Shares, WeightSpec

Builder = Callable[[ModelConfig, Stage, Shares], tuple[Program, tuple[WeightSpec, ...]]]

BUILDERS: Mapping[Architecture, Builder] = MappingProxyType(
    {"llama": llama.build, "qwen2": qwen2.build, "qwen3": qwen3.build, "mistral": mistral.build}
)


def build(config: ModelConfig, stage: Stage, shares: Shares) -> tuple[Program, tuple[WeightSpec, ...]]:
    """What one rank of one stage runs, and the weights that it needs; a rank may hold no units of an axis.

    Raises CheckpointError for an architecture that is not built here and for heads that cannot be grouped.
    """
    if config.architecture not in BUILDERS:
        raise CheckpointError(f"architecture must be one of {', '.join(BUILDERS)}, got {config.architecture}")
    num_heads, num_kv_heads = config.num_attention_heads, config.num_key_value_heads
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise CheckpointError(
            f"num_attention_heads must be a multiple of num_key_value_heads, got {num_heads} and {num_kv_heads}"
        )
    return BUILDERS[config.architecture](config, stage, shares)


def weight_specs(config: ModelConfig) -> tuple[WeightSpec, ...]:
    """Every weight of the model, under its Hugging Face name, with its full shape and the way it is cut."""
    alone = Shares(0, (1.0,), config.num_attention_heads, config.num_key_value_heads)
    return build(config, Stage.whole(config), alone)[1]
