"""Calls of tools through the official client. The fake engine answers with the last message, so a test writes what the
model says."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pydantic
import pytest

from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine


def tool(name: str, **properties: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": parameters}}


TOOLS: Any = [tool("weather", city="string"), tool("add", a="integer", b="integer")]
BONN = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn \\u00e9 \\"x\\""}}\n</tool_call>'
SUM = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


def says(text: str) -> Any:
    return [{"role": "user", "content": text}]


@pytest.fixture
def api(fake_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fake_url}/v1", api_key="none", max_retries=0) as api:
        yield api


def calls_of(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


def test_a_call_is_in_the_message_and_ends_it(api: openai.OpenAI) -> None:
    (choice,) = api.chat.completions.create(model="fake", messages=says(BONN), tools=TOOLS).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert calls_of(choice.message) == [("weather", {"city": 'Bonn é "x"'})]
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert re.fullmatch("call_[0-9a-f]{24}", call.id)


def test_several_calls_have_ids_of_their_own_and_content_may_come_before(api: openai.OpenAI) -> None:
    text = f"Let me see.\n{BONN}\n{SUM}"
    (choice,) = api.chat.completions.create(model="fake", messages=says(text), tools=TOOLS).choices
    assert choice.message.content == "Let me see."
    assert [name for name, _ in calls_of(choice.message)] == ["weather", "add"]
    assert len({call.id for call in choice.message.tool_calls or []}) == 2


def test_without_parallel_calls_there_is_one(api: openai.OpenAI) -> None:
    (choice,) = api.chat.completions.create(
        model="fake", messages=says(BONN + SUM), tools=TOOLS, parallel_tool_calls=False
    ).choices
    assert [name for name, _ in calls_of(choice.message)] == ["weather"]


@pytest.mark.parametrize(
    "text", ["no call", '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>', "<tool_"]
)
def test_what_is_no_call_of_a_known_tool_is_content(api: openai.OpenAI, text: str) -> None:
    (choice,) = api.chat.completions.create(model="fake", messages=says(text), tools=TOOLS).choices
    assert (choice.message.content, choice.finish_reason, choice.message.tool_calls) == (text, "stop", None)
    stream = api.chat.completions.create(model="fake", messages=says(text), tools=TOOLS, stream=True)
    deltas = [chunk.choices[0].delta for chunk in stream]
    assert "".join(delta.content or "" for delta in deltas) == text
    assert not any(delta.tool_calls for delta in deltas)


def test_streamed_calls_are_put_together_from_their_pieces(api: openai.OpenAI) -> None:
    text = f"See: {BONN}\n{SUM}"
    chunks = list(api.chat.completions.create(model="fake", messages=says(text), tools=TOOLS, stream=True))
    calls: dict[int, dict[str, str]] = {}
    for piece in (piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or []):
        if piece.id is not None:
            assert piece.index not in calls
            assert (piece.type, piece.function.arguments) == ("function", "")
            calls[piece.index] = {"id": piece.id, "name": piece.function.name, "arguments": ""}
        else:
            assert piece.function.name is None
            calls[piece.index]["arguments"] += piece.function.arguments
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "See:"
    assert [(call["name"], json.loads(call["arguments"])) for call in calls.values()] == [
        ("weather", {"city": 'Bonn é "x"'}),
        ("add", {"a": 1, "b": 2}),
    ]
    assert list(calls) == [0, 1]
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "tool_calls"
    # Arguments come as they are written, not at their end.
    assert sum(bool(chunk.choices[0].delta.tool_calls) for chunk in chunks) > 10


def test_a_call_that_breaks_off_ends_by_length(api: openai.OpenAI) -> None:
    limit = len(BONN) - 25
    (choice,) = api.chat.completions.create(model="fake", messages=says(BONN), tools=TOOLS, max_tokens=limit).choices
    assert choice.finish_reason == "length"
    assert (choice.message.tool_calls or [])[0].function.arguments.startswith('{"city": "Bonn')


def test_with_tool_choice_none_nothing_is_parsed(api: openai.OpenAI) -> None:
    (choice,) = api.chat.completions.create(model="fake", messages=says(BONN), tools=TOOLS, tool_choice="none").choices
    assert (choice.message.content, choice.finish_reason) == (BONN, "stop")


def test_logprobs_cover_every_token_of_calls_too(api: openai.OpenAI) -> None:
    options: Any = {"model": "fake", "messages": says(BONN), "tools": TOOLS, "logprobs": True}
    (choice,) = api.chat.completions.create(**options).choices
    spelled = bytes(byte for entry in choice.logprobs.content or [] for byte in entry.bytes)
    assert spelled.decode() == BONN
    streamed = [
        entry
        for chunk in api.chat.completions.create(**options, stream=True)
        for entry in (chunk.choices[0].logprobs.content or [] if chunk.choices[0].logprobs else [])
    ]
    assert [entry.logprob for entry in streamed] == [entry.logprob for entry in choice.logprobs.content or []]


def test_every_choice_has_its_own_calls(api: openai.OpenAI) -> None:
    answer = api.chat.completions.create(model="fake", messages=says(BONN), tools=TOOLS, n=3)
    assert [calls_of(choice.message) for choice in answer.choices] == [[("weather", {"city": 'Bonn é "x"'})]] * 3
    assert len({(choice.message.tool_calls or [])[0].id for choice in answer.choices}) == 3


def test_calls_that_must_be_made_are_a_grammar(start_server: StartServer) -> None:
    engine = FakeEngine()
    url = f"{start_server(engine)}/v1/chat/completions"
    named = {"type": "function", "function": {"name": "add"}}
    for choice in ("auto", "none", "required", named):
        answer = httpx.post(url, json={"messages": says("x"), "tools": TOOLS, "tool_choice": choice})
        assert answer.status_code == 200, answer.text
    assert [options.grammar is not None for options in engine.options] == [False, False, True, True]
    # Control tokens may mark calls, so they are not left out of the text in which calls are looked for.
    assert [sampling.skip_special_tokens for sampling in engine.submitted] == [False, True, False, False]


def test_rules_for_the_text_and_tools_that_may_be_called_go_together(start_server: StartServer) -> None:
    engine = FakeEngine()
    url = f"{start_server(engine)}/v1/chat/completions"
    body = {"messages": says(BONN), "tools": TOOLS, "response_format": {"type": "json_object"}}
    (choice,) = httpx.post(url, json=body).json()["choices"]
    assert engine.options[0].grammar is not None
    assert choice["message"]["content"] == BONN


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": "x"}, "tools"),
        ({"tools": [1]}, "tools[0]"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [tool('a"b\n')]}, "tools[0].function.name"),
        ({"tools": [tool("a"), tool("a")]}, "tools[1].function.name"),
        ({"tools": [tool(f"t{number}") for number in range(10_000)]}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": [1]}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls"),
    ],
)
def test_tools_of_another_form_are_refused_with_their_field(client: httpx.Client, fields: Any, param: str) -> None:
    answer = client.post("/v1/chat/completions", json={"messages": says("x"), **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_a_conversation_goes_on_after_a_call(start_server: StartServer) -> None:
    with openai.OpenAI(base_url=start_server(FakeEngine()) + "/v1", api_key="none") as api:
        (choice,) = api.chat.completions.create(model="fake", messages=says(SUM), tools=TOOLS).choices
        (call,) = choice.message.tool_calls or []
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "3"}
        messages = [*says(SUM), choice.message, result]
        answer = api.chat.completions.create(model="fake", messages=messages, tools=TOOLS)
    assert answer.choices[0].message.content == "3"


def test_the_clients_own_accumulation_of_a_stream_gives_the_whole_message(api: openai.OpenAI) -> None:
    options: Any = {"model": "fake", "messages": says(f"See: {BONN}\n{SUM}"), "tools": TOOLS, "logprobs": True}
    with api.chat.completions.stream(**options) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    (choice,) = final.choices
    assert {"content.delta", "tool_calls.function.arguments.done", "logprobs.content.delta", "content.done"} <= kinds
    assert (choice.message.content, choice.finish_reason) == ("See:", "tool_calls")
    assert calls_of(choice.message) == [("weather", {"city": 'Bonn é "x"'}), ("add", {"a": 1, "b": 2})]
    (whole,) = api.chat.completions.create(**options).choices
    assert [entry.token for entry in choice.logprobs.content or []] == [
        entry.token for entry in whole.logprobs.content or []
    ]


def test_the_async_client_streams_calls_and_parsed_objects(fake_url: str) -> None:
    class Sum(pydantic.BaseModel):
        a: int
        b: int

    async def ask() -> tuple[Any, Any]:
        async with openai.AsyncOpenAI(base_url=f"{fake_url}/v1", api_key="none", max_retries=0) as api:
            async with api.chat.completions.stream(model="fake", messages=says(SUM), tools=TOOLS) as stream:
                called = await stream.get_final_completion()
            text = says('{"a": 1, "b": 2}')
            async with api.chat.completions.stream(model="fake", messages=text, response_format=Sum) as stream:
                parsed = await stream.get_final_completion()
        return called, parsed

    called, parsed = asyncio.run(ask())
    assert calls_of(called.choices[0].message) == [("add", {"a": 1, "b": 2})]
    assert parsed.choices[0].message.parsed == Sum(a=1, b=2)
