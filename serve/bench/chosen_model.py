"""The model of a configuration that a benchmark is about."""

from __future__ import annotations

from tinycluster.cluster.config import ModelSettings, Settings
from tinycluster.engine.checkpoint import Checkpoint, open_checkpoint, validate
from tinycluster.engine.errors import ConfigError
from tinycluster.engine.models.registry import weight_specs
from tinycluster.engine.source import default_cache_dir, resolve
from tinycluster.serve.progress import Bars


def chosen_model(settings: Settings, name: str | None) -> ModelSettings:
    """The model of this name, or the first. ConfigError names what is there."""
    model = next((entry for entry in settings.models if name in (None, entry.name)), None)
    if model is None:
        names = ", ".join(entry.name for entry in settings.models)
        raise ConfigError(f"the configuration has no model {name!r}; it has {names}")
    return model


def opened(settings: Settings, model: ModelSettings) -> Checkpoint:
    """Its checkpoint, downloaded where it is not in the cache, and checked. ConfigError, CheckpointError."""
    cache_dir = settings.cluster.cache_dir or default_cache_dir()
    with Bars() as bars:
        path = resolve(model.source, sha256=model.sha256, cache_dir=cache_dir, progress=bars())
    checkpoint = open_checkpoint(path)
    validate(checkpoint, weight_specs(checkpoint.config))
    return checkpoint
