"""`tinycluster explain`: the plan of one rank, without starting any."""

from __future__ import annotations

from tinycluster.cluster.blueprint import draw
from tinycluster.cluster.config import Settings
from tinycluster.cluster.explain import explain
from tinycluster.engine.errors import ConfigError
from tinycluster.serve.bench.chosen_model import chosen_model, opened


def print_plan(settings: Settings, name: str | None, rank: int) -> None:
    """Of the model of this name, or the first. ConfigError for a rank that the mesh does not have."""
    model = chosen_model(settings, name)
    checkpoint = opened(settings, model)
    cluster = settings.cluster
    blueprint = draw(
        model, checkpoint, path=checkpoint.path, cache_dir=cluster.cache_dir, step_timeout_s=cluster.step_timeout_s
    )
    if not 0 <= rank < blueprint.mesh.size:
        raise ConfigError(f"--rank must be from 0 to {blueprint.mesh.size - 1}, got {rank}")
    limits = model.limits
    print(explain(blueprint, checkpoint, rank, max_tokens=limits.step_tokens, max_outputs=limits.max_running))
