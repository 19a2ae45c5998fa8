"""Responses in a database: after a restart, seen by another server, and where the database takes nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response

from tests.serve.fake_engine import FakeEngine
from tests.serve.stored_server import stored_server
from tests.serve.test_responses import read_events
from tinycluster.serve import responses_run
from tinycluster.serve.responses_fields import LOGPROBS


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A server that stops gives up what takes longer to be stored."""
    monkeypatch.setattr(responses_run, "STORE_S", 60.0)
    return f"sqlite:///{tmp_path / 'responses.db'}"


@pytest.fixture
def often_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers look every 10 ms at what others have done."""
    monkeypatch.setattr(responses_run, "WATCH_PERIOD_S", 0.01)


def until(find: Callable[[], Response], status: str) -> Response:
    while (found := find()).status != status:
        pass
    return found


def test_a_response_is_the_same_after_a_restart_and_can_be_continued(database: str) -> None:
    body = {"input": 'héllo "logprobs": []', "metadata": {"logprobs": "[]"}, "include": [LOGPROBS], "top_logprobs": 2}
    with stored_server(database) as server, httpx.Client(base_url=server.url) as client:
        whole = client.post("/v1/responses", json=body).json()
        streamed = read_events(client, {**body, "stream": True})[-1]["response"]
        items = client.get(f"/v1/responses/{whole['id']}/input_items").json()
    with stored_server(database) as server, httpx.Client(base_url=server.url) as client:
        for made in (whole, streamed):
            assert client.get(f"/v1/responses/{made['id']}").json() == made
        assert client.get(f"/v1/responses/{whole['id']}/input_items").json() == items
        after = client.post("/v1/responses", json={"input": "on", "previous_response_id": whole["id"]}).json()
        texts = [
            item["content"][0]["text"]
            for item in client.get(f"/v1/responses/{after['id']}/input_items?order=asc").json()["data"]
        ]
        assert texts == [body["input"], body["input"], "on"]
        assert client.delete(f"/v1/responses/{whole['id']}").status_code == 200
        assert client.get(f"/v1/responses/{whole['id']}").status_code == 404


def test_a_background_response_can_be_asked_for_at_another_server(database: str) -> None:
    engine = FakeEngine(gate=threading.Semaphore(0))
    servers = stored_server(database, engine), stored_server(database)
    with servers[0] as one, servers[1] as other, one.client() as here, other.client() as there:
        made = here.responses.create(model="fake", input="abc", background=True)
        assert there.responses.retrieve(made.id) == made
        with pytest.raises(openai.BadRequestError, match="in progress"):
            there.responses.create(model="fake", input="d", previous_response_id=made.id)
        gate = engine.gate
        assert gate is not None
        gate.release(10)
        found = until(lambda: there.responses.retrieve(made.id), "completed")
        assert found == here.responses.retrieve(made.id)
        assert there.responses.cancel(made.id).status == "completed"


@pytest.mark.usefixtures("often_watched")
@pytest.mark.parametrize("is_deleted", [False, True])
def test_another_server_can_end_a_background_response(database: str, is_deleted: bool) -> None:
    engine = FakeEngine(gate=threading.Semaphore(0))
    servers = stored_server(database, engine), stored_server(database)
    with servers[0] as one, servers[1] as other, one.client() as here, other.client() as there:
        made = here.responses.create(model="fake", input="abc", background=True)
        if is_deleted:
            there.responses.delete(made.id)
        else:
            assert there.responses.cancel(made.id).status == "cancelled"
        while engine.running:
            pass
        if not is_deleted:
            assert until(lambda: here.responses.retrieve(made.id), "cancelled").id == made.id
            assert there.responses.retrieve(made.id).status == "cancelled"
            return
        # The server that has generated it forgets it as soon as it has noticed.
        while httpx.get(f"{one.url}/v1/responses/{made.id}", headers=KEY).status_code == 200:
            pass
        assert httpx.get(f"{other.url}/v1/responses/{made.id}", headers=KEY).status_code == 404


KEY = {"authorization": "Bearer mine"}


def test_an_answer_that_cannot_be_stored_is_never_completed() -> None:
    with stored_server() as server, httpx.Client(base_url=server.url) as client:
        conversation = client.post("/v1/conversations", json={}).json()["id"]
        with server.full_disk():
            for body in ({}, {"background": True}, {"conversation": conversation}):
                answer = client.post("/v1/responses", json={"input": "abc", **body})
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
                assert "disk is full" in answer.json()["error"]["message"]
            events = read_events(client, {"input": "abc", "stream": True, "conversation": conversation})
            assert events[-1]["type"] == "response.failed"
            assert "response.completed" not in {event["type"] for event in events}
            assert [event["sequence_number"] for event in events] == list(range(len(events)))
            assert "disk is full" in events[-1]["response"]["error"]["message"]
            assert client.post("/v1/responses", json={"input": "abc", "store": False}).status_code == 200
            for path in ("/v1/conversations", f"/v1/conversations/{conversation}/items"):
                body = {"items": [{"role": "user", "content": "a"}]}
                assert client.post(path, json=body).status_code == 503
        assert server.engine.running == set()
        assert client.get(f"/v1/conversations/{conversation}/items").json()["data"] == []
        assert client.post("/v1/responses", json={"input": "abc"}).status_code == 200


def test_a_background_response_whose_end_is_not_taken_has_failed_and_is_stored_later(
    monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    monkeypatch.setattr(responses_run, "TRY_AGAIN_S", [0.01] * 10_000)
    engine = FakeEngine(gate=threading.Semaphore(0))
    with stored_server(database, engine) as server, server.client() as api, stored_server(database) as other:
        made = api.responses.create(model="fake", input="abc", background=True)
        with server.full_disk():
            gate = engine.gate
            assert gate is not None
            gate.release(10)
            found = until(lambda: api.responses.retrieve(made.id), "failed")
            assert found.error is not None
            assert "disk is full" in found.error.message
        with other.client() as there:
            assert until(lambda: there.responses.retrieve(made.id), "failed").error == found.error


def test_what_a_stopping_server_was_generating_has_failed(database: str) -> None:
    with stored_server(database, FakeEngine(gate=threading.Semaphore(0))) as server, server.client() as api:
        made = api.responses.create(model="fake", input="abc", background=True)
    with stored_server(database) as server, server.client() as api:
        found = api.responses.retrieve(made.id)
        assert found.status == "failed"
        assert found.error is not None
        assert "stopped" in found.error.message


def test_a_stream_that_is_left_is_stored_as_cancelled(database: str) -> None:
    engine = FakeEngine(gate=threading.Semaphore(0))
    with stored_server(database, engine) as server, httpx.Client(base_url=server.url) as client:
        with client.stream("POST", "/v1/responses", json={"input": "abc", "stream": True}) as stream:
            lines = stream.iter_lines()
            while '"response.in_progress"' not in (line := next(lines)):
                pass
            shown: Any = json.loads(line.removeprefix("data: "))["response"]
            assert client.get(f"/v1/responses/{shown['id']}").json() == shown
        while client.get(f"/v1/responses/{shown['id']}").json()["status"] == "in_progress":
            pass
    with stored_server(database) as server:
        assert httpx.get(f"{server.url}/v1/responses/{shown['id']}").json()["status"] == "cancelled"
