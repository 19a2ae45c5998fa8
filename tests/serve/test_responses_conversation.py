"""/v1/responses within a conversation: what it continues, and what it leaves there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.serve.fake_engine import FakeEngine, WholeChat
from tests.serve.openai_specification import violations
from tests.serve.stored_server import StoredServer, stored_server
from tinycluster.serve.identity import client_of_token
from tinycluster.serve.storage.records import NewMessage, NewTurn

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
ADD: Any = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": False}


@pytest.fixture(scope="module")
def server() -> Iterator[StoredServer]:
    with stored_server(engine=FakeEngine(tokenizer=WholeChat())) as server:
        yield server


@pytest.fixture
def api(server: StoredServer) -> Iterator[openai.OpenAI]:
    with server.client() as api:
        yield api


def items_of(api: openai.OpenAI, conversation_id: str) -> list[Any]:
    return list(api.conversations.items.list(conversation_id, order="asc"))


def texts(api: openai.OpenAI, conversation_id: str) -> list[tuple[str, str]]:
    return [(item.role, item.content[0].text) for item in items_of(api, conversation_id)]


def user(text: str) -> Any:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("kind", ["whole", "stream", "background"])
def test_a_response_continues_the_conversation_and_is_added_to_it(api: openai.OpenAI, kind: str) -> None:
    made = api.conversations.create(items=[user("a")])
    for asked, answered in (("b", "ab"), ("c", "abab" + "c")):
        body: dict[str, Any] = {"model": "fake", "input": asked, "conversation": made.id}
        if kind == "stream":
            *_, last = api.responses.create(**body, stream=True)
            response = last.response
        else:
            response = api.responses.create(**body, background=kind == "background")
        while response.status == "in_progress":
            response = api.responses.retrieve(response.id)
        assert (response.status, response.output_text) == ("completed", answered)
        assert response.conversation is not None
        assert response.conversation.id == made.id
        listed = items_of(api, made.id)
        assert listed[-1].id == response.output[0].id
        assert texts(api, made.id)[-2:] == [("user", asked), ("assistant", answered)]
        before = api.responses.input_items.list(response.id, order="asc").data
        assert [item.content[0].text for item in before] == [item.content[0].text for item in listed[:-1]]  # type: ignore[union-attr]


def test_a_conversation_is_named_by_its_id_or_an_object(api: openai.OpenAI) -> None:
    made = api.conversations.create()
    response = api.responses.create(model="fake", input="a", conversation={"id": made.id})
    assert violations("Response", response.to_dict()) == []
    assert texts(api, made.id) == [("user", "a"), ("assistant", "a")]


def test_an_unknown_conversation_is_not_found(api: openai.OpenAI, server: StoredServer) -> None:
    with pytest.raises(openai.NotFoundError) as missed:
        api.responses.create(model="fake", input="a", conversation="conv_0")
    assert missed.value.param == "conversation"
    assert server.engine.running == set()


def test_only_an_answer_that_was_not_lost_or_left_is_added(api: openai.OpenAI) -> None:
    made = api.conversations.create()
    with pytest.raises(openai.InternalServerError):
        api.responses.create(model="fake", input="lost", conversation=made.id)
    streamed = api.responses.create(model="fake", input="lost", conversation=made.id, stream=True)
    assert [event.type for event in streamed][-1] == "response.failed"
    assert items_of(api, made.id) == []
    api.responses.create(model="fake", input="abc", conversation=made.id, max_output_tokens=2)
    assert texts(api, made.id) == [("user", "abc"), ("assistant", "ab")]
    assert [item.status for item in items_of(api, made.id)] == ["completed", "incomplete"]


def test_calls_and_their_results_are_items(api: openai.OpenAI, server: StoredServer) -> None:
    made = api.conversations.create()
    called = api.responses.create(model="fake", input=CALL, tools=[ADD], conversation=made.id)
    (call,) = called.output
    assert call.type == "function_call"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "2"}
    api.responses.create(model="fake", input=[result], tools=[ADD], conversation=made.id)
    listed = items_of(api, made.id)
    assert [item.type for item in listed[:3]] == ["message", "function_call", "function_call_output"]
    assert listed[1].to_dict() == call.to_dict()
    headers = {"authorization": "Bearer mine"}
    session = httpx.get(f"{server.url}/api/sessions/{made.id}", headers=headers).json()
    assert [message["content"] for message in session["messages"]][1:3] == ['add({"a": 1})', "2"]
    assert listed[2].output == "2"


def test_a_response_of_a_conversation_can_be_continued_outside_of_it(api: openai.OpenAI) -> None:
    made = api.conversations.create(items=[user("a")])
    first = api.responses.create(model="fake", input="b", conversation=made.id)
    second = api.responses.create(model="fake", input="c", previous_response_id=first.id)
    assert second.output_text == "ab" + "ab" + "c"
    assert second.conversation is None
    assert len(items_of(api, made.id)) == 3


def test_what_was_said_meanwhile_stays_and_the_answer_comes_after_it() -> None:
    engine = FakeEngine(gate=threading.Semaphore(0))
    with stored_server(engine=engine) as server, server.client() as api:
        made = api.conversations.create()
        response = api.responses.create(model="fake", input="abc", conversation=made.id, background=True)
        api.conversations.items.create(made.id, items=[user("meanwhile")])
        gate = engine.gate
        assert gate is not None
        gate.release(10)
        while response.status == "in_progress":
            response = api.responses.retrieve(response.id)
        assert texts(api, made.id) == [("user", "meanwhile"), ("user", "abc"), ("assistant", "abc")]


def test_a_conversation_that_was_deleted_meanwhile_takes_nothing_with_it() -> None:
    engine = FakeEngine(gate=threading.Semaphore(0))
    with stored_server(engine=engine) as server, server.client() as api:
        made = api.conversations.create()
        response = api.responses.create(model="fake", input="abc", conversation=made.id, background=True)
        api.conversations.delete(made.id)
        gate = engine.gate
        assert gate is not None
        gate.release(10)
        while response.status == "in_progress":
            response = api.responses.retrieve(response.id)
        assert (response.status, response.output_text) == ("completed", "abc")
        with pytest.raises(openai.NotFoundError):
            api.conversations.retrieve(made.id)


def test_a_conversation_that_is_being_answered_is_locked(api: openai.OpenAI, server: StoredServer) -> None:
    async def begin() -> str:
        owner = client_of_token("Bearer mine")
        turn = await server.storage.conversations.begin_turn(owner, NewTurn(None, NewMessage("user", "hello")))
        assert turn is not None
        return turn.conversation.id

    conversation_id = asyncio.run(begin())
    with pytest.raises(openai.BadRequestError) as locked:
        api.responses.create(model="fake", input="a", conversation=conversation_id)
    assert (locked.value.code, locked.value.param) == ("conversation_locked", "conversation")
    question, answer = items_of(api, conversation_id)
    assert (question.status, answer.status, answer.role) == ("completed", "in_progress", "assistant")
    with pytest.raises(openai.BadRequestError):
        api.conversations.items.delete(answer.id, conversation_id=conversation_id)


def test_a_conversation_is_a_session_of_the_prefix_cache(server: StoredServer, api: openai.OpenAI) -> None:
    made = api.conversations.create()
    first = api.responses.create(model="fake", input="a", conversation=made.id)
    api.responses.create(model="fake", input="a", previous_response_id=first.id)
    httpx.post(f"{server.url}/v1/responses", json={"input": "a", "session_id": "own"})
    assert [options.session_id for options in server.engine.options[-3:]] == [made.id, first.id, "own"]


def test_a_conversation_is_a_session_called_as_its_user_began_it(server: StoredServer, api: openai.OpenAI) -> None:
    asked, given = api.conversations.create(), api.conversations.create(items=[user("tea?\nnow")])
    api.responses.create(model="fake", input="what is tea?", conversation=asked.id)
    api.responses.create(model="fake", input="and coffee?", conversation=asked.id)
    added = api.conversations.create().id
    with httpx.Client(base_url=server.url, headers={"authorization": "Bearer mine"}) as client:
        sessions = client.get("/api/sessions").json()["sessions"]
        named = {one["id"]: (one["title"], one["model"]) for one in sessions}
        assert named[asked.id] == ("what is tea?", "fake")
        assert named[given.id] == ("tea?", None)
        assert named[added] == ("New conversation", None)
        api.conversations.items.create(added, items=[user("milk")])
        shown = client.get(f"/api/sessions/{added}").json()
        assert (shown["title"], [message["content"] for message in shown["messages"]]) == ("milk", ["milk"])
        body = {"input": " and sugar", "session_id": added, "stream": False}
        told = client.post("/api/chat", json=body).json()
        assert told["message"]["content"] == "milk and sugar"
        assert texts(api, added)[-1] == ("assistant", "milk and sugar")


ODD: list[Any] = [
    *({"type": kind} for kind in ("message", "function_call", "function_call_output", "reasoning", None, [], {"a": 1})),
    {"type": "message", "role": "king", "status": "completed", "content": [{"type": "input_text", "text": "a"}]},
    {"type": "message", "role": "user", "status": "completed", "content": [3]},
    {"type": "message", "role": "user", "status": "completed", "content": {}},
    {"id": "msg_other", "type": "message", "role": "user", "status": 3, "content": []},
    {"type": "function_call", "call_id": 1, "name": None, "arguments": {}, "status": "completed"},
    {},
]


def test_an_imported_item_that_is_none_is_its_role_and_text(server: StoredServer, api: openai.OpenAI) -> None:
    messages = [{"id": "0", "role": "user", "content": "t", "item": ODD[0]}]
    for index, item in enumerate(ODD[1:], 1):
        messages.append({"id": str(index), "parent_id": str(index - 1), "role": "user", "content": "t", "item": item})
    session = {"messages": messages, "head_id": str(len(ODD) - 1)}
    document = {"format": "tinycluster.sessions", "version": 1, "sessions": [session]}
    headers = {"authorization": "Bearer mine"}
    made = httpx.post(f"{server.url}/api/sessions/import", json={"document": document}, headers=headers).json()
    conversation_id = made["sessions"][0]["id"]
    assert texts(api, conversation_id) == [("user", "t")] * len(ODD)
    answered = api.responses.create(model="fake", input="a", conversation=conversation_id)
    assert answered.output_text == "t" * len(ODD) + "a"
