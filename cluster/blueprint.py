"""What the driver decides once and every rank of a model must agree on. Pure: no process is started here."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from tinycluster.engine.checkpoint import Checkpoint, validate
from tinycluster.engine.errors import ConfigError
from tinycluster.engine.models.registry import build, weight_specs
from tinycluster.engine.models.spec import ModelConfig
from tinycluster.engine.models.stage import Stage
from tinycluster.engine.scheduler import SchedulerLimits
from tinycluster.kernels.formats import Format
from tinycluster.kernels.paged_cache import KVDtype, PagedCache
from tinycluster.kernels.passes import Activations
from tinycluster.kernels.program import KVShape
from tinycluster.parallel.mesh import Mesh
from tinycluster.parallel.units import Shares

if TYPE_CHECKING:
    # Ranks read a blueprint, and not the settings behind it.
    from tinycluster.cluster.config import ModelSettings, WeightsFormat

DEFAULT_MAX_MODEL_LEN = 4096


@dataclass(frozen=True)
class Blueprint:
    """One model on its mesh. `path` is where the driver found the model; other nodes resolve `source` themselves,
    into `cache_dir` or, where it is None, their own user's cache folder."""

    name: str
    path: Path
    source: str
    sha256: str | None
    cache_dir: Path | None
    digest: str
    mesh: Mesh
    stages: tuple[range, ...]
    weights: WeightsFormat
    activations: Activations
    max_model_len: int
    num_blocks: int
    block_tokens: int
    kv_dtype: KVDtype
    step_timeout_s: float

    @property
    def wanted_format(self) -> Format | None:
        return None if self.weights == "stored" else self.weights

    def stage(self, rank: int) -> Stage:
        stage = self.mesh.stage_of(rank)
        return Stage(self.stages[stage], is_first=stage == 0, is_last=stage == self.mesh.pipeline - 1)

    def shares(self, rank: int, config: ModelConfig) -> Shares:
        tensor_rank = self.mesh.tensor_rank_of(rank)
        return Shares(tensor_rank, self.mesh.rank_weights, config.num_attention_heads, config.num_key_value_heads)


def draw(
    model: ModelSettings, checkpoint: Checkpoint, *, path: Path, cache_dir: Path | None, step_timeout_s: float
) -> Blueprint:
    """Check a checkpoint against its settings and lay it out on the mesh. CheckpointError, ConfigError."""
    if model.device != "cpu":
        raise ConfigError(f"device of {model.name} must be cpu in this version, got {model.device}")
    config = checkpoint.config
    validate(checkpoint, weight_specs(config))
    mesh = Mesh(model.mesh.tensor, model.mesh.pipeline, model.mesh.weights, model.mesh.layers)
    try:
        stages = mesh.stage_layers(config.num_hidden_layers, head_cost=_head_cost(config))
    except ValueError as error:
        raise ConfigError(f"{model.name}: {error}") from None
    max_model_len = model.limits.max_model_len or min(config.max_context, DEFAULT_MAX_MODEL_LEN)
    if max_model_len > config.max_context:
        raise ConfigError(
            f"limits.max_model_len of {model.name} must be at most {config.max_context}, the positions that the model "
            f"is made for, got {max_model_len}"
        )
    return Blueprint(
        name=model.name,
        path=path,
        source=model.source if model.source.startswith(("pypi:", "hf:")) else str(path),
        sha256=model.sha256,
        cache_dir=cache_dir,
        digest=checkpoint.digest,
        mesh=mesh,
        stages=stages,
        weights=model.weights,
        activations=model.activations,
        max_model_len=max_model_len,
        num_blocks=_num_blocks(model, config, mesh, stages, max_model_len),
        block_tokens=model.kv_cache.block_tokens,
        kv_dtype=model.kv_cache.dtype,
        step_timeout_s=step_timeout_s,
    )


def scheduler_limits(model: ModelSettings, blueprint: Blueprint) -> SchedulerLimits:
    """A pipeline's first stage never learns the sampled tokens, so only a single stage may plan with pending ones."""
    limits = model.limits
    max_pending = 1 if blueprint.mesh.pipeline == 1 else 0
    return SchedulerLimits(
        blueprint.max_model_len,
        limits.max_running,
        limits.step_tokens,
        limits.max_waiting,
        limits.max_waiting_tokens,
        limits.max_ttft_s,
        max_pending=max_pending,
    )


def _head_cost(config: ModelConfig) -> float:
    """The head's work in layers: their weights' ratio."""
    specs = weight_specs(config)
    layer = sum(prod(spec.shape) for spec in specs if spec.name.startswith("model.layers.0."))
    return config.vocab_size * config.hidden_size / max(layer, 1)


def _num_blocks(
    model: ModelSettings, config: ModelConfig, mesh: Mesh, stages: tuple[range, ...], max_model_len: int
) -> int:
    """Blocks that fit kv_cache.memory on every rank, at most what all running requests can fill."""
    block_tokens, dtype = model.kv_cache.block_tokens, model.kv_cache.dtype
    block_bytes = max(PagedCache.bytes_per_block(kv, block_tokens, dtype) for kv in _kv_shapes(config, mesh, stages))
    num_useful = -(-max_model_len // block_tokens) * model.limits.max_running
    if block_bytes == 0:
        return num_useful
    num_blocks = min(model.kv_cache.memory_bytes // block_bytes, num_useful)
    num_needed = -(-max_model_len // block_tokens)
    if num_blocks < num_needed:
        raise ConfigError(
            f"kv_cache.memory of {model.name} must be at least {num_needed * block_bytes} bytes per rank for one "
            f"request of limits.max_model_len = {max_model_len} tokens, got {model.kv_cache.memory_bytes}"
        )
    return num_blocks


def _kv_shapes(config: ModelConfig, mesh: Mesh, stages: tuple[range, ...]) -> list[KVShape]:
    shares = [
        Shares(rank, mesh.rank_weights, config.num_attention_heads, config.num_key_value_heads)
        for rank in range(mesh.tensor)
    ]
    return [build(config, Stage(layers, False, False), share)[0].kv for layers in stages for share in shares]
