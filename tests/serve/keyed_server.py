"""A server with keys over a fake engine; keys are made in its database as `tinycluster keys` makes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.serve.fake_engine import FakeEngine
from tinycluster.cluster.config import Settings
from tinycluster.serve.app import create_app
from tinycluster.serve.configure import configure
from tinycluster.serve.fields import validated
from tinycluster.serve.http_server import HttpServer
from tinycluster.serve.key_guard import KeyGuard
from tinycluster.serve.listener import listen, url_of
from tinycluster.serve.new_key import NewKey, create_key, revoke_key
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.storage.storage import open_storage

MODEL = {"name": "fake", "source": "nowhere"}


class KeyedServer:
    def __init__(self, url: str, storage_url: str, engine: FakeEngine) -> None:
        self.url, self.storage_url, self.engine = url, storage_url, engine

    def make(self, name: str, **wanted: Any) -> str:
        """The key, made by another connection than the server's."""
        return self._with_keys(lambda keys: create_key(keys, validated(NewKey, {"name": name, **wanted})))[1]

    def revoke(self, name: str) -> None:
        self._with_keys(lambda keys: revoke_key(keys, name))

    def client(self, key: str | None) -> httpx.Client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20)

    def _with_keys(self, work: Any) -> Any:
        storage = open_storage(self.storage_url)
        try:
            return asyncio.run(work(storage.keys))
        finally:
            storage.close()


@contextmanager
def keyed_server(
    folder: Path, engine: FakeEngine | None = None, clock: Callable[[], float] | None = None, **server: Any
) -> Iterator[KeyedServer]:
    """`server` are further settings of the section. By `clock` limits flow back, and what is known of keys gets old."""
    storage_url = f"sqlite:///{folder / 'keys.db'}"
    section = {"auth": "keys", **server}
    tree = {
        "models": [MODEL],
        "cluster": {"address": "local"},
        "server": section,
        "storage": {"url": storage_url},
        "telemetry": {"log_dir": str(folder / "logs")},
    }
    settings = Settings.model_validate(tree)
    registry, engine = ModelRegistry(), engine or FakeEngine()
    with ExitStack() as running:
        app = create_app(registry)
        running.enter_context(configure(app, settings))
        if clock is not None:
            app.state.guard = KeyGuard(app.state.storage.keys, registry, clock)
        registry.add(engine)
        listener = listen("127.0.0.1", 0)
        http = HttpServer(app, listener)
        running.callback(registry.clear)
        running.callback(http.stop)
        http.start()
        yield KeyedServer(url_of(listener), storage_url, engine)
