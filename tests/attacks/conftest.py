"""One server over a fake engine for the attacks of a file, and the contract around each of its tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.routing import BaseRoute, Route

from tests.attacks.contract import Victim, victim
from tests.parity.random_model import NINE_HEADS, write_folder
from tinycluster.serve.app import create_app
from tinycluster.serve.registry import ModelRegistry

FAKE: dict[str, Any] = {"engine": "fake", "limits": {"header_timeout_s": 1.0}, "send_timeout_s": 0.5}


@pytest.fixture(scope="module")
def fake_server(request: pytest.FixtureRequest) -> Iterator[Victim]:
    """A file that needs other options defines VICTIM."""
    with victim({**FAKE, **getattr(request.module, "VICTIM", {})}) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small random model with a real tokenizer."""
    return str(write_folder(tmp_path_factory.mktemp("tiny"), NINE_HEADS, 3))


@pytest.fixture(scope="session")
def tiny_server(tiny_folder: str) -> Iterator[Victim]:
    """A real engine over the small model, with few blocks, so that requests are preempted."""
    limits = {"max_model_len": 128, "max_running": 64, "max_waiting": 256}
    model = {"name": "tiny", "source": tiny_folder, "limits": limits, "kv_cache": {"memory": "512KiB"}, "threads": 1}
    with victim({"engine": "real", "model": model}) as server:
        yield server


@pytest.fixture
def attacked(fake_server: Victim) -> Iterator[Victim]:
    """The server, with the contract checked after the test."""
    with fake_server.attack():
        yield fake_server


def routes() -> list[tuple[str, frozenset[str]]]:
    """Every path of the application with its methods, path parameters filled with a word."""
    methods: dict[str, set[str]] = {}
    for route in create_app(ModelRegistry()).routes:
        assert isinstance(route, Route), f"{route} is of a kind that the attacks do not cover yet"
        methods.setdefault(_filled(route), set()).update(route.methods or ())
    return [(path, frozenset(found)) for path, found in methods.items()]


def _filled(route: BaseRoute) -> str:
    assert isinstance(route, Route)
    parts = [part.partition("}")[2] for part in route.path.split("{")[1:]]
    return "absent".join([route.path.split("{")[0], *parts])


ROUTES = routes()
TAKING_BODIES = [path for path, methods in ROUTES if "POST" in methods]
