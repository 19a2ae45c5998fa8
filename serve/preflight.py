"""What can be known to fail before any process is started: the front, the port and the models' files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinycluster.cluster.blueprint import Blueprint, draw
from tinycluster.cluster.config import Settings
from tinycluster.engine.checkpoint import open_checkpoint
from tinycluster.engine.errors import ConfigError
from tinycluster.engine.source import default_cache_dir, resolve
from tinycluster.serve.listener import is_loopback, listen
from tinycluster.serve.tls import tls_context

if TYPE_CHECKING:
    from tinycluster.cluster.loading import NewProgress


def check_exposure(settings: Settings) -> None:
    """ConfigError where other machines could reach a server that asks nobody for a key."""
    server = settings.server
    if server.auth == "none" and not server.insecure and not is_loopback(server.host):
        raise ConfigError(
            f"server.host {server.host} lets other machines in and server.auth is none: "
            "set server.auth to keys, or say --insecure (server.insecure: true)"
        )


def check_tls(settings: Settings) -> None:
    """ConfigError where the files cannot be used, or where it is not our own server that listens."""
    is_ours = settings.server.front == "direct" or settings.cluster.address == "local"
    if settings.server.tls is not None and not is_ours:
        raise ConfigError("server.tls needs server.front: direct; Ray Serve's proxy speaks plain HTTP")
    tls_context(settings.server.tls)


def check_front(settings: Settings) -> None:
    """ConfigError for a front that cannot serve these settings; local mode has only its own server."""
    front, replicas = settings.server.front, settings.server.replicas
    if settings.cluster.address == "local":
        if replicas > 1:
            raise ConfigError(f"server.replicas must be 1 in local mode, got {replicas}")
    elif front == "direct" and replicas > 1:
        raise ConfigError(f"server.front must be proxy for several replicas, got direct and {replicas} replicas")
    elif replicas > 1 and not (settings.storage.url or "").startswith(("postgresql", "memory")):
        # Ray may put them on different machines, where each would have a file of its own.
        raise ConfigError(
            f"storage.url must be postgresql://… for {replicas} replicas, which share their conversations, or memory"
        )


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
