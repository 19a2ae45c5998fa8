"""Every answer of a route that OpenAI has, against the schema that OpenAI publishes for it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.serve.openai_specification import violations

HELLO = [{"role": "user", "content": "abc"}]


ADD = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": False}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def answer(client: httpx.Client, path: str, **body: Any) -> Any:
    made = client.post(path, json=body) if body else client.get(path)
    return made.json()


def test_models_are_listed_and_shown_as_published(client: httpx.Client) -> None:
    assert violations("ListModelsResponse", answer(client, "/v1/models")) == []
    assert violations("Model", answer(client, "/v1/models/fake")) == []


@pytest.mark.parametrize(
    "body",
    [
        {"input": "abc"},
        {"input": "abc", "max_output_tokens": 2, "instructions": "a", "metadata": {"k": "v"}, "truncation": "auto"},
        {"input": HELLO, "temperature": 0, "top_p": 0.5, "text": {"format": {"type": "text"}}, "tool_choice": "none"},
        {"input": "abc", "prompt_cache_key": "k", "safety_identifier": "s", "store": False, "tools": []},
        {"input": "abc", "background": True},
        {"input": CALL, "tools": [ADD], "tool_choice": {"type": "function", "name": "add"}},
        {"input": "{}", "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}}},
    ],
)
def test_a_response_is_as_published(client: httpx.Client, body: dict[str, Any]) -> None:
    assert violations("Response", answer(client, "/v1/responses", **body)) == []


def test_a_failed_response_is_as_published(client: httpx.Client) -> None:
    made = answer(client, "/v1/responses", input="lost", background=True)
    while made["status"] == "in_progress":
        made = answer(client, f"/v1/responses/{made['id']}")
    assert made["status"] == "failed"
    assert violations("Response", made) == []


def test_input_items_are_as_published(client: httpx.Client) -> None:
    items = [
        *HELLO,
        {"role": "assistant", "content": "said"},
        {"role": "developer", "content": [{"type": "input_text", "text": "do"}]},
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "2"},
    ]
    made = answer(client, "/v1/responses", input=items)
    assert violations("ResponseItemList", answer(client, f"/v1/responses/{made['id']}/input_items")) == []


def test_every_event_of_a_stream_is_as_published(client: httpx.Client) -> None:
    for body in (
        {"input": "abc"},
        {"input": "abc", "max_output_tokens": 1},
        {"input": "lost"},
        {"input": CALL, "tools": [ADD]},
    ):
        streamed = client.post("/v1/responses", json={**body, "stream": True}).text
        events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
        assert len(events) > 5
        assert [violations("ResponseStreamEvent", event) for event in events] == [[]] * len(events)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_an_error_is_as_published(client: httpx.Client, path: str) -> None:
    assert violations("ErrorResponse", answer(client, path, model="unknown")) == []


def test_what_is_not_as_published_is_seen(client: httpx.Client) -> None:
    made = answer(client, "/v1/responses", input="abc")
    assert violations("Response", {**made, "status": "done"})
    assert violations("Response", {name: value for name, value in made.items() if name != "tools"})
    assert violations("ResponseStreamEvent", {"type": "response.created", "response": made})
