"""Responses that are stored: found, continued, listed, cancelled and deleted, by their own client only."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine, WholeChat
from tinycluster.serve.app import create_app
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.responses_items import MAX_ITEMS
from tinycluster.serve.storage.tables import responses

COUNT = select(func.count()).select_from(responses)


@pytest.fixture
def api(fake_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fake_url}/v1", api_key="mine", max_retries=0) as api:
        yield api


def test_a_conversation_goes_on_from_a_previous_response(api: openai.OpenAI, fake_url: str) -> None:
    first = api.responses.create(model="fake", input="one", instructions="not carried over")
    second = api.responses.create(model="fake", input="two", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    items = api.responses.input_items.list(second.id, order="asc").data
    assert [(item.role, item.content[0].text) for item in items] == [  # type: ignore[union-attr]
        ("user", "one"),
        ("assistant", "one"),
        ("user", "two"),
    ]


def test_instructions_are_of_one_response_only(start_server: StartServer) -> None:
    with httpx.Client(base_url=start_server(FakeEngine(tokenizer=WholeChat()))) as client:
        first = client.post("/v1/responses", json={"input": "12", "instructions": "345"}).json()
        second = client.post("/v1/responses", json={"input": "6", "previous_response_id": first["id"]}).json()
    assert first["usage"]["input_tokens"] == len("34512")
    assert second["usage"]["input_tokens"] == len("12" + "34512" + "6")


def test_input_items_come_in_pages_newest_first(api: openai.OpenAI) -> None:
    texts = ["a", "b", "c", "d", "e"]
    made = api.responses.create(model="fake", input=[{"role": "user", "content": text} for text in texts])
    page = api.responses.input_items.list(made.id, limit=2)
    assert page.has_more
    assert [item.content[0].text for item in page.data] == ["e", "d"]  # type: ignore[union-attr]
    assert [item.content[0].text for item in page] == texts[::-1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("query", "param"), [("limit=0", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=none", "after")]
)
def test_a_wrong_page_is_refused(client: httpx.Client, query: str, param: str) -> None:
    made = client.post("/v1/responses", json={"input": "a"}).json()
    answer = client.get(f"/v1/responses/{made['id']}/input_items?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_deleted_response_is_gone(api: openai.OpenAI, client: httpx.Client) -> None:
    made = api.responses.create(model="fake", input="a")
    api.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        api.responses.delete(made.id)


def test_what_is_not_stored_cannot_be_found_or_continued(api: openai.OpenAI) -> None:
    made = api.responses.create(model="fake", input="a", store=False)
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as refused:
        api.responses.create(model="fake", input="b", previous_response_id=made.id)
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")


def test_another_clients_response_does_not_exist(api: openai.OpenAI, fake_url: str) -> None:
    made = api.responses.create(model="fake", input="a", background=True)
    nobody = httpx.get(f"{fake_url}/v1/responses/resp_0")
    for key in ("other", None):
        with httpx.Client(base_url=fake_url, headers={"authorization": f"Bearer {key}"} if key else {}) as other:
            found = other.get(f"/v1/responses/{made.id}")
            assert found.status_code == 404
            assert found.text.replace(made.id, "resp_0") == nobody.text
            assert other.get(f"/v1/responses/{made.id}/input_items").status_code == 404
            assert other.post(f"/v1/responses/{made.id}/cancel").status_code == 404
            assert other.delete(f"/v1/responses/{made.id}").status_code == 404
            body = {"input": "b", "previous_response_id": made.id}
            assert other.post("/v1/responses", json=body).json()["error"]["code"] == "previous_response_not_found"
    assert api.responses.retrieve(made.id).id == made.id


def test_a_background_response_is_asked_for_until_it_is_there(api: openai.OpenAI) -> None:
    made = api.responses.create(model="fake", input="abc", background=True)
    assert (made.background, made.error) == (True, None)
    while made.status == "in_progress":
        made = api.responses.retrieve(made.id)
    assert (made.status, made.output_text) == ("completed", "abc")


def test_a_background_response_can_be_cancelled_and_frees_the_engine(start_server: StartServer) -> None:
    engine = FakeEngine(gate=threading.Semaphore(0))
    with openai.OpenAI(base_url=f"{start_server(engine)}/v1", api_key="mine", max_retries=0) as api:
        made = api.responses.create(model="fake", input="abc", background=True)
        with pytest.raises(openai.BadRequestError, match="in progress"):
            api.responses.create(model="fake", input="d", previous_response_id=made.id)
        assert api.responses.cancel(made.id).status == "cancelled"
        assert engine.running == set()
        assert api.responses.retrieve(made.id).status == "cancelled"
        assert api.responses.cancel(made.id).status == "cancelled"


def test_deleting_a_response_in_progress_frees_the_engine(start_server: StartServer) -> None:
    engine = FakeEngine(gate=threading.Semaphore(0))
    with openai.OpenAI(base_url=f"{start_server(engine)}/v1", api_key="mine", max_retries=0) as api:
        made = api.responses.create(model="fake", input="abc", background=True)
        api.responses.delete(made.id)
        assert engine.running == set()
        with pytest.raises(openai.NotFoundError):
            api.responses.retrieve(made.id)


def test_only_a_background_response_can_be_cancelled(api: openai.OpenAI) -> None:
    made = api.responses.create(model="fake", input="a")
    with pytest.raises(openai.BadRequestError, match="background"):
        api.responses.cancel(made.id)


def test_an_answer_that_fails_as_a_whole_is_not_stored() -> None:
    registry = ModelRegistry()
    registry.add(FakeEngine())  # type: ignore[arg-type]
    app = create_app(registry)
    with TestClient(app) as client:
        assert client.post("/v1/responses", json={"input": "kept"}).status_code == 200
        for stream in (False, True):
            assert client.post("/v1/responses", json={"input": "lost at once", "stream": stream}).status_code == 503
        assert client.post("/v1/responses", json={"input": "lost"}).status_code == 503
    counted = app.state.storage.database.read_now(lambda connection: connection.execute(COUNT).scalar())
    assert counted == 1


def test_a_failed_background_response_tells_why(client: httpx.Client) -> None:
    made = client.post("/v1/responses", json={"input": "lost", "background": True}).json()
    while made["status"] == "in_progress":
        made = client.get(f"/v1/responses/{made['id']}").json()
    assert (made["status"], made["error"]["message"]) == ("failed", "rank 1 was lost")


def test_a_conversation_that_is_too_large_is_refused(client: httpx.Client) -> None:
    items = [{"role": "user", "content": "a"}] * (MAX_ITEMS + 1)
    answer = client.post("/v1/responses", json={"input": items})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")
    made: dict[str, Any] = {}
    while "error" not in made or made["error"] is None:
        body = {"input": items[:MAX_ITEMS], "previous_response_id": made.get("id")}
        made = client.post("/v1/responses", json=body).json()
    assert (made["error"]["code"], made["error"]["param"]) == ("context_length_exceeded", "input")
