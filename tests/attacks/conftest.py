"""One server over a fake engine for the attacks of a file, and the contract around each of its tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.routing import Route

from tests.attacks.contract import Victim, victim
from tests.parity.random_model import NINE_HEADS, write_folder
from tinycluster.serve.app import create_app
from tinycluster.serve.openapi import document
from tinycluster.serve.registry import ModelRegistry

FAKE: dict[str, Any] = {"engine": "fake"}
# For tests that wait for the end of a server's patience, which a good client on a busy machine must not reach.
HASTY: dict[str, Any] = {**FAKE, "limits": {"header_timeout_s": 4.0, "send_timeout_s": 2.0}}


@pytest.fixture(scope="module")
def fake_server(request: pytest.FixtureRequest) -> Iterator[Victim]:
    """A file that needs other options defines VICTIM."""
    with victim({**FAKE, **getattr(request.module, "VICTIM", {})}) as server:
        yield server


@pytest.fixture(scope="module")
def hasty_server(request: pytest.FixtureRequest) -> Iterator[Victim]:
    with victim({**HASTY, **getattr(request.module, "VICTIM", {})}) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small random model with a real tokenizer."""
    return str(write_folder(tmp_path_factory.mktemp("tiny"), NINE_HEADS, 3))


@pytest.fixture(scope="session")
def tiny_options(tiny_folder: str) -> dict[str, Any]:
    """A real engine over the small model, with few blocks, so that requests are preempted."""
    limits = {"max_model_len": 128, "max_running": 64, "max_waiting": 256}
    cache = {"memory": "96KiB"}
    model = {"name": "tiny", "source": tiny_folder, "limits": limits, "kv_cache": cache, "threads": 1}
    return {"engine": "real", "model": model}


@pytest.fixture(scope="session")
def tiny_server(tiny_options: dict[str, Any]) -> Iterator[Victim]:
    with victim(tiny_options) as server:
        yield server


@pytest.fixture
def attacked(fake_server: Victim) -> Iterator[Victim]:
    """The server, with the contract checked after the test."""
    with fake_server.attack():
        yield fake_server


@pytest.fixture
def hasty(hasty_server: Victim) -> Iterator[Victim]:
    """As `attacked`, with little patience for clients that do not send or do not read."""
    with hasty_server.attack():
        yield hasty_server


def routes() -> Iterator[tuple[str, Route]]:
    """Every route of the application, with its path's parameters filled with a word."""
    for route in create_app(ModelRegistry()).routes:
        assert isinstance(route, Route), f"{route} is of a kind that the attacks do not cover yet"
        parts = [part.partition("}")[2] for part in route.path.split("{")[1:]]
        yield "absent".join([route.path.split("{")[0], *parts]), route


def methods_by_path() -> list[tuple[str, frozenset[str]]]:
    methods: dict[str, set[str]] = {}
    for path, route in routes():
        methods.setdefault(path, set()).update(route.methods or ())
    return [(path, frozenset(found)) for path, found in methods.items()]


def paths_that_take_bodies() -> list[str]:
    described = document()["paths"]
    return [
        path
        for path, route in routes()
        if "POST" in (route.methods or ()) and "requestBody" in described[route.path_format]["post"]
    ]


ROUTES = methods_by_path()
TAKING_BODIES = paths_that_take_bodies()
