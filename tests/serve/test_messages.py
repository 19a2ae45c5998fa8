"""The messages of a chat: what is refused, and what templates get."""

from __future__ import annotations

from typing import Any

import pytest

from tinycluster.engine.errors import RequestError
from tinycluster.serve.messages import template_messages
from tinycluster.serve.protocol import ChatRequest, parse

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def refusal(messages: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(ChatRequest, {"messages": messages})
    return caught.value


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "text",
        [],
        [123],
        [{}],
        [{"role": "user"}],
        [{"role": 123, "content": "x"}],
        [{"role": "wizard", "content": "x"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "tool", "content": "x", "tool_call_id": ""}],
        [{"role": "function", "content": "x", "name": "f"}],
        [{"role": "assistant", "content": None, "tool_calls": []}],
        [{"role": "user", "content": "x", "tool_calls": [CALL]}],
        [{"role": "assistant", "tool_calls": [CALL | {"type": "custom"}]}],
        [{"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": {}}}]}],
        [{"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function"}]}],
        [{"role": "user", "content": "x", "name": 3}],
        [{"role": "user", "content": 123}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
        [{"role": "user", "content": [{"type": "text", "text": 3}]}],
        [{"role": "user", "content": ["x"]}],
    ],
)
def test_messages_of_another_form_are_refused(messages: Any) -> None:
    assert (refusal(messages).param or "").startswith("messages")


def test_text_parts_are_joined_by_line_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    request = parse(ChatRequest, {"messages": [{"role": "developer", "content": parts}]})
    assert template_messages(request.messages) == [{"role": "system", "content": "one\ntwo"}]


def test_a_conversation_with_tools_keeps_what_templates_read() -> None:
    called = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [called], "refusal": None},
        {"role": "tool", "tool_call_id": "call_1", "content": "2", "name": "add"},
        {"role": "assistant", "refusal": "no", "content": None},
    ]
    assert template_messages(parse(ChatRequest, {"messages": messages}).messages) == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [called],
        },
        {"role": "tool", "content": "2", "name": "add", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "no"},
    ]


@pytest.mark.parametrize("arguments", ["", "{", "[1]", '{"a": 1}'])
def test_arguments_that_a_model_wrote_come_back_as_they_were(arguments: str) -> None:
    called = CALL | {"function": {"name": "f", "arguments": arguments}}
    request = parse(ChatRequest, {"messages": [{"role": "assistant", "tool_calls": [called]}]})
    assert template_messages(request.messages)[0]["tool_calls"] == [called]


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_parts_that_are_not_text_are_unsupported(kind: str) -> None:
    parts = [{"type": "text", "text": "look"}, {"type": kind, kind: {"url": "file:///etc/passwd"}}]
    error = refusal([{"role": "user", "content": parts}])
    assert error.param == "messages[0].content"
    assert "unsupported" in error.message
