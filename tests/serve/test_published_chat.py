"""Chats and completions, whole and chunk by chunk, against the schemas that OpenAI publishes for them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.serve.openai_specification import violations

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
USAGE = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
CHATS: list[dict[str, Any]] = [
    {},
    {"max_tokens": 2},
    {"n": 2, "seed": 7},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 3, "return_token_ids": True},
    {"tools": [ADD]},
    {"tools": [ADD], "logprobs": True, "top_logprobs": 1},
    {"return_progress": True},
]


def chunks_of(answer: httpx.Response) -> list[Any]:
    return [json.loads(event[6:]) for event in answer.text.split("\n\n") if event.startswith("data: {")]


@pytest.mark.parametrize("fields", CHATS)
@pytest.mark.parametrize("text", ["héllo", CALL])
def test_a_chat_is_as_published(client: httpx.Client, fields: dict[str, Any], text: str) -> None:
    body = {"messages": [{"role": "user", "content": text}], **fields}
    assert violations("CreateChatCompletionResponse", client.post("/v1/chat/completions", json=body).json()) == []
    chunks = chunks_of(client.post("/v1/chat/completions", json={**body, "stream": True, **USAGE}))
    assert [found for chunk in chunks if (found := violations("CreateChatCompletionStreamResponse", chunk))] == []
    assert len(chunks) > 2


# An echoed prompt's first token has no log-probability: OpenAI writes null there, of which its schema knows nothing.
@pytest.mark.parametrize("fields", [{}, {"max_tokens": 2, "n": 2}, {"logprobs": 2}, {"logprobs": 0}, {"echo": True}])
def test_a_completion_is_as_published(client: httpx.Client, fields: dict[str, Any]) -> None:
    answer = client.post("/v1/completions", json={"prompt": "abc", **fields}).json()
    assert violations("CreateCompletionResponse", answer) == []
