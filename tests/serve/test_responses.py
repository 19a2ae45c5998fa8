"""/v1/responses through the official client, which checks nothing, and against its types, which say everything."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine, WholeChat
from tests.serve.strict_types import conforms


@pytest.fixture
def api(fake_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fake_url}/v1", api_key="mine", max_retries=0) as api:
        yield api


def test_a_text_is_answered_with_one_message_and_its_usage(api: openai.OpenAI) -> None:
    response = api.responses.create(model="fake", input="héllo")
    assert response.output_text == "héllo"
    assert (response.status, response.object, response.model) == ("completed", "response", "fake")
    assert [item.type for item in response.output] == ["message"]
    usage = response.usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (6, 6, 12)


def test_every_field_is_of_the_type_that_the_client_declares(client: httpx.Client) -> None:
    for body in (
        {"input": "hi"},
        {"input": "hi", "instructions": "be brief", "temperature": 0.5, "metadata": {"a": "b"}, "max_output_tokens": 1},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}], "store": False},
    ):
        answer = client.post("/v1/responses", json=body)
        assert answer.status_code == 200, answer.text
        conforms(Response, answer.json())


def test_an_answer_that_is_cut_short_is_incomplete(api: openai.OpenAI) -> None:
    response = api.responses.create(model="fake", input="hello", max_output_tokens=3)
    assert (response.status, response.output_text) == ("incomplete", "hel")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"  # type: ignore[union-attr]


STREAM = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    *["response.output_text.delta"] * 3,
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


def test_a_stream_has_all_events_in_order_and_every_one_is_of_its_declared_type(client: httpx.Client) -> None:
    events = read_events(client, {"input": "abc", "stream": True})
    assert [event["type"] for event in events] == STREAM
    assert [event["sequence_number"] for event in events] == list(range(len(STREAM)))
    for event in events:
        conforms(ResponseStreamEvent, event)
    texts = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(texts) == events[7]["text"] == "abc"
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1


def test_the_last_event_holds_what_is_stored_and_what_a_whole_answer_holds(client: httpx.Client) -> None:
    last = read_events(client, {"input": "abc", "stream": True})[-1]["response"]
    assert client.get(f"/v1/responses/{last['id']}").json() == last
    whole = client.post("/v1/responses", json={"input": "abc"}).json()
    assert {k: v for k, v in last.items() if "_at" not in k and k not in ("id", "output")} == {
        k: v for k, v in whole.items() if "_at" not in k and k not in ("id", "output")
    }


def test_the_clients_stream_of_events_ends_with_the_final_response(api: openai.OpenAI) -> None:
    with api.responses.stream(model="fake", input="abc") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == "abc"


def test_the_asynchronous_client_creates_streams_and_retrieves(fake_url: str) -> None:
    async def use() -> None:
        async with openai.AsyncOpenAI(base_url=f"{fake_url}/v1", api_key="mine", max_retries=0) as api:
            response = await api.responses.create(model="fake", input="abc")
            assert (await api.responses.retrieve(response.id)).output_text == "abc"
            stream = await api.responses.create(model="fake", input="abc", stream=True)
            assert [event.type async for event in stream] == STREAM

    asyncio.run(use())


def test_a_client_that_leaves_its_stream_finds_a_cancelled_response(start_server: StartServer) -> None:
    engine = FakeEngine(gate=threading.Semaphore(0))
    with httpx.Client(base_url=start_server(engine)) as client:
        with client.stream("POST", "/v1/responses", json={"input": "abc", "stream": True}) as stream:
            lines = stream.iter_lines()
            while '"id": "resp_' not in (line := next(lines)):
                pass
        response_id = line.partition('"id": "')[2].partition('"')[0]
        while (found := client.get(f"/v1/responses/{response_id}").json())["status"] == "in_progress":
            pass
        assert found["status"] == "cancelled"
        assert engine.running == set()


def test_a_failure_within_a_stream_is_its_last_event(client: httpx.Client) -> None:
    events = read_events(client, {"input": "lost", "stream": True})
    last = events[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["message"] == "rank 1 was lost"
    assert last["response"]["output"][0]["content"][0]["text"] == "l"
    conforms(ResponseStreamEvent, last)
    assert client.get(f"/v1/responses/{last['response']['id']}").json()["status"] == "failed"


def test_a_failure_before_the_first_event_is_a_plain_error(client: httpx.Client) -> None:
    for stream in (False, True):
        assert client.post("/v1/responses", json={"input": "lost at once", "stream": stream}).status_code == 503
    assert client.post("/v1/responses", json={"input": "full"}).status_code == 429


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}]}, "input[0].content"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}]}, "input"),
        ({"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "a", "temperature": 3}, "temperature"),
        ({"input": "a", "top_k": -7}, "top_k"),
        ({"input": "a", "metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "a", "tool_choice": "some"}, "tool_choice"),
        ({"input": "a", "text": {"format": {"type": "sound"}}}, "text.format.type"),
        ({"input": "a", "text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        (
            {"input": "a", "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": 3}}}},
            "text.format",
        ),
        ({"input": "a", "min_tokens": 9, "max_output_tokens": 8}, "min_tokens"),
        ({"input": "a", "reasoning": {"effort": "high"}}, "reasoning"),
        ({"input": "a", "conversation": 3}, "conversation"),
        ({"input": "a", "conversation": {}}, "conversation"),
        ({"input": "a", "conversation": {"id": 3}}, "conversation"),
        ({"input": "a", "conversation": "conv_1", "previous_response_id": "resp_1"}, "conversation"),
        ({"input": "a", "conversation": "conv_1", "store": False}, "conversation"),
        ({"input": "a", "prompt": {"id": "p"}}, "prompt"),
        ({"input": "a", "top_logprobs": 2}, "top_logprobs"),
        ({"input": "a", "truncation": "some"}, "truncation"),
        ({"input": "a", "background": True, "store": False}, "background"),
        ({"input": "a", "background": True, "stream": True}, "background"),
        ({"input": "x" * 1000}, "input"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: httpx.Client, body: dict[str, Any], param: str) -> None:
    answer = client.post("/v1/responses", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_conversation_that_is_too_long_loses_its_oldest_turns_if_it_may(start_server: StartServer) -> None:
    engine = FakeEngine(max_model_len=50, tokenizer=WholeChat())
    body = {"input": [{"role": "user", "content": f"{n:020}"} for n in range(4)], "max_output_tokens": 5}
    with httpx.Client(base_url=start_server(engine)) as client:
        refused = client.post("/v1/responses", json=body)
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        cut = client.post("/v1/responses", json={**body, "truncation": "auto", "instructions": "s"})
        assert cut.json()["usage"]["input_tokens"] == 41


@pytest.mark.parametrize("kind", ["json_object", "json_schema", "text"])
def test_a_text_format_is_a_grammar_of_the_request_and_is_shown(start_server: StartServer, kind: str) -> None:
    engine, text_format = FakeEngine(), {"type": kind}
    if kind == "json_schema":
        text_format |= {"name": "point", "schema": {"type": "object"}, "strict": True}
    with httpx.Client(base_url=start_server(engine)) as client:
        made = client.post("/v1/responses", json={"input": "{}", "text": {"format": text_format}}).json()
    assert made["text"] == {"format": text_format}
    assert (engine.options[0].grammar is None) == (kind == "text")


ADD = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def test_a_function_is_called_and_its_result_goes_on(api: openai.OpenAI) -> None:
    made = api.responses.create(model="fake", input=CALL, tools=[ADD], tool_choice="required")  # type: ignore[list-item]
    conforms(Response, made.to_dict())
    (call,) = made.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("add", {"a": 1})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "2"}
    after = api.responses.create(model="fake", input=[result], previous_response_id=made.id)  # type: ignore[list-item]
    assert after.output_text == "2"
    alone = api.responses.create(model="fake", input=[{"role": "user", "content": "q"}, call.to_dict(), result])  # type: ignore[list-item]
    assert alone.output_text == "2"


def test_a_streamed_call_has_its_own_events(client: httpx.Client) -> None:
    events = read_events(client, {"input": f"So: {CALL}", "tools": [ADD], "stream": True})
    for event in events:
        conforms(ResponseStreamEvent, event)
    kinds = [event["type"] for event in events]
    assert kinds[-4:-1] == [
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ]
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["message", "function_call"]


def test_functions_are_shown_as_they_came_and_reach_the_engine_as_rules(start_server: StartServer) -> None:
    engine = FakeEngine()
    body = {"input": CALL, "tools": [ADD], "tool_choice": {"type": "function", "name": "add"}}
    with httpx.Client(base_url=start_server(engine)) as client:
        made = client.post("/v1/responses", json=body).json()
    assert made["tool_choice"] == body["tool_choice"]
    assert {name: made["tools"][0][name] for name in ADD} == ADD
    assert engine.options[0].grammar is not None


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{**ADD, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{**ADD, "parameters": {"type": 3}}]}, "tools[0].parameters.type"),
        ({"tool_choice": {"type": "function", "name": "unknown"}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD, ADD]}, "tools[1].name"),
    ],
)
def test_a_wrong_function_is_refused_by_name(client: httpx.Client, change: dict[str, Any], param: str) -> None:
    answer = client.post("/v1/responses", json={"input": "a", "tools": [ADD], **change})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_clients_do_not_share_cached_prompts(start_server: StartServer) -> None:
    engine = FakeEngine()
    url = start_server(engine)
    for key in ("a", "b"):
        httpx.post(f"{url}/v1/responses", json={"input": "x"}, headers={"authorization": f"Bearer {key}"})
    assert len({options.cache_salt for options in engine.options}) == 2
    assert len({options.client for options in engine.options}) == 2


def read_events(client: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The payloads; every event's name is its payload's type, and the stream ends with [DONE]."""
    answer = client.post("/v1/responses", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *blocks, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    events = []
    for block in blocks:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events
