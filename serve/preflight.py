"""What can be known to fail before any process is started: the front, the port and the models' files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinycluster.cluster.blueprint import Blueprint, draw
from tinycluster.cluster.config import Settings
from tinycluster.engine.checkpoint import open_checkpoint
from tinycluster.engine.errors import ConfigError
from tinycluster.engine.source import default_cache_dir, resolve
from tinycluster.serve.listener import listen

if TYPE_CHECKING:
    from tinycluster.cluster.loading import NewProgress


def check_front(settings: Settings) -> None:
    """ConfigError for a front that cannot serve these settings; local mode has only its own server."""
    front, replicas = settings.server.front, settings.server.replicas
    if settings.cluster.address == "local":
        if replicas > 1:
            raise ConfigError(f"server.replicas must be 1 in local mode, got {replicas}")
    elif front == "haproxy":
        raise ConfigError("server.front must be direct or proxy, got haproxy")
    elif front == "direct" and replicas > 1:
        raise ConfigError(f"server.front must be proxy for several replicas, got direct and {replicas} replicas")


def with_free_port(settings: Settings) -> Settings:
    """The settings with a real port: Serve's proxy does not say which one it took for port 0. ConfigError if taken."""
    server = settings.server
    with listen(server.host, server.port) as listener:
        port = listener.getsockname()[1]
    return settings.model_copy(update={"server": server.model_copy(update={"port": port})})


def check_models(settings: Settings, progress: NewProgress) -> dict[str, Blueprint]:
    """Download what is missing and lay every model out on its mesh, by name. ConfigError, CheckpointError."""
    cluster = settings.cluster
    cache_dir = cluster.cache_dir or default_cache_dir()
    blueprints = {}
    for model in settings.models:
        path = resolve(model.source, sha256=model.sha256, cache_dir=cache_dir, progress=progress()).absolute()
        blueprints[model.name] = draw(
            model,
            open_checkpoint(path),
            path=path,
            cache_dir=cluster.cache_dir,
            step_timeout_s=cluster.step_timeout_s,
        )
    return blueprints
