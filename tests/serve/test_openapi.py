"""The document at /openapi.json against the routes that are there, and the server against the document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine
from tests.serve.keyed_server import keyed_server
from tests.serve.openai_specification import served_part
from tests.serve.schemathesis_run import TIMEOUT_S, run_schemathesis
from tinycluster.serve.app import create_app
from tinycluster.serve.openapi import OPERATIONS, document
from tinycluster.serve.registry import ModelRegistry

pytestmark = pytest.mark.timeout(TIMEOUT_S + 100)


def test_every_route_is_described_and_nothing_else() -> None:
    routes = create_app(ModelRegistry()).routes
    there = {(method, route.path_format) for route in routes if isinstance(route, APIRoute) for method in route.methods}
    assert all(isinstance(route, APIRoute) for route in routes)
    assert there == set(OPERATIONS)


def test_the_document_is_served_as_it_is_made(client: httpx.Client) -> None:
    assert client.get("/openapi.json").json() == json.loads(json.dumps(document()))


def test_every_reference_of_the_document_leads_somewhere() -> None:
    described = document()

    def references(part: Any) -> list[str]:
        if isinstance(part, dict):
            own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
            return own + [name for value in part.values() for name in references(value)]
        return [name for value in part for name in references(value)] if isinstance(part, list) else []

    found = references(described)
    assert found
    assert {name.removeprefix("#/components/schemas/") for name in found} == set(described["components"]["schemas"])


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for path in document()["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names)) == len(OPERATIONS)


# A schema cannot say everything that a request has to fulfil, so that a right one may be refused, too.
OUR_OWN = ("--phases", "coverage,fuzzing,stateful", "--exclude-checks", "positive_data_acceptance")
# A stream without an end has no answer that could be read.
ENDLESS = ("--exclude-path", "/api/cluster/events")
# OpenAI's document tells of requests that this server refuses, and only of good answers.
OPENAIS = ("--phases", "fuzzing", "--checks", "not_a_server_error,response_schema_conformance,content_type_conformance")


def test_no_answer_contradicts_our_own_document(start_server: StartServer, tmp_path: Path) -> None:
    engine = FakeEngine()
    run_schemathesis(f"{start_server(engine)}/openapi.json", tmp_path, *OUR_OWN, *ENDLESS, "--max-examples", "3")
    assert len(engine.submitted) > 100


def test_no_answer_of_a_server_with_keys_contradicts_its_document(tmp_path: Path) -> None:
    """Among its checks: that what needs a key refuses requests without one, and with a wrong one."""
    with keyed_server(tmp_path) as server:
        key = server.make("schemathesis", role="admin")
        with server.client(key) as client:
            document = tmp_path / "openapi.json"
            document.write_text(client.get("/openapi.json").text, encoding="utf-8")
        options = ("--phases", "coverage", "--exclude-checks", "positive_data_acceptance", "--max-examples", "1")
        where = ("--url", server.url, "--header", f"Authorization: Bearer {key}")
        run_schemathesis(str(document), tmp_path, *options, *ENDLESS, *where)
        assert len(server.engine.submitted) > 10


def test_no_answer_contradicts_openais_document(start_server: StartServer, tmp_path: Path) -> None:
    engine = FakeEngine()
    document = tmp_path / "openapi.json"
    document.write_text(served_part(engine.name), encoding="utf-8")
    url = f"{start_server(engine)}/v1"
    run_schemathesis(str(document), tmp_path, *OPENAIS, "--url", url, "--max-examples", "20", "--mode", "positive")
    assert len(engine.submitted) > 5


def test_an_answer_that_contradicts_the_document_is_seen(start_server: StartServer, tmp_path: Path) -> None:
    class Odd(FakeEngine):
        num_running = "many"  # type: ignore[assignment]
        num_waiting = ""

    document = f"{start_server(Odd())}/openapi.json"
    with pytest.raises(AssertionError, match=r"GET /load"):
        run_schemathesis(document, tmp_path, *OUR_OWN, "--max-examples", "1", "--include-path", "/load")
