"""Any JSON in any field is either a request or one sentence with the field's name, never another exception."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serve.fake_engine import ByteTokenizer
from tinycluster.engine.errors import RequestError
from tinycluster.engine.request import SamplingParams
from tinycluster.serve.messages import template_messages
from tinycluster.serve.protocol import ChatRequest, CompletionRequest, parse
from tinycluster.serve.unsupported import CHAT_NEUTRAL, COMPLETION_NEUTRAL

WORDS = [
    *("user", "assistant", "tool", "system", "developer", "text", "refusal", "function", "none", "auto", "required"),
    *(
        "json_object",
        "json_schema",
        "object",
        "string",
        "integer",
        "array",
        "a",
        "",
        "\u0000",
        "5",
        "-1",
        "[",
        "(a|a)*b",
    ),
]
KEYS = [
    *(
        "role",
        "content",
        "name",
        "type",
        "text",
        "refusal",
        "function",
        "arguments",
        "tool_calls",
        "tool_call_id",
        "id",
    ),
    *("schema", "json_schema", "strict", "parameters", "properties", "required", "items", "enum", "$ref", "anyOf"),
    *("json", "regex", "choice", "grammar", "include_usage", "continuous_usage_stats", "description", "0", "70"),
]
NUMBERS = st.integers(-3, 130) | st.sampled_from([2**31, 2**63, -(2**63), 10**30]) | st.floats(-1e308, 1e308)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
CHAT_FIELDS = sorted({*ChatRequest.model_fields, *CHAT_NEUTRAL})
COMPLETION_FIELDS = sorted({*CompletionRequest.model_fields, *COMPLETION_NEUTRAL})


def bodies(fields: list[str], required: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    others = st.dictionaries(st.sampled_from(fields), ANY_JSON, max_size=4)
    return others.map(lambda body: {**required, **body})


def mistake(kind: Any, body: dict[str, Any]) -> RequestError | None:
    """Of everything that is made of a request before the engine gets it."""
    try:
        use(parse(kind, body))
    except RequestError as error:
        return error
    return None


def use(request: Any) -> None:
    request.samplings(ByteTokenizer(), SamplingParams())
    request.options("", None)
    request.rules("hermes")
    if isinstance(request, ChatRequest):
        template_messages(request.messages)
        assert request.parses_calls in (True, False)


@pytest.mark.parametrize(
    ("kind", "fields", "required"),
    [
        (ChatRequest, CHAT_FIELDS, {"messages": [{"role": "user", "content": "x"}]}),
        (CompletionRequest, COMPLETION_FIELDS, {"prompt": "x"}),
    ],
)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_json_in_any_field_is_a_request_or_a_mistake_with_its_name(
    kind: Any, fields: list[str], required: dict[str, Any], data: st.DataObject
) -> None:
    body = data.draw(bodies(fields, required))
    error = mistake(kind, body)
    if error is not None:
        assert error.message
        assert (error.param or "").partition("[")[0].partition(".")[0] in body
