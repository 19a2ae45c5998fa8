"""Every route has an access level, and one that has none is closed."""

from __future__ import annotations

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from tests.attacks.conftest import routes
from tinycluster.serve.access import LEVELS, ClosedDoor, check_access, level_of
from tinycluster.serve.app import create_app
from tinycluster.serve.registry import ModelRegistry

PUBLIC = {"/", "/cluster", "/ui/{}", "/health", "/health/ready", "/health_generate"}


@pytest.mark.parametrize(("path", "route"), list(routes()), ids=lambda value: getattr(value, "path", None))
def test_every_route_declares_a_level_and_depends_on_it(path: str, route: APIRoute) -> None:
    """A dependency is what FastAPI's own routes have: another kind of route would be open."""
    assert isinstance(route, APIRoute)
    assert level_of(route.path) is not None
    assert [dependency.call for dependency in route.dependant.dependencies].count(check_access) == 1


def test_the_public_routes_are_the_health_checks_and_the_pages() -> None:
    assert {path for path, level in LEVELS.items() if level == "public"} == PUBLIC


def test_a_route_without_a_level_is_refused_when_it_is_asked() -> None:
    app = create_app(ModelRegistry())

    @app.get("/forgotten/{name}")
    async def forgotten(name: str) -> str:
        return name

    with TestClient(app, "http://localhost") as client:
        reply: httpx.Response = client.get("/forgotten/secret")
    assert reply.status_code == 403
    assert reply.json()["error"]["code"] == "permission_denied"
    assert "secret" not in reply.text


def test_a_server_that_does_not_know_its_keys_yet_is_closed() -> None:
    app = create_app(ModelRegistry())
    app.state.guard = ClosedDoor()
    with TestClient(app, "http://localhost") as client:
        statuses = {path: client.get(path).status_code for path in ("/health", "/", "/api/sessions", "/metrics")}
        assert statuses == {"/health": 200, "/": 200, "/api/sessions": 503, "/metrics": 503}
        assert client.post("/v1/conversations", json={}).status_code == 503
