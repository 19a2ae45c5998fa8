"""Servers whose storage a test chooses, looks into and breaks; with a URL as argument, a process that is one."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import openai

from tests.serve.fake_engine import FakeEngine
from tinycluster.serve.app import create_app
from tinycluster.serve.http_server import HttpServer
from tinycluster.serve.listener import listen, url_of
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.storage.errors import StorageError
from tinycluster.serve.storage.servers import Presence, present
from tinycluster.serve.storage.storage import Storage, open_storage


@dataclass
class StoredServer:
    url: str
    storage: Storage
    engine: FakeEngine

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="mine", max_retries=0)

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Inside, nothing can be written; what is stored can be read."""
        database: Any = self.storage.database
        database.write = _refused
        try:
            yield
        finally:
            del database.write


async def _refused(_work: Callable[..., Any]) -> NoReturn:
    raise StorageError("The server's storage does not work: its disk is full")


@contextmanager
def stored_server(url: str = "memory", engine: FakeEngine | None = None) -> Iterator[StoredServer]:
    """One server over one fake engine and the database at `url`."""
    engine = engine or FakeEngine()
    with ExitStack() as running:
        registry = ModelRegistry()
        registry.add(engine)  # type: ignore[arg-type]
        app = create_app(registry)
        app.state.storage = running.enter_context(closing(open_storage(url)))
        listener = listen("127.0.0.1", 0)
        server = HttpServer(app, listener)
        running.callback(registry.clear)
        running.callback(server.stop)
        server.start()
        yield StoredServer(url_of(listener), app.state.storage, engine)


@contextmanager
def stored_process(url: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Such a server as a process of its own, and its URL. At the end it is killed, if it still runs."""
    command = [sys.executable, "-m", "tests.serve.stored_server", url, *options]
    root, pipe = Path(__file__).parent.parent.parent, subprocess.PIPE
    with subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def main(url: str, gate: str = "") -> None:
    """With "gated" the engine gives one token of each answer, and no second one."""
    engine = FakeEngine(gate=threading.Semaphore(0) if gate == "gated" else None)
    with stored_server(url, engine) as server, present(Presence(server.storage.database, server.storage.server_id)):
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
