"""A real server on a free port, over fake engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.serve.fake_engine import FakeEngine, WholeChat
from tinycluster.serve.app import create_app
from tinycluster.serve.http_server import HttpServer
from tinycluster.serve.listener import listen, url_of
from tinycluster.serve.registry import ModelRegistry

StartServer = Callable[..., str]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """start_server(engine, ...) -> URL. Every server is stopped at the end of the test."""
    started = ExitStack()

    def start(*engines: FakeEngine) -> str:
        registry = ModelRegistry()
        for engine in engines:
            registry.add(engine)
        listener = listen("127.0.0.1", 0)
        server = HttpServer(create_app(registry), listener)
        started.callback(registry.clear)
        started.callback(server.stop)
        server.start()
        return url_of(listener)

    with started:
        yield start


@pytest.fixture(scope="module")
def fake_url() -> Iterator[str]:
    """One server with one ungated fake engine, for tests that leave nothing behind in it."""
    registry = ModelRegistry()
    registry.add(FakeEngine())
    listener = listen("127.0.0.1", 0)
    server = HttpServer(create_app(registry), listener)
    server.start()
    yield url_of(listener)
    server.stop()
    registry.clear()


@pytest.fixture
def client(fake_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fake_url, timeout=60) as client:
        yield client


@pytest.fixture
def chat(start_server: StartServer) -> Iterator[httpx.Client]:
    """A server whose answers repeat the whole conversation, so that they show what the prompt was."""
    with httpx.Client(base_url=start_server(FakeEngine(tokenizer=WholeChat())), timeout=60) as client:
        yield client
