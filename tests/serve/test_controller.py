"""The wait for Serve's controller; Ray's list of actors is played."""

from __future__ import annotations

from concurrent.futures import Future
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

CONTROLLER = {"name": "SERVE_CONTROLLER_ACTOR", "namespace": "serve"}
# Importing Ray Serve warns of its own use of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def controller() -> ModuleType:
    return import_module("tinycluster.serve.controller")


@pytest.fixture
def listings(controller: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """What Ray answers, call after call."""
    answers: list[list[dict[str, Any]]] = []
    played = SimpleNamespace(util=SimpleNamespace(list_named_actors=lambda all_namespaces: answers.pop(0)))
    monkeypatch.setattr(controller, "ray", played)
    return answers


def test_the_wait_ends_when_ray_knows_of_the_controller(
    controller: ModuleType, listings: list[list[dict[str, Any]]]
) -> None:
    other = {"name": "SERVE_CONTROLLER_ACTOR", "namespace": "somebody's"}
    listings += [[], [other], [other, CONTROLLER], []]
    controller.await_registered(Future())
    assert listings == [[]]


def test_the_wait_ends_when_serve_cannot_be_started(
    controller: ModuleType, listings: list[list[dict[str, Any]]]
) -> None:
    failed: Future[None] = Future()
    failed.set_exception(RuntimeError("no room"))
    controller.await_registered(failed)
    assert listings == []
